"""The `Potential` protocol: a batch of structures in, energies, forces and stresses out; and the registry."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from promof_hpc.errors import UsageError
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


NAMES = ("sevennet-0", "chgnet-0.3.0", "uma", "lennard-jones")


def load_potential(name: str, *, weights: Path | None = None, task: str = "omat", device: str = "cpu") -> Potential:
    """The registered potential `name`, or a user's own `module:Class`, ready to compute.

    Args:
        weights: checkpoint file, for `uma` only.
        task: UMA task head, for `uma` only.
        device: torch device, for instance `cpu` or `cuda:0`.

    Raises:
        UsageError: unknown name (the nearest is suggested), or weights missing where they are needed.
    """
    if name == "sevennet-0":
        from promof_hpc.physics.sevennet import SevenNet0

        return SevenNet0(device)
    if name == "chgnet-0.3.0":
        from promof_hpc.physics.chgnet import CHGNet030

        return CHGNet030(device)
    if name == "uma":
        from promof_hpc.physics.uma import UMA

        return UMA(weights, task=task, device=device)
    if name == "lennard-jones":
        from promof_hpc.physics.lennard_jones import LennardJones

        return LennardJones()
    if ":" in name:
        return _load_own(name, device)
    near = difflib.get_close_matches(name, NAMES, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise UsageError(f"Unknown potential '{name}'.{hint} Known: {', '.join(NAMES)}, or your own as module:Class.")


def _load_own(name: str, device: str) -> Potential:
    """A user's own potential: `module:Class`, called with the device."""
    module_name, _, attribute = name.partition(":")
    try:
        factory = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"Cannot load the potential '{name}' ({error}); is its module in PYTHONPATH?") from error
    potential: Potential = factory(device)
    return potential


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
