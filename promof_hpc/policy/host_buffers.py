"""Copies of a network's or an optimiser's state in host memory."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

Kind = tuple[torch.Size, torch.dtype]


class HostBuffers:
    """Host memory for the copy of one state, used again for the next one.

    A page of memory that is touched for the first time costs several times what copying it costs, so a state that is
    copied again and again is copied into the same pages.
    """

    def __init__(self, ahead: Iterable[Tensor] = ()):
        """Make buffers, here and now, for tensors like those `ahead`; others are made when first copied to."""
        self._buffers: defaultdict[Kind, list[Tensor]] = defaultdict(list)
        for tensor in ahead:
            self._add(tensor).zero_()  # touched: an empty tensor has no pages yet

    def copy(self, state: Any) -> Any:
        """Copy nested dictionaries and lists with every tensor in them; overwrites the copy made before."""
        return self._copy(state, {kind: list(buffers) for kind, buffers in self._buffers.items()})

    def _copy(self, state: Any, free: Mapping[Kind, list[Tensor]]) -> Any:
        if isinstance(state, Tensor):
            buffers = free.get((state.shape, state.dtype))
            return (buffers.pop() if buffers else self._add(state)).copy_(state.detach())
        if isinstance(state, Mapping):
            return {key: self._copy(value, free) for key, value in state.items()}
        if isinstance(state, list | tuple):
            return type(state)(self._copy(value, free) for value in state)
        return copy.deepcopy(state)

    def _add(self, like: Tensor) -> Tensor:
        buffer = torch.empty(like.shape, dtype=like.dtype)
        self._buffers[like.shape, like.dtype].append(buffer)
        return buffer
