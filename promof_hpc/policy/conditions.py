"""What a chemist is asked for: named properties, normalised with statistics that are stored beside its weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from promof_hpc.config.section import nearest
from promof_hpc.errors import UsageError

NAMES = ("pld_ang", "e_rel_ev_per_atom", "co2_capacity_mol_per_kg", "atoms")
"""Properties that a chemist of ours is conditioned on: pore limiting diameter in Å, energy above the elements' baseline
in eV/atom, CO2 working capacity in mol/kg, atoms in the primitive cell."""

LOGARITHMIC = frozenset({"pld_ang", "atoms"})  # positive and skewed: their logarithms are nearly normal
FEWEST_LABELS = 20  # statistics of fewer say nothing, and nothing is learned from them


@dataclass(frozen=True)
class Conditions:
    """How values of properties become the numbers that a network sees.

    Attributes:
        names: the properties, [P].
        means, spreads: of the (logarithmic) values over the training set, [P].
        logarithmic: whether a property's logarithm is used, [P].
        labels: training MOFs that had a value, [P]; a property with none was never learned.
    """

    names: tuple[str, ...]
    means: tuple[float, ...]
    spreads: tuple[float, ...]
    logarithmic: tuple[bool, ...]
    labels: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def learned(self) -> tuple[str, ...]:
        """The properties that mean something to the network."""
        return tuple(n for n, count in zip(self.names, self.labels, strict=True) if count >= FEWEST_LABELS)

    @classmethod
    def of(cls, labels: Sequence[Mapping[str, float]], names: Sequence[str] = NAMES) -> Conditions:
        """Statistics of a training set; a missing or infinite value is no label."""
        means, spreads, counts = [], [], []
        for name in names:
            values = [_scale(name, x[name]) for x in labels if name in x]
            values = [v for v in values if math.isfinite(v)]
            enough = len(values) >= FEWEST_LABELS
            mean = sum(values) / len(values) if enough else 0.0
            variance = sum((v - mean) ** 2 for v in values) / len(values) if enough else 1.0
            means.append(mean)
            spreads.append(math.sqrt(variance) if variance > 1e-12 else 1.0)
            counts.append(len(values))
        logarithmic = tuple(n in LOGARITHMIC for n in names)
        return cls(tuple(names), tuple(means), tuple(spreads), logarithmic, tuple(counts))

    @classmethod
    def raw(cls, name: str) -> Conditions:
        """One property whose values are used as they are (MOFFlow-2's conditional generator)."""
        return cls((name,), (0.0,), (1.0,), (False,), (FEWEST_LABELS,))

    def encode(self, wanted: Sequence[Mapping[str, float]]) -> Tensor:
        """Normalised values, float32 [B, P]; NaN, which the network reads as its null, where nothing is wanted.

        A property that was never learned is null whatever is wanted of it.

        Raises:
            UsageError: a property has no such name, or its value is impossible.
        """
        learned = set(self.learned)
        rows = []
        for mapping in wanted:
            for name in mapping:
                if name not in self.names:
                    known = ", ".join(self.names)
                    raise UsageError(f"no condition '{name}'{nearest(name, self.names)}; the chemist knows: {known}")
            row = []
            for name, mean, spread, log in zip(self.names, self.means, self.spreads, self.logarithmic, strict=True):
                value = float(mapping.get(name, math.nan))
                if math.isinf(value) or (log and value <= 0):
                    raise UsageError(f"condition {name} cannot be {value:g}; give a positive, finite number")
                row.append(((math.log(value) if log else value) - mean) / spread if name in learned else math.nan)
            rows.append(row)
        return torch.tensor(rows, dtype=torch.float32).reshape(len(rows), len(self))

    def nothing(self, count: int) -> Tensor:
        """Conditions of `count` unconditional samples, [count, P]."""
        return torch.full((count, len(self)), math.nan)


def _scale(name: str, value: float) -> float:
    if name not in LOGARITHMIC:
        return value
    return math.log(value) if value > 0 else math.nan
