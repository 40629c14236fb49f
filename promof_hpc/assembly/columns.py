"""Ragged columns: many short arrays as one flat array beside its offsets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np


def pointer(lengths: Iterable[int]) -> np.ndarray:
    """Offsets int64 [len + 1]: item i of the flat array is `[ptr[i]:ptr[i + 1]]`."""
    return np.concatenate([[0], np.cumsum(list(lengths))]).astype(np.int64)


def spans(ptr: np.ndarray) -> list[tuple[int, int]]:
    """Begin and end of each item, from the offsets [len + 1]."""
    return list(zip(ptr[:-1].tolist(), ptr[1:].tolist(), strict=True))


def flat(arrays: Sequence[np.ndarray], dtype: type, *tail: int) -> np.ndarray:
    """Arrays [n_i, *tail] one after the other; right in shape and type for no arrays as well."""
    return np.concatenate([np.zeros((0, *tail)), *arrays]).astype(dtype)
