"""The `Potential` protocol: a batch of structures in, energies, forces and stresses out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from promof_hpc.structure import Structure


@dataclass(frozen=True)
class Prediction:
    """What a potential says about one structure.

    Attributes:
        energy: total energy in eV.
        forces: eV/Å, float64 [N, 3].
        stress: eV/Å³, float64 [3, 3], positive under tension (ASE's sign).
    """

    energy: float
    forces: np.ndarray
    stress: np.ndarray


class Potential(Protocol):
    """An interatomic potential with its identity.

    Attributes:
        id: registered name, for instance `sevennet-0`.
        weights_sha256: hex digest of the weight file; equal weights, equal digest.
        elements: atomic numbers it was trained on; structures with others are not scored.
        max_atoms: largest structure it takes, or None.
        batched: True where one call for many structures is faster than many calls (a GPU).
        notes: what must stand beside its numbers (training level, untrained outputs).
    """

    id: str
    weights_sha256: str
    elements: frozenset[int]
    max_atoms: int | None
    batched: bool
    notes: str

    def compute(self, structures: Sequence[Structure]) -> list[Prediction]:
        """Energy, forces and stress of each structure, in order.

        No prediction depends on the other structures by more than 1e-5 eV/atom.

        Raises:
            MemoryError: the batch does not fit; the caller halves it.
        """
        ...


@contextmanager
def out_of_memory_as_memory_error() -> Iterator[None]:
    """Turn torch's ways to say that memory ran out into MemoryError, and free what the failed batch holds."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        raise MemoryError(str(error)) from None
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
        raise MemoryError(str(error)) from None


def compute_on_device(
    structures: Sequence[Structure], together: bool, compute: Callable[[Sequence[Structure]], list[Prediction]]
) -> list[Prediction]:
    """Predictions of structures, in one call of a torch model or in a call each.

    Raises:
        MemoryError: the batch does not fit on the device.
    """
    if not structures:
        return []
    with out_of_memory_as_memory_error():
        return compute(structures) if together else [p for s in structures for p in compute([s])]
