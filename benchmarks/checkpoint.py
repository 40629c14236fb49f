"""How long training stands still for a checkpoint of both policies at released size, against writing on the spot.

    PYTHONPATH=. python benchmarks/checkpoint.py [FOLDER]

Strategy `promof` with networks of the released sizes and Adam's moments, kept as a campaign keeps it: training stops
for a copy to host memory, and a thread writes, flushes and publishes it. The reference is `torch.save` of the same
tensors, for which training would stop. FOLDER lies on the disk that is to be measured.
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from promof_hpc.config import DesignConfig
from promof_hpc.design.strategies.promof import Promof
from promof_hpc.policy.chemist import Chemist
from promof_hpc.policy.engineer import Engineer
from promof_hpc.policy.mofflow2 import RELEASED
from promof_hpc.policy.weights import load_chemist, save_chemist, save_engineer
from promof_hpc.store.checkpoint import save_checkpoint
from promof_hpc.store.run_dir import RunDir

CHECKPOINTS = 4


def released_size(folder: Path) -> Promof:
    """The strategy with random networks of the released sizes, each after an optimiser step."""
    shipped = load_chemist()
    chemist = Chemist(replace(shipped.network.settings, width=1024, depth=6, heads=8))
    save_chemist(folder, chemist, shipped.vocabulary, shipped.conditions)
    save_engineer(folder, Engineer(RELEASED))
    strategy = Promof(DesignConfig.model_validate({"policy": {"weights": str(folder)}}))
    for learner in (strategy.chemist, strategy.engineer):
        learner.engine.step([torch.stack([p.sum() for p in learner.network.parameters()]).sum()])
    return strategy


def save_on_the_spot(networks: list[nn.Module], moments: list[torch.Tensor], path: Path) -> None:
    """The reference."""
    torch.save([*(network.state_dict() for network in networks), moments], path)


def main(parent: Path | None) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory(dir=parent) as place:
        strategy = released_size(Path(place) / "policies")
        networks = [strategy.chemist.network, strategy.engineer.network]
        parameters = [p for network in networks for p in network.parameters()]
        moments = [torch.rand_like(p) for p in parameters for _ in range(2)]
        count = sum(p.numel() for p in parameters)
        print(f"{count / 1e6:.0f} million parameters, {3 * 4 * count / 1e9:.2f} GB with Adam's moments")
        run = RunDir.create(Path(place) / "run")
        run.checkpoints.mkdir(exist_ok=True)
        for number in range(1, CHECKPOINTS + 1):
            begin = time.perf_counter()
            publish = save_checkpoint(run, number, strategy.save)
            copied = time.perf_counter()
            publish()
            written = time.perf_counter()
            save_on_the_spot(networks, moments, Path(place) / "reference.pt")
            reference = time.perf_counter() - written
            stood = copied - begin
            print(
                f"copy {stood:.2f} s, written in the background in {written - copied:.2f} s; "
                f"torch.save {reference:.2f} s: training stands still {reference / stood:.1f}x shorter"
            )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
