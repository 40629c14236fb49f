"""Learning signals: what the updates of one policy had in common, averaged over a round."""

from __future__ import annotations

from collections import defaultdict

from torch import Tensor

from promof_hpc.design.learning.objective import Surrogate
from promof_hpc.design.learning.team import Team

DEVIATION = "ratio_deviation"


class Signals:
    """Collects values of one policy's updates, of which a team's processes see parts.

    Attributes:
        policy: chemist or engineer, in front of every name.
        updates: optimiser steps so far.
    """

    def __init__(self, policy: str):
        self.policy = policy
        self.updates = 0
        self._sums: dict[str, float] = defaultdict(float)
        self._norms: list[float] = []
        self._first = self._largest = 0.0

    def add(self, surrogate: Surrogate, weight: float = 1.0, **values: Tensor) -> None:
        """Take in what one loss said; the weights of an update's losses add up to 1, or their values to the whole's."""
        for name, value in values.items():
            self._sums[name] += weight * float(value.detach())
        self._sums["clip_share"] += weight * surrogate.clip_share
        self._largest = max(self._largest, surrogate.ratio_deviation)
        if not self.updates:
            self._first = max(self._first, surrogate.ratio_deviation)

    def stepped(self, gradient_norm: float) -> None:
        """Take in an optimiser step."""
        self._norms.append(gradient_norm)
        self.updates += 1

    def summary(self, team: Team) -> dict[str, float]:
        """Means, the number of updates, and the largest deviation of a ratio from 1 before and in all of them.

        Before the first update, data and policy agree, so that `first_ratio_deviation` is rounding.
        """
        parts = team.gather((dict(self._sums), self._largest, self._first))
        names = [name for name in parts[0][0] if self.updates]
        found = {name: sum(sums[name] for sums, _, _ in parts) / self.updates for name in names}
        if self.updates:
            found["gradient_norm"] = sum(self._norms) / self.updates
        found |= {DEVIATION: max(p[1] for p in parts), f"first_{DEVIATION}": max(p[2] for p in parts)}
        return {f"{self.policy}_{name}": value for name, value in {"updates": float(self.updates), **found}.items()}
