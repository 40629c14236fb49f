"""The descent of snap: stages of Levenberg-Marquardt steps in which repulsion grows and contacts are chosen anew.

Where who meets whom is free, one stage does it. Along kept edges the way is longer, because the start may be far off:
first contacts are drawn together by their middles, without the order of their donors and without repulsion, in a cell
kept roomy (else the net collapses into a dense one that is just as closed); then donor by donor, with the ends of the
blocks chosen anew; then repulsion grows. Assemblies that stay far open before that are given up.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from promof_hpc.assembly.batched import put, take
from promof_hpc.assembly.snap_assign import Choice, Kept, Matchmaker
from promof_hpc.assembly.snap_energy import Anchor, Points, Rig, View, Weights, points_of, view
from promof_hpc.assembly.snap_overlap import Overlaps, close_pairs, no_pairs
from promof_hpc.assembly.snap_step import step
from promof_hpc.assembly.stack import Poses

CHOOSE_EVERY = 5  # steps between choices of who meets whom
SETTLINGS, SETTLING_STEPS = 3, 10
NEARLY_ANG2 = 0.02  # open per site: a tenth of an ångström for it and for the point behind
LIST_EVERY = 3  # steps between lists of close pairs
FIRST_DAMPING, DAMPING_RANGE = 0.1, (1e-5, 1e3)
ACCEPTED, REJECTED = 0.4, 5.0  # factors of the damping
DENSEST_ANG3 = 1.0  # volume per atom; below it atoms have no meaningful neighbours
HOPELESS_ANG2 = 8.0  # open contacts before repulsion grows, above which hardly any assembly was ever closed
CLOSED_ANG2 = 1e-3  # contacts closed enough to end a stage without repulsion
STALLED = 0.99  # share of the energy that must remain after a round of steps to call it stalled
SAME_ENERGY = 1e-6  # relative difference within which two energies are one


@dataclass(frozen=True)
class Stage:
    """Steps during which repulsion rises linearly from `low` to `high` over the first `ramp` steps.

    `room` multiplies the least volume and `volume` is its weight in Å²; `swap` allows other ends on kept edges.
    """

    steps: int
    low: float
    high: float
    ramp: int
    room: float
    volume: float
    swap: bool = True


DRAW_TOGETHER = Stage(60, 0.0, 0.0, 1, 1.3, 50.0, swap=False)
CLOSE = Stage(20, 0.0, 0.0, 1, 1.3, 50.0)


def last_stage(kept: bool, steps: int, volume: float) -> Stage:
    """The stage in which repulsion grows: soon where contacts are free, slowly around `kept` edges that are closed."""
    if kept:
        return Stage(3 * steps, 0.02, 1.0, max(1, int(1.2 * steps)), 1.0, volume)
    return Stage(steps, 0.05, 1.0, max(1, int(0.4 * steps)), 1.0, volume)


@dataclass(frozen=True)
class Problem:
    """Assemblies to finish.

    Attributes:
        rig: what is fixed.
        maker: chooses who meets whom.
        done: energy in Å² below which each is finished, [B].
        behind: weight of the points behind donors.
        hold: weight of the way from where a stage begins.
    """

    rig: Rig
    maker: Matchmaker
    done: Tensor
    behind: float
    hold: float

    def take(self, rows: Tensor) -> Problem:
        """The assemblies `rows`."""
        return Problem(self.rig.take(rows), self.maker.take(rows), self.done[rows], self.behind, self.hold)


@dataclass(frozen=True)
class State:
    """The best that is known of B assemblies: poses, energy in Å² [B] by the measure of the stage, and contacts."""

    poses: Poses
    energy: Tensor
    choice: Choice


def assess(problem: Problem, start: Poses, stage: Stage) -> State:
    """The start as it stands, with its energy by the measure of `stage`."""
    points = points_of(problem.rig, start)
    choice = problem.maker.choose(points, start.cells, swap=False)
    return State(start, _energy(problem.rig, start, choice, _measure(problem, stage)), choice)


def descend(problem: Problem, start: Poses, stage: Stage, factor: Tensor | None = None) -> State:
    """The best states found from `start` (in reduced cells), with energies at full repulsion.

    Args:
        problem: the assemblies.
        start: their poses.
        stage: the last one, in which repulsion grows.
        factor: of the costs of who meets whom at the very start.
    """
    maker = problem.maker
    if not isinstance(maker, Kept):
        return _settled(problem, run(problem, start, stage, factor), stage)
    closed = torch.full_like(problem.done, CLOSED_ANG2)
    rough = maker.coarse()
    drawn = run(replace(problem, rig=rough.rig, maker=rough, done=closed), start, DRAW_TOGETHER, factor)
    maker = maker.on(drawn.choice.pairing)
    near = run(replace(problem, maker=maker, done=closed), drawn.poses, CLOSE)
    rows = torch.nonzero(near.energy < HOPELESS_ANG2 + problem.done)[:, 0]
    near = replace(near, energy=_energy(problem.rig, near.poses, near.choice, _measure(problem, stage)))
    if not len(rows):
        return near
    settling = replace(problem, maker=maker.on(near.choice.pairing)).take(rows)
    return lower(near, rows, _settled(settling, run(settling, take(near.poses, rows), stage), stage))


def _settled(problem: Problem, found: State, stage: Stage) -> State:
    """Assemblies that are nearly finished after more steps from where they are, which takes back what holding cost.

    Where more is open the blocks do not fit better, and going on would only lead away.
    """
    last = replace(stage, steps=SETTLING_STEPS, low=stage.high, ramp=1)
    nearly = problem.done + NEARLY_ANG2 * problem.rig.ends.sites.sum(1)
    for _ in range(SETTLINGS):
        rows = torch.nonzero((found.energy >= problem.done) & (found.energy < nearly))[:, 0]
        if not len(rows):
            break
        found = lower(found, rows, run(problem.take(rows), take(found.poses, rows), last))
    return found


def run(problem: Problem, start: Poses, stage: Stage, factor: Tensor | None = None) -> State:
    """One stage; assemblies leave it when they are done or stalled."""
    alive = torch.arange(len(start), device=start.cells.device)
    problem = problem.take(alive)  # a copy: choosing changes it
    poses, points = start, points_of(problem.rig, start)
    rig = replace(problem.rig, anchor=Anchor(points.atoms, poses.cells))
    problem = replace(problem, rig=replace(rig, least_volume=stage.room * rig.least_volume))
    measure = _measure(problem, stage)
    damping = torch.full_like(problem.done, FIRST_DAMPING)
    pairs = _pairs(problem.rig, poses, points, measure)
    best: State | None = None
    for number in range(0, stage.steps, CHOOSE_EVERY):
        first = number == 0
        choice = problem.maker.choose(points, poses.cells, factor if first else None, stage.swap or factor is not None)
        seen = view(problem.rig, poses, points, choice.matched, pairs)
        before = seen.energy(measure)
        best = State(poses, before, choice) if best is None else best
        for it in range(number, min(number + CHOOSE_EVERY, stage.steps)):
            if it - number == LIST_EVERY:
                pairs = _pairs(problem.rig, seen.poses, seen.points, measure)
                seen = view(problem.rig, seen.poses, seen.points, choice.matched, pairs)
            grown = stage.low + (stage.high - stage.low) * min(1.0, it / stage.ramp)
            seen, damping = _try_step(seen, replace(measure, repulsion=grown, hold=problem.hold), damping)
        poses, points = seen.poses, seen.points
        pairs = _pairs(problem.rig, poses, points, measure)
        energy = view(problem.rig, poses, points, choice.matched, pairs).energy(measure)
        best = lower(best, alive, State(poses, energy, choice))
        going = energy >= problem.done
        if number >= stage.ramp:
            going &= energy < STALLED * before
        left = torch.nonzero(going)[:, 0]
        if not len(left):
            break
        if len(left) < len(alive):
            alive, problem, damping = alive[left], problem.take(left), damping[left]
            poses, points, pairs = take(poses, left), take(points, left), take(pairs, left)
    assert best is not None  # a stage has steps
    return best


def _try_step(seen: View, weights: Weights, damping: Tensor) -> tuple[View, Tensor]:
    """The assemblies and their damping after one step, which counts only where it lowers the energy."""
    trial = seen.at(step(seen, weights, damping))
    roomy = torch.linalg.det(trial.poses.cells).abs() > DENSEST_ANG3 * seen.rig.fixed.atoms.sum(1)
    lower = (trial.energy(weights) < seen.energy(weights)) & roomy  # a NaN is not lower
    damping = torch.where(lower, damping * ACCEPTED, damping * REJECTED).clamp(*DAMPING_RANGE)
    return seen.where(lower, trial), damping


def _measure(problem: Problem, stage: Stage) -> Weights:
    """By what the assemblies of a stage are compared: full repulsion, or none where the stage has none."""
    return Weights(problem.behind, stage.high, stage.volume)


def _pairs(rig: Rig, poses: Poses, points: Points, weights: Weights) -> Overlaps:
    """Close pairs, none where they have no weight."""
    if not weights.repulsion:
        return no_pairs(poses.cells)
    return close_pairs(rig.reach, points.atoms, poses.cells)


def _energy(rig: Rig, poses: Poses, choice: Choice, weights: Weights) -> Tensor:
    """Energy of poses, [B]."""
    points = points_of(rig, poses)
    return view(rig, poses, points, choice.matched, _pairs(rig, poses, points, weights)).energy(weights)


def lower(best: State, rows: Tensor, other: State) -> State:
    """`best` [B] with its assemblies `rows` replaced by those of `other` where these are lower by more than rounding.

    Two descents often end in one minimum; which is lower by the last digits would depend on the batch.
    """
    better = torch.nonzero(other.energy < (1.0 - SAME_ENERGY) * best.energy[rows])[:, 0]
    return put(best, rows[better], take(other, better))
