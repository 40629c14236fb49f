"""Bucketed batches: which items of a training set make up step s, as a function of the seed and s alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

JITTER = 0.1  # sizes are sorted with this relative error, so that batches differ from epoch to epoch


class BatchOrder:
    """Batches of items of similar size under a budget; every item comes once an epoch.

    The cost of a batch is what its padded tensors take: items times (largest size)**power.
    """

    def __init__(self, sizes: Sequence[int], budget: float, power: float, seed: int):
        """Take the items' sizes.

        Args:
            sizes: of every item, at least 1; an item above the budget makes a batch of its own.
            budget: highest cost of a batch.
            power: 1 where cost grows with tokens, 2 with pairs of atoms.
            seed: of the order.

        Raises:
            ValueError: there are no items.
        """
        if not len(sizes):
            raise ValueError("no items to make batches of")
        self._sizes, self._budget, self._power, self._seed = np.asarray(sizes, float), budget, power, seed
        self._epoch, self._first, self._batches = 0, 0, self.epoch(0)

    def epoch(self, number: int) -> list[np.ndarray]:
        """The batches of one epoch, each int [b], in the order of their use."""
        generator = np.random.default_rng(np.random.SeedSequence([self._seed, number]))
        order = np.argsort(self._sizes * generator.uniform(1 - JITTER, 1 + JITTER, len(self._sizes)))
        batches, begin, largest = [], 0, 0.0
        for place, item in enumerate(order):
            grown = max(largest, self._sizes[item])
            if place > begin and (place - begin + 1) * grown**self._power > self._budget:
                batches.append(order[begin:place])
                begin, grown = place, self._sizes[item]
            largest = grown
        batches.append(order[begin:])
        return [batches[k] for k in generator.permutation(len(batches))]

    def batch(self, step: int) -> np.ndarray:
        """The items of one step, counted from 0 over all epochs."""
        if step < self._first:
            self._epoch, self._first, self._batches = 0, 0, self.epoch(0)
        while step >= self._first + len(self._batches):
            self._first += len(self._batches)
            self._epoch += 1
            self._batches = self.epoch(self._epoch)
        return self._batches[step - self._first]


def step_generator(seed: int, purpose: str, step: int) -> torch.Generator:
    """Random numbers of one step for one purpose: the same after any restart."""
    words = np.random.SeedSequence([seed, step, *purpose.encode()]).generate_state(2)
    return torch.Generator().manual_seed(int(words[0]) << 31 ^ int(words[1]))
