"""Builders of small run directories for tests."""

import json
from pathlib import Path

import numpy as np

from promof_hpc.config import ScreenConfig, dump_config, load_config
from promof_hpc.physics.evaluate import evaluation_id
from promof_hpc.physics.registry import load_potential
from promof_hpc.store.candidates import Entry, candidate_shard, cut_batches
from promof_hpc.store.results import result_shard
from promof_hpc.store.run_dir import RunDir, read_round
from promof_hpc.store.schema import Candidate, Evaluation, Outcome, Row
from promof_hpc.store.shard import publish_text, write_shard
from promof_hpc.structure import Structure, canonical
from tests.potentials import POISON_ATOMS


def crystal(seed: int, atoms: int = 4, symbols: tuple[int, ...] = (10, 18)) -> Structure:
    """A loose random crystal that Lennard-Jones can relax."""
    rng = np.random.default_rng(seed)
    cell = np.eye(3) * (4.0 * np.ceil(atoms ** (1 / 3))) + rng.normal(0, 0.1, (3, 3))
    side = int(np.ceil(atoms ** (1 / 3)))
    grid = np.array([(i, j, k) for i in range(side) for j in range(side) for k in range(side)])[:atoms] / side
    numbers = rng.choice(symbols, atoms).astype(np.int32)
    return Structure(numbers, (grid + rng.normal(0, 0.02, (atoms, 3))) @ cell, cell)


def new_run(path: Path, config: ScreenConfig | None = None) -> RunDir:
    run = RunDir.create(path)
    publish_text(run.config, dump_config(config or ScreenConfig()))
    return run


def add_round(run: RunDir, number: int, ids: list[str], size: int = 2) -> None:
    """A round whose candidates have these ids, in batches of `size`."""
    candidates = [Candidate(i, crystal(k)) for k, i in enumerate(ids)]
    batches = cut_batches([len(c.structure) for c in candidates], size, 10_000)
    run.make_round(number)
    entries = [Entry(f"entry-{i}", i) for i in ids]
    write_shard(run.candidates(number), candidate_shard(candidates, batches, entries, {"library": "test"}))


def commit(run: RunDir, batch: str, outcome: Outcome = Outcome.CONVERGED, charged: bool = True) -> bool:
    """The result shard of a batch with one outcome for all."""
    number = int(batch.split("-")[0])
    shard = read_round(run, number)
    k = int(batch.split("-")[1])
    a, b = np.asarray(shard.arrays["batch_ptr"])[k : k + 2]
    rows = [Row(str(i), outcome, charged=charged) for i in shard.arrays["evaluation_id"][a:b]]
    return write_shard(run.result(batch), result_shard([Evaluation(r, crystal(0)) for r in rows], batch, {}))


def lennard_jones_run(
    path: Path, potential: str, count: int = 16, *settings: str, poison: tuple[int, ...] = ()
) -> RunDir:
    """A screening that has been read, with `count` Lennard-Jones crystals, those at `poison` of the deadly size."""
    config = load_config(ScreenConfig, None, [
        "evaluation.stages=read,relax", f"evaluation.potential.name=tests.potentials:{potential}",
        "evaluation.relax.max_steps=15", "farm.batch_structures=2", "farm.drain_s=0", *settings,
    ])  # fmt: skip
    run = new_run(path, config)
    judge = load_potential(config.evaluation.potential.name)
    publish_text(run.provenance, json.dumps({"kind": "screen", "potential": {"weights_sha256": judge.weights_sha256}}))
    crystals = [canonical(crystal(k, POISON_ATOMS if k in poison else 5)) for k in range(count)]
    candidates = [Candidate(evaluation_id(c, judge, config.evaluation), c) for c in crystals]
    batches = cut_batches([len(c) for c in crystals], config.farm.batch_structures, 10_000)
    run.make_round(0)
    entries = [Entry(f"e{k}", c.evaluation_id) for k, c in enumerate(candidates)]
    write_shard(run.candidates(0), candidate_shard(candidates, batches, entries, {"library": "test"}))
    publish_text(run.ingested, "{}")
    return run
