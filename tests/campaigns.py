"""Campaigns without processes: a scorer and a farm that answer at once, the same numbers for the same structures."""

import hashlib
import math

import numpy as np

from promof_hpc.config import DesignConfig, load_config
from promof_hpc.design.campaign.loop import Campaign, Hands
from promof_hpc.design.strategy import Judged
from promof_hpc.store.budget import batches_of
from promof_hpc.store.candidates import read_structures
from promof_hpc.store.results import result_shard
from promof_hpc.store.run_dir import read_round
from promof_hpc.store.schema import Evaluation, Outcome, Row
from promof_hpc.store.shard import write_shard

SMALL = (
    "strategy=tests.strategies:Drift", "evaluation.potential.name=lennard-jones", "reference=none",
    "reward.stability_weight=0", "evaluation.relax.max_steps=10", "evaluation.stages=read,pores,relax,energy",
    "rounds.targets=1", "rounds.sets=2", "rounds.assemblies=4", "budget=24", "farm.batch_structures=2",
)  # fmt: skip


def small_design(*overrides: str) -> DesignConfig:
    return load_config(DesignConfig, None, [*SMALL, *overrides])


class Interrupted(Exception):
    """Stands for the death of the process."""


class QuickScorer:
    """Ids by content, rewards by energy, and a memory that must survive restarts."""

    def __init__(self):
        self.remembered = []

    def identify(self, structure):
        return structure.digest()[:32]

    def targets(self, number):
        return [{"pld_ang": 6.0}]

    def judge(self, asked, proposals, evaluations):
        repeats = len(self.remembered)
        self.remember(proposals, evaluations)
        return [
            Judged(-12.0 if p.refusal not in ("", "over_budget") else math.nan)
            if e is None
            else Judged(e.row.energy_ev_per_atom + 0.001 * repeats, stable=True)
            for p, e in zip(proposals, evaluations, strict=True)
        ]

    def remember(self, proposals, evaluations):
        self.remembered.append([p.name for p, e in zip(proposals, evaluations, strict=True) if e is not None])


def energy_of(evaluation_id: str) -> float:
    return int(hashlib.sha256(evaluation_id.encode()).hexdigest()[:8], 16) / 2**32


def commit_round(run, number: int) -> None:
    """What the farm would do."""
    shard = read_round(run, number)
    for plan in batches_of(shard, number):
        rows = []
        for candidate in read_structures(shard, plan.members):
            row = Row(candidate.evaluation_id, Outcome.CONVERGED, charged=True)
            row.energy_ev_per_atom, row.wall_s = energy_of(candidate.evaluation_id), np.random.default_rng().random()
            rows.append(Evaluation(row, candidate.structure))
        write_shard(run.result(plan.name), result_shard(rows, plan.name, {}))


def campaign(run, config, strategy, *, dies_at: int | None = None, told: list | None = None) -> Campaign:
    """A campaign whose process dies at its n-th safe point or wait."""
    steps = 0

    def step() -> None:
        nonlocal steps
        if steps == dies_at:
            raise Interrupted
        steps += 1

    def wait(number, batches) -> None:
        step()
        commit_round(run, number)

    hands = Hands(wait, lambda phase, number: step(), (told if told is not None else []).append)
    return Campaign(run, config, strategy, QuickScorer(), hands)


def what_was_decided(run) -> dict[str, str]:
    """Everything that must come out the same whatever was killed when."""
    decided = {}
    for number in run.round_numbers():
        decided[f"candidates {number}"] = read_round(run, number).digest()
        decided[f"seal {number}"] = run.sealed(number).read_text()
        decided[f"learned {number}"] = run.learned(number).read_text()
    return decided
