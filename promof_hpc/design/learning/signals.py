"""Learning signals: what the updates of one policy had in common, averaged over a round."""

from __future__ import annotations

from collections import defaultdict

from torch import Tensor

from promof_hpc.design.learning.objective import Surrogate

DEVIATION = "ratio_deviation"


class Signals:
    """Collects values of one policy's updates.

    Attributes:
        policy: chemist or engineer, in front of every name.
        updates: optimiser steps so far.
    """

    def __init__(self, policy: str):
        self.policy = policy
        self.updates = 0
        self._values: dict[str, list[float]] = defaultdict(list)
        self._first: list[float] = []

    def add(self, surrogate: Surrogate, **values: Tensor) -> None:
        """Take in what one loss said."""
        for name, value in values.items():
            self._values[name].append(float(value.detach()))
        self._values["clip_share"].append(surrogate.clip_share)
        self._values[DEVIATION].append(surrogate.ratio_deviation)
        if not self.updates:
            self._first.append(surrogate.ratio_deviation)

    def stepped(self, gradient_norm: Tensor) -> None:
        """Take in an optimiser step."""
        self._values["gradient_norm"].append(float(gradient_norm))
        self.updates += 1

    def summary(self) -> dict[str, float]:
        """Means, the number of updates, and the largest deviation of a ratio from 1 before and in all of them.

        Before the first update, data and policy agree, so that `first_ratio_deviation` is rounding.
        """
        means = {f"{self.policy}_{name}": sum(v) / len(v) for name, v in self._values.items() if name != DEVIATION}
        largest = {f"{self.policy}_{DEVIATION}": max(self._values[DEVIATION], default=0.0)}
        first = {f"{self.policy}_first_{DEVIATION}": max(self._first, default=0.0)}
        return {f"{self.policy}_updates": float(self.updates), **means, **largest, **first}
