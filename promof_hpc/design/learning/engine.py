"""How a policy takes an optimiser step, and what of the optimiser must be kept to go on."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from promof_hpc.policy.host_buffers import HostBuffers
from promof_hpc.store.checkpoint import Write

log = logging.getLogger("promof.training")


class Engine(Protocol):
    """The optimiser of one network."""

    def step(self, losses: Iterable[Tensor]) -> float:
        """Take one step against the sum of the losses, of this process and of all others; each graph is freed at once.

        Returns:
            norm of the gradient before it was clipped.
        """
        ...

    def save(self, folder: Path) -> Write:
        """Copy the optimiser's state to host memory; returns what writes the copy into `folder`.

        The copy holds until the next one is made.
        """
        ...

    def load(self, folder: Path) -> None:
        """Go on from what was saved; the network has its weights already."""
        ...


def adam_file(name: str) -> str:
    """Name of the file that an `AdamEngine` of this name keeps."""
    return f"{name}-adam.pt"


class AdamEngine:
    """Adam in one process."""

    def __init__(self, name: str, network: nn.Module, learning_rate: float, gradient_norm: float):
        """Move `network`; files are named after `name`."""
        self._name, self._network, self._gradient_norm = name, network, gradient_norm
        self._optimiser = torch.optim.Adam(network.parameters(), learning_rate)
        self._buffers = HostBuffers(moment for p in network.parameters() for moment in (p, p))

    def step(self, losses: Iterable[Tensor]) -> float:
        """See `Engine`."""
        self._optimiser.zero_grad(set_to_none=True)
        for loss in losses:
            loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self._network.parameters(), self._gradient_norm)
        self._optimiser.step()
        return float(norm)

    def save(self, folder: Path) -> Write:
        """See `Engine`."""
        state = self._buffers.copy(self._optimiser.state_dict())
        return lambda: torch.save(state, folder / adam_file(self._name))

    def load(self, folder: Path) -> None:
        """See `Engine`. From what another engine saved only the network goes on: Adam begins anew, which is said."""
        path = folder / adam_file(self._name)
        if not path.exists():  # the checkpoint is whole: its manifest names every file
            log.warning("%s: Adam begins anew with the saved weights, because another engine saved them", self._name)
            return
        self._optimiser.load_state_dict(torch.load(path, weights_only=True))
