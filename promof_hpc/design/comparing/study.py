"""A study's figures: what each run reached, means with bootstrap intervals over seeds, and tests of the differences."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

EXACT_UP_TO = 14  # seeds up to which every assignment of signs is tried (16,384)
RANDOM_SIGNS = 20_000
SPREAD = (
    *("success_percent", "top1", "diversity", "success_diversity", "materials"),
    *("second_opinion_percent", "gate_pass_percent", "stable_percent", "force_calls", "wall_s"),
)
"""Figures that get an interval."""
TESTED = ("success_percent", "top1", "diversity", "success_diversity")
"""Figures whose difference from the first strategy is tested."""


@dataclass(frozen=True)
class RunFigures:
    """What one run reached. Figures that a run does not have are NaN.

    Attributes:
        strategy: as the tables call it; `task` likewise.
        seed: of the run.
        path: of the run directory, relative to the study.
        finished: the campaign ended by itself and has its second opinion, if it asks for one; otherwise the figures are
            of what is there so far.
        evaluations: charged to the budget.
        proposals: proposed, whether or not they passed the gate.
        gates: proposals that got past each gate, in order.
        success_percent: evaluations of the budget that are stable and meet the target.
        stable_percent: evaluations of the budget that are stable.
        gate_pass_percent: proposals that passed the geometry gate.
        top1: the best stable structure's value: the pore diameter in Å nearest to the target, or the lowest energy in
            eV/atom.
        top1_error: what is tested of Top-1: distance from the target in Å, or the energy; less is better.
        diversity: mean Tanimoto distance between the component sets of stable evaluations, 0 to 1.
        success_diversity: the same between successes.
        materials: different materials among the successes.
        force_calls: calls of the potential.
        wall_s: wall time of the campaign.
        config_sha256: digest of its configuration; `weights_sha256` of the potential; `policy_sha256` of the policies.
        successes: evaluation ids of the successes; `best` that of Top-1.
        second_opinion: name of the second potential; empty where none is asked for.
        second_opinion_percent: successes that it also calls stable, of those that it was asked about.
    """

    strategy: str
    task: str
    seed: int
    path: str
    finished: bool
    evaluations: int
    proposals: int
    gates: dict[str, int]
    success_percent: float
    stable_percent: float
    gate_pass_percent: float
    top1: float
    top1_error: float
    diversity: float
    success_diversity: float
    materials: int
    force_calls: float
    wall_s: float
    config_sha256: str = ""
    weights_sha256: str = ""
    policy_sha256: str = ""
    successes: tuple[str, ...] = ()
    best: str = ""
    second_opinion: str = ""
    second_opinion_percent: float = math.nan


@dataclass(frozen=True)
class Spread:
    """A mean over seeds and its 95 % bootstrap interval; NaN without values."""

    mean: float
    low: float
    high: float
    values: tuple[float, ...]


@dataclass(frozen=True)
class Line:
    """One line of a table: a strategy at one task.

    Attributes:
        spreads: mean and interval of the figures in `SPREAD`.
        p_values: of the difference from the first strategy in `TESTED`, paired by seed; NaN where there is none.
        gates: proposals that got past each gate, summed over the runs.
        runs: what it was made of.
    """

    strategy: str
    task: str
    spreads: dict[str, Spread]
    p_values: dict[str, float]
    gates: dict[str, int]
    runs: tuple[RunFigures, ...] = field(repr=False)


def table(runs: Sequence[RunFigures], resamples: int = 10_000) -> list[Line]:
    """The lines of a study, by task and strategy in the order of the runs; the first strategy is the yardstick."""
    tasks = list(dict.fromkeys(r.task for r in runs))
    strategies = list(dict.fromkeys(r.strategy for r in runs))
    lines = []
    for task, strategy in itertools.product(tasks, strategies):
        own = [r for r in runs if (r.task, r.strategy) == (task, strategy)]
        first = {r.seed: r for r in runs if (r.task, r.strategy) == (task, strategies[0])}
        if not own:
            continue
        spreads = {name: spread([float(getattr(r, name)) for r in own], resamples) for name in SPREAD}
        p_values = {name: _p_value(own, first, name) for name in TESTED}
        gates = {gate: sum(r.gates.get(gate, 0) for r in own) for gate in own[0].gates}
        lines.append(Line(strategy, task, spreads, p_values, gates, tuple(own)))
    return lines


def spread(values: Sequence[float], resamples: int = 10_000, seed: int = 0) -> Spread:
    """Mean and 95 % percentile bootstrap interval of a figure over seeds, those that lack it left out.

    The resampling is seeded, so a table comes out the same every time. One value has no interval.
    """
    known = np.array([v for v in values if not math.isnan(v)])
    if not len(known):
        return Spread(math.nan, math.nan, math.nan, tuple(values))
    if len(known) == 1:
        return Spread(float(known[0]), math.nan, math.nan, tuple(values))
    drawn = np.random.default_rng(seed).integers(len(known), size=(resamples, len(known)))
    low, high = np.percentile(known[drawn].mean(1), [2.5, 97.5])
    return Spread(float(known.mean()), float(low), float(high), tuple(values))


def paired_permutation(differences: Sequence[float], seed: int = 0) -> float:
    """Two-sided p-value of the mean of paired differences under random signs (Fisher's randomisation test).

    Exact up to `EXACT_UP_TO` pairs that differ; beyond, from `RANDOM_SIGNS` draws with the observed one among them.
    Without any pair, NaN; without any difference, 1.
    """
    known = np.array([d for d in differences if not math.isnan(d)])
    if not len(known):
        return math.nan
    moved = known[known != 0.0]  # a pair without difference changes no sum
    if not len(moved):
        return 1.0
    observed = abs(moved.sum()) * (1.0 - 1e-12)  # the observed signs themselves must count
    if len(moved) <= EXACT_UP_TO:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=len(moved))))
        return float((np.abs(signs @ moved) >= observed).mean())
    signs = np.random.default_rng(seed).choice((1.0, -1.0), (RANDOM_SIGNS, len(moved)))
    return float((1 + (np.abs(signs @ moved) >= observed).sum()) / (1 + RANDOM_SIGNS))


def _p_value(own: Sequence[RunFigures], first: dict[int, RunFigures], name: str) -> float:
    """Of the difference from the yardstick's runs of the same seeds; NaN for the yardstick itself."""
    figure = "top1_error" if name == "top1" else name
    pairs = [(r, first[r.seed]) for r in own if r.seed in first and first[r.seed] is not r]
    return paired_permutation([getattr(a, figure) - getattr(b, figure) for a, b in pairs])
