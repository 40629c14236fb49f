"""The processes that propose and learn together: which part of a round is whose, and how parts become a whole.

Every process of a team has the same policies and is asked the same things in the same order. Groups are proposed by
the processes in turn; the rows of every optimiser step are spread over them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    import torch
    from torch import nn

    from promof_hpc.design.learning.engine import Engine

T = TypeVar("T")


class Team(Protocol):
    """The processes that learn together, seen from one of them."""

    @property
    def rank(self) -> int:
        """Of this process, from 0."""
        ...

    @property
    def size(self) -> int:
        """Number of processes."""
        ...

    @property
    def device(self) -> torch.device:
        """Where this process keeps the policies."""
        ...

    def gather(self, part: T) -> list[T]:
        """The parts of all processes, in the order of ranks, in every process; all must call it."""
        ...

    def engine(self, name: str, network: nn.Module, learning_rate: float, gradient_norm: float) -> Engine:
        """Adam for a network that every process has.

        Args:
            gradient_norm: to which gradients are clipped.
        """
        ...


class Alone:
    """One process."""

    rank, size = 0, 1

    def __init__(self, device: str = "cpu"):
        """Keep the policies on a device of torch."""
        self._device = device

    @property
    def device(self) -> torch.device:
        """See `Team`."""
        import torch

        return torch.device(self._device)

    def gather(self, part: T) -> list[T]:
        """See `Team`."""
        return [part]

    def engine(self, name: str, network: nn.Module, learning_rate: float, gradient_norm: float) -> Engine:
        """See `Team`."""
        from promof_hpc.design.learning.engine import AdamEngine

        return AdamEngine(name, network, learning_rate, gradient_norm)


ALONE = Alone()


@dataclass(frozen=True)
class Rows:
    """Rows of a batch that are computed at once.

    Attributes:
        index: which rows.
        counted: False for one that is there only so that every process has as many.
    """

    index: list[int]
    counted: list[bool]


def own_rows(count: int, team: Team, at_once: int | None = None) -> Iterator[Rows]:
    """The share of a process of `count` rows, in pieces of at most `at_once`.

    Every process gets as many pieces, of the same lengths, because in each backward pass all of them meet.
    """
    each = -(-count // team.size)
    first = team.rank * each
    piece = at_once or max(each, 1)
    for begin in range(first, first + each, piece):
        places = range(begin, min(begin + piece, first + each))
        yield Rows([k if k < count else 0 for k in places], [k < count for k in places])


def in_turn(items: Sequence[T], team: Team) -> list[T]:
    """The items that are this process's when all take turns."""
    return list(items[team.rank :: team.size])
