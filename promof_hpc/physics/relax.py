"""Relaxation of many structures in lockstep: ASE's optimisers, one call of the potential a step for all.

ASE's LBFGS and FIRE do the stepping; ours are the batch, the coordinates (those of ASE's FrechetCellFilter:
undeformed positions beside the logarithm of the deformation gradient), the convergence tests and the typed ends.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import numpy as np
from ase.optimize import FIRE, LBFGS
from ase.utils.abc import Optimizable
from scipy.linalg import expm, expm_frechet

from promof_hpc.config import RelaxSettings
from promof_hpc.physics.potential import Potential, Prediction
from promof_hpc.store.schema import Outcome
from promof_hpc.structure import Structure

GPA_PER_EV_ANG3 = 160.21766208
LARGEST_FORCE_EV_PER_ANG = 1e4  # beyond this a start is no structure any more
log = logging.getLogger(__name__)
Heartbeat = Callable[[], None]


@dataclass(frozen=True)
class Relaxation:
    """How one relaxation ended.

    Attributes:
        outcome: converged, max_steps, exploded, collapsed, nan, oom or timed_out.
        reason: why, in words, where the outcome needs them.
        structure: the last structure that was computed.
        start: prediction for the structure as given; None if the potential never answered.
        last: prediction for `structure`.
        steps: optimiser steps taken.
        force_calls: times this structure went through the potential.
        wall_s: seconds from the start of its batch to its end.
    """

    outcome: Outcome
    reason: str
    structure: Structure
    start: Prediction | None
    last: Prediction | None
    steps: int
    force_calls: int
    wall_s: float


def relax(
    structures: Sequence[Structure],
    potential: Potential,
    settings: RelaxSettings,
    heartbeat: Heartbeat = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Relaxation]:
    """Relax structures: together where the potential is faster for many at once, else one after the other.

    Args:
        heartbeat: called before every call of the potential; may raise to end the work.

    Returns:
        one `Relaxation` a structure, in order; never raises for a structure's own trouble.
    """
    states = [_State(s, settings) for s in structures]
    for group in [states] if potential.batched else [[s] for s in states]:
        begin = clock()
        while active := [s for s in group if s.outcome is None]:
            heartbeat()
            _advance(active, potential, settings, clock() - begin)
    return [s.result() for s in states]


def largest_force(prediction: Prediction) -> float:
    """Norm of the largest force on an atom in eV/Å."""
    return float(np.linalg.norm(prediction.forces, axis=1).max(initial=0.0))


def largest_stress_gpa(prediction: Prediction) -> float:
    """Largest component of the stress in GPa."""
    return float(np.abs(prediction.stress).max() * GPA_PER_EV_ANG3)


def compute_or_halve(structures: Sequence[Structure], potential: Potential) -> list[Prediction | None]:
    """Predictions of a batch, cut into parts that fit in memory; None stands for a structure that never fits.

    Where memory runs out the part is halved, and later batches of the same potential are cut to what fitted.
    """
    predictions: list[Prediction | None] = []
    left = list(structures)
    while left:
        part = _as_many_as_fit(left, _atoms_that_fit.get(potential))
        try:
            predictions += potential.compute(left[:part])
        except MemoryError:
            atoms = sum(len(s) for s in left[:part])
            if part > 1:
                _atoms_that_fit[potential] = atoms // 2
                log.warning("%d atoms in %d structures do not fit in memory together; halving", atoms, part)
                continue
            predictions.append(None)
        left = left[part:]
    return predictions


# what a batch of a potential may hold since memory ran out
_atoms_that_fit: WeakKeyDictionary[Potential, int] = WeakKeyDictionary()


def _as_many_as_fit(structures: Sequence[Structure], atoms: int | None) -> int:
    """How many of the first structures hold at most `atoms` together; one at least."""
    if atoms is None:
        return len(structures)
    total = np.cumsum([len(s) for s in structures])
    return max(1, int(np.searchsorted(total, atoms, side="right")))


@dataclass
class _State:
    """One structure on its way: its optimiser and what is known of it."""

    initial: Structure
    settings: RelaxSettings
    outcome: Outcome | None = None
    reason: str = ""
    start: Prediction | None = None
    last: Prediction | None = None
    steps: int = 0
    force_calls: int = 0
    wall_s: float = 0.0
    coordinates: _Coordinates = field(init=False)
    known: Structure = field(init=False)
    optimizer: LBFGS | FIRE | None = None

    def __post_init__(self) -> None:
        self.coordinates = _Coordinates(self.initial, self.settings.cell == "relaxed")
        self.known = self.initial

    def end(self, outcome: Outcome, reason: str = "") -> None:
        self.outcome, self.reason = outcome, reason

    def result(self) -> Relaxation:
        assert self.outcome is not None
        return Relaxation(
            self.outcome, self.reason, self.known, self.start, self.last, self.steps, self.force_calls, self.wall_s
        )


def _advance(active: list[_State], potential: Potential, settings: RelaxSettings, elapsed_s: float) -> None:
    """One call of the potential for all active structures, then one optimiser step for each that goes on."""
    predictions = compute_or_halve([s.coordinates.structure() for s in active], potential)
    for state, prediction in zip(active, predictions, strict=True):
        state.wall_s = elapsed_s
        state.force_calls += 1
        if prediction is None:
            state.end(Outcome.OOM, f"{len(state.initial)} atoms do not fit in the device's memory")
            continue
        _judge(state, prediction, settings, elapsed_s)
        if state.outcome is None:
            _step(state, prediction, settings)


def _judge(state: _State, prediction: Prediction, settings: RelaxSettings, elapsed_s: float) -> None:
    """Take in a prediction and end the relaxation if it is over."""
    finite = (
        np.isfinite(prediction.energy) and np.isfinite(prediction.forces).all() and np.isfinite(prediction.stress).all()
    )
    if not finite:
        state.end(Outcome.NAN, f"the potential returned a value that is not a number at step {state.steps}")
        return
    state.start = state.start or prediction
    state.last, state.known = prediction, state.coordinates.structure()
    fmax = largest_force(prediction)
    change = state.known.volume / state.initial.volume - 1.0
    relaxed_cell = settings.cell == "relaxed"
    if fmax <= settings.fmax_ev_per_ang and (not relaxed_cell or largest_stress_gpa(prediction) <= settings.stress_gpa):
        state.end(Outcome.CONVERGED)
    elif fmax > LARGEST_FORCE_EV_PER_ANG or change > settings.max_volume_change:
        state.end(Outcome.EXPLODED, f"largest force {fmax:.3g} eV/Å, volume {change:+.0%} at step {state.steps}")
    elif change < -settings.max_volume_change:
        state.end(Outcome.COLLAPSED, f"volume {change:+.0%} at step {state.steps}")
    elif state.steps >= settings.max_steps:
        state.end(Outcome.MAX_STEPS, f"largest force {fmax:.3g} eV/Å after {state.steps} steps")
    elif settings.wall_s is not None and elapsed_s > settings.wall_s:
        state.end(Outcome.TIMED_OUT, f"{elapsed_s:.0f} s spent, largest force {fmax:.3g} eV/Å")


def _step(state: _State, prediction: Prediction, settings: RelaxSettings) -> None:
    steep = largest_force(prediction) > settings.fire_above_ev_per_ang
    kind = FIRE if steep or settings.optimizer == "fire" else LBFGS
    if not isinstance(state.optimizer, kind):
        state.optimizer = kind(state.coordinates, logfile=None, maxstep=settings.max_step_ang)
    state.coordinates.take(prediction)
    state.optimizer.step()
    state.steps += 1


class _Coordinates(Optimizable):
    """Coordinates of one structure as ASE's optimisers want them; gradients are put in from outside.

    x holds the positions in the undeformed cell in Å, [3N], then N log F in Å-like units, [9], where F is the
    deformation gradient: cell = cell_0 F^T. (The factor N makes the cell about as stiff as an atom.)
    """

    def __init__(self, structure: Structure, relaxed_cell: bool):
        self._initial, self._relaxed_cell = structure, relaxed_cell
        self._x = np.concatenate([structure.positions.ravel(), np.zeros(9 if relaxed_cell else 0)])
        self._gradient = np.zeros_like(self._x)

    def __ase_optimizable__(self) -> _Coordinates:
        return self

    def structure(self) -> Structure:
        """The structure at the present coordinates."""
        n = len(self._initial)
        f = expm(self._log_f()).T
        return Structure(self._initial.numbers, self._x[: 3 * n].reshape(-1, 3) @ f, self._initial.cell @ f)

    def take(self, prediction: Prediction) -> None:
        """Set the gradient at the present coordinates from forces [N, 3] and stress [3, 3]."""
        n = len(self._initial)
        log_f = self._log_f()
        f = expm(log_f)
        self._gradient[: 3 * n] = -(prediction.forces @ f).ravel()
        if self._relaxed_cell:
            volume = self._initial.volume * np.linalg.det(f)
            by_f = volume * prediction.stress @ np.linalg.inv(f).T  # dE/dF
            # the adjoint of the derivative of exp at log F is its derivative at the transpose
            by_log = expm_frechet(log_f.T, by_f, compute_expm=False)
            self._gradient[3 * n :] = by_log.ravel() / n

    def _log_f(self) -> np.ndarray:
        n = len(self._initial)
        return self._x[3 * n :].reshape(3, 3) / n if self._relaxed_cell else np.zeros((3, 3))

    def get_x(self) -> np.ndarray:
        """Coordinates, [3N + 9] or [3N]."""
        return self._x.copy()

    def set_x(self, x: np.ndarray) -> None:
        """Move to new coordinates."""
        self._x = np.array(x, float)

    def get_gradient(self) -> np.ndarray:
        """Energy gradient in eV/Å."""
        return self._gradient.copy()

    def get_value(self) -> float:
        """Not asked for by the optimisers that are used here (no line search, no downhill check)."""
        raise NotImplementedError

    def iterimages(self) -> list[object]:
        """No images: trajectories are not written."""
        return []

    def ndofs(self) -> int:
        """Number of coordinates."""
        return len(self._x)
