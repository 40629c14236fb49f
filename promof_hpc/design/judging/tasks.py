"""What a campaign looks for: conditions for the chemist, the property part of the reward, and when a target is met."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from promof_hpc.config import TaskSettings
from promof_hpc.physics.energies import ReferenceSet
from promof_hpc.store.schema import Row

PORE_RAMP_ANG = 1.0  # 1 Å from the wanted diameter costs 1; the width decides success only
WORST_PROPERTY = -5.0
ATOMS_OF_CAP = (0.4, 0.9)  # wanted atoms as a share of the cap; what is written scatters around what is wanted

Target = Mapping[str, float]


class Task(Protocol):
    """One kind of target."""

    def wanted(self) -> dict[str, float]:
        """Conditions that every target of this task has."""
        ...

    def reward(self, row: Row, target: Target) -> float:
        """The property part of the reward, finite."""
        ...

    def met(self, row: Row, target: Target, *, new: bool) -> bool:
        """Whether an evaluated structure has what is wanted; `new`: its component set is of no known MOF."""
        ...

    def distance(self, row: Row, target: Target) -> float:
        """How far it is from the best possible, less is better; NaN where it was not measured."""
        ...


@dataclass(frozen=True)
class Pore:
    """A pore limiting diameter within a width of the wanted one (both in Å)."""

    pld_ang: float
    width_ang: float

    def wanted(self) -> dict[str, float]:
        """The diameter."""
        return {"pld_ang": self.pld_ang}

    def reward(self, row: Row, target: Target) -> float:
        """-|PLD - target| / 1 Å, not below -5; -5 where it was not measured."""
        off = self.distance(row, target)
        return WORST_PROPERTY if math.isnan(off) else max(WORST_PROPERTY, -off / PORE_RAMP_ANG)

    def met(self, row: Row, target: Target, *, new: bool) -> bool:
        """The diameter of the relaxed structure lies in the range."""
        return self.distance(row, target) <= self.width_ang

    def distance(self, row: Row, target: Target) -> float:
        """|PLD - target| in Å of the relaxed structure."""
        return abs(row.pld_relaxed_ang - target.get("pld_ang", self.pld_ang))


@dataclass(frozen=True)
class Energy:
    """A new material whose energy above the elements' baseline is among the lowest of real MOFs.

    Attributes:
        best_percent: percentile of the reference set.
        low_ev_per_atom: E_rel at that percentile; NaN without a reference set.
    """

    best_percent: float
    low_ev_per_atom: float

    def wanted(self) -> dict[str, float]:
        """The energy, where it is known."""
        return {} if math.isnan(self.low_ev_per_atom) else {"e_rel_ev_per_atom": self.low_ev_per_atom}

    def reward(self, row: Row, target: Target) -> float:
        """Nothing beside the stability part, which is the energy."""
        return 0.0

    def met(self, row: Row, target: Target, *, new: bool) -> bool:
        """E_rel below the percentile, and a component set that no known MOF has."""
        return new and row.e_rel_percentile < self.best_percent

    def distance(self, row: Row, target: Target) -> float:
        """E_rel in eV/atom."""
        return row.e_rel_ev_per_atom


def task_of(settings: TaskSettings, reference: ReferenceSet | None) -> Task:
    """The task that a configuration names."""
    if settings.name == "pore":
        return Pore(settings.pld_ang, settings.width_ang)
    known = [] if reference is None else [m.e_rel_ev_per_atom for m in reference.mofs]
    finite = [e for e in known if not math.isnan(e)]
    low = float(np.percentile(finite, settings.best_percent)) if finite else math.nan
    return Energy(settings.best_percent, low)


def targets(task: Task, count: int, atom_cap: int, generator: np.random.Generator) -> list[dict[str, float]]:
    """Targets of a round: what the task wants, with sizes of the cell drawn below the cap.

    Args:
        count: targets; they differ only in what the task leaves free.
        generator: the round's, so that a restart asks for the same.
    """
    low, high = (max(1, round(share * atom_cap)) for share in ATOMS_OF_CAP)
    return [{**task.wanted(), "atoms": float(a)} for a in generator.integers(low, high + 1, count)]
