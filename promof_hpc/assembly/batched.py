"""Rows of dataclasses whose fields are tensors [B, ...] or again such dataclasses: take some, put some back, choose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def take(whole: T, rows: Tensor) -> T:
    """The rows `rows`, int64 [b]."""
    return _each(lambda x: x[rows], whole)


def put(whole: T, rows: Tensor, part: T) -> T:
    """`whole` with its rows `rows`, int64 [b], replaced by those of `part`."""
    return _each(lambda x, y: x.index_copy(0, rows, y), whole, part)


def where(chosen: Tensor, one: T, other: T) -> T:
    """Rows of `one` where `chosen`, bool [B], else of `other`."""
    return _each(lambda x, y: torch.where(chosen.reshape(-1, *[1] * (x.dim() - 1)), x, y), one, other)


def _each(function: Callable[..., Tensor], *of: Any) -> Any:
    if isinstance(of[0], Tensor):
        return function(*of)
    return replace(of[0], **{f.name: _each(function, *(getattr(x, f.name) for x in of)) for f in fields(of[0])})
