"""Campaigns without processes: a scorer and a farm that answer at once, the same numbers for the same structures."""

import hashlib
import math
from pathlib import Path

import numpy as np

from promof_hpc.config import DesignConfig, load_config
from promof_hpc.design.campaign.loop import Campaign, Hands
from promof_hpc.design.strategy import Judged
from promof_hpc.physics.energies import Baseline, ReferenceSet, RelaxedMof
from promof_hpc.physics.lennard_jones import LennardJones
from promof_hpc.store.budget import batches_of
from promof_hpc.store.candidates import read_structures
from promof_hpc.store.results import result_shard
from promof_hpc.store.run_dir import read_round, rounds_before_the_raise
from promof_hpc.store.schema import Evaluation, Outcome, Row
from promof_hpc.store.shard import write_shard

SMALL = (
    "strategy=tests.strategies:Drift", "evaluation.potential.name=lennard-jones", "reference=none",
    "reward.stability_weight=0", "evaluation.relax.max_steps=10", "evaluation.stages=read,pores,relax,energy",
    "rounds.targets=1", "rounds.sets=2", "rounds.assemblies=4", "budget=24", "farm.batch_structures=2",
)  # fmt: skip


def lenient_reference(path: Path) -> Path:
    """Write a reference set of Lennard-Jones to which every noble gas crystal is low in energy."""
    symbols = ("Ne", "Ar", "Kr")
    potential = LennardJones()
    mofs = tuple(RelaxedMof(f"m{k}", {"Ne": 1}, float(k), 0.0, float(k)) for k in range(1, 11))
    found = ReferenceSet(
        potential.id, potential.weights_sha256, "r" * 64, dict.fromkeys(symbols, 0.0),
        Baseline(dict.fromkeys(symbols, 0.0), {}, 1e-3, 0.1, 10), 0.95, {"p10": 1.0, "p50": 5.0, "p90": 9.0},
        {"p10": -0.1, "p50": 0.0, "p90": 0.1}, mofs,
    )  # fmt: skip
    path.write_text(found.to_json(), encoding="utf-8")
    return path


def small_design(*overrides: str) -> DesignConfig:
    return load_config(DesignConfig, None, [*SMALL, *overrides])


class Interrupted(Exception):
    """Stands for the death of the process."""


class QuickScorer:
    """Ids by content, rewards by energy, and a memory that must survive restarts."""

    remembers = True

    def __init__(self):
        self.remembered = []

    def identify(self, structure):
        return structure.digest()[:32]

    def targets(self, number):
        return [{"pld_ang": 6.0}]

    def judge(self, asked, proposals, evaluations):
        repeats = len(self.remembered)
        self.remember(evaluations)
        return [
            Judged(-12.0 if p.refusal not in ("", "over_budget") else math.nan)
            if e is None
            else Judged(e.row.energy_ev_per_atom + 0.001 * repeats, stable=True)
            for p, e in zip(proposals, evaluations, strict=True)
        ]

    def remember(self, evaluations):
        self.remembered.append([e.row.evaluation_id for e in evaluations if e is not None])


def energy_of(evaluation_id: str) -> float:
    return int(hashlib.sha256(evaluation_id.encode()).hexdigest()[:8], 16) / 2**32


def commit_round(run, number: int, filtered=lambda evaluation_id: False) -> None:
    """What the farm would do; what is `filtered` ends before the potential and costs nothing."""
    shard = read_round(run, number)
    for plan in batches_of(shard, number):
        rows = []
        for candidate in read_structures(shard, plan.members):
            free = filtered(candidate.evaluation_id)
            row = Row(candidate.evaluation_id, Outcome.FILTERED if free else Outcome.CONVERGED, charged=not free)
            row.energy_ev_per_atom, row.wall_s = energy_of(candidate.evaluation_id), np.random.default_rng().random()
            rows.append(Evaluation(row, candidate.structure))
        write_shard(run.result(plan.name), result_shard(rows, plan.name, {}))


def campaign(run, config, strategy, *, dies_at: int | None = None, told: list | None = None, **of_the_farm) -> Campaign:
    """A campaign whose process dies at its n-th safe point or wait; `of_the_farm` goes to `commit_round`."""
    steps = 0

    def step() -> None:
        nonlocal steps
        if steps == dies_at:
            raise Interrupted
        steps += 1

    def wait(number, batches) -> None:
        step()
        commit_round(run, number, **of_the_farm)

    hands = Hands(wait, lambda phase, number: step(), (told if told is not None else []).append)
    return Campaign(run, config, strategy, QuickScorer(), hands, settled=rounds_before_the_raise(run))


def a_third(evaluation_id: str) -> bool:
    """Whether an evaluation is among the third that a filter stops."""
    return energy_of(evaluation_id) < 1 / 3


def what_was_decided(run) -> dict[str, str]:
    """Everything that must come out the same whatever was killed when."""
    decided = {}
    for number in run.round_numbers():
        decided[f"candidates {number}"] = read_round(run, number).digest()
        decided[f"seal {number}"] = run.sealed(number).read_text()
        decided[f"learned {number}"] = run.learned(number).read_text()
    return decided
