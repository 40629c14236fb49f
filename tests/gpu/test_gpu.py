"""What only a GPU can show: learning in bf16 under NCCL, batches of UMA, policies beside a potential, memory."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from promof_hpc.physics.registry import load_potential
from promof_hpc.physics.relax import compute_or_halve
from promof_hpc.store.run_dir import RunDir
from promof_hpc.structure import Structure
from tests.commands import COMMAND, ENVIRONMENT, ROOT, promof
from tests.policies import small_mofs
from tests.slurm.users import is_exact, small_campaign
from tests.tiny_uma import TINY, UMA_S, Size, write_tiny_uma

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here")
BUDGET = 16


def mofs(count: int) -> list[Structure]:
    """Small real MOFs, repeated as often as needed."""
    found = [m.decomposition.structure for m in small_mofs()]
    return [found[k % len(found)] for k in range(count)]


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_policies_learn_in_bf16_under_nccl_with_exact_first_ratios(tmp_path, stage):
    command = [COMMAND[0], "-m", "tests.gpu.learning", str(small_campaign(tmp_path)), str(stage), "cuda"]
    done = subprocess.run(command, env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    signals = json.loads(done.stdout.splitlines()[-1])
    assert signals["chemist_updates"] > 0
    assert signals["engineer_updates"] > 0
    assert signals["chemist_first_ratio_deviation"] < 1e-3
    assert signals["engineer_first_ratio_deviation"] < 1e-3
    assert all(np.isfinite(value) for value in signals.values())


@pytest.mark.parametrize("size", [TINY, UMA_S], ids=["tiny", "size of UMA-S"])
def test_a_batch_of_uma_on_the_gpu_is_what_each_is_on_the_cpu(tmp_path, size: Size):
    pytest.importorskip("fairchem.core")
    weights = write_tiny_uma(tmp_path / "uma.pt", size=size)
    there, here = (load_potential("uma", weights=weights, task="omat", device=device) for device in ("cuda", "cpu"))
    structures = mofs(4)
    for structure, prediction in zip(structures, there.compute(structures), strict=True):
        (alone,) = here.compute([structure])
        assert prediction.energy == pytest.approx(alone.energy, abs=1e-4 * len(structure))
        np.testing.assert_allclose(prediction.forces, alone.forces, atol=5e-3)
        np.testing.assert_allclose(prediction.stress, alone.stress, atol=1e-4)


def test_a_campaign_has_policies_and_potential_side_by_side_on_the_gpu(tmp_path):
    pytest.importorskip("fairchem.core")
    potential = {"name": "uma", "task": "omat", "weights": str(write_tiny_uma(tmp_path / "uma.pt")), "device": "cuda"}
    evaluation = {"stages": "read,pores,relax,energy", "potential": potential, "relax": {"max_steps": 3}}
    training = {"tasks": 1, "device": "cuda", "precision": "bf16"}
    config = small_campaign(tmp_path, budget=BUDGET, evaluation=evaluation, training=training)
    run = RunDir(tmp_path / "run")
    promof("design", config, "--run", run.path, "--ranks", 1, cwd=ROOT)
    assert json.loads(run.ended.read_text())["ending"] == "SPENT"
    is_exact(run, BUDGET)


def test_a_batch_that_does_not_fit_is_halved_until_it_does(tmp_path: Path, caplog):
    pytest.importorskip("fairchem.core")
    potential = load_potential("uma", weights=write_tiny_uma(tmp_path / "uma.pt"), task="omat", device="cuda")
    structures = mofs(32)
    largest = max(structures, key=len)
    potential.compute([largest])
    torch.cuda.reset_peak_memory_stats()
    potential.compute([largest])
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(min(1.0, 3 * torch.cuda.max_memory_reserved() / total))
    try:
        predictions = compute_or_halve(structures, potential)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "halving" in caplog.text
    for structure, prediction in zip(structures, predictions, strict=True):
        (alone,) = potential.compute([structure])
        assert prediction.energy == pytest.approx(alone.energy, abs=1e-4 * len(structure))
