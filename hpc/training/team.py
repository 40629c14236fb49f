"""The tasks of a training job as a `Team`: torch's process groups, one DeepSpeed engine for each policy."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol, TypeVar

import torch
from torch import nn

from hpc.devices import own_device
from hpc.preemption import Asked, Interrupted
from hpc.training.world import World
from promof_hpc.config import TrainingSettings
from promof_hpc.design.learning.engine import Engine
from promof_hpc.design.learning.team import Alone, Team
from promof_hpc.errors import PromofError

T = TypeVar("T")


def _nothing() -> Asked:
    return Asked.NOTHING


@dataclass(frozen=True)
class Stops:
    """What a process was asked.

    Attributes:
        asked: by now.
        pressing: of this what cannot wait until a round has been learned from.
    """

    asked: Callable[[], Asked] = _nothing
    pressing: Callable[[], Asked] = _nothing


class JobTeam(Team, Protocol):
    """A team whose processes can agree to stop and part."""

    def agree(self) -> Asked:
        """The strongest request to stop that any process has had; all must call it."""
        ...

    def leave(self) -> None:
        """Part from the others."""
        ...


class DeepSpeedTeam:
    """The processes of a training job; see `promof_hpc.design.learning.team.Team`.

    Objects travel by gloo, gradients by gloo or NCCL. Every process must do the same calls in the same order.
    """

    def __init__(self, world: World, settings: TrainingSettings, stops: Stops = Stops()):
        """Meet the other processes.

        Args:
            stops: what this process was asked; for what is pressing all stop together after an optimiser step.

        Raises:
            PromofError: the device is not there, or the others do not come in time.
        """
        self._world, self._settings, self._stops = world, settings, stops
        self.rank, self.size = world.rank, world.size
        self.device = torch.device(training_device(settings, world.local_rank))
        limit = timedelta(minutes=settings.meeting_min)
        os.environ.update(
            RANK=str(world.rank), WORLD_SIZE=str(world.size), LOCAL_RANK=str(world.local_rank),
            MASTER_ADDR=world.address, MASTER_PORT=str(world.port),
        )  # fmt: skip
        _begin_deepspeed("nccl" if self.device.type == "cuda" else "gloo", limit)
        self._objects = torch.distributed.new_group(backend="gloo", timeout=limit)

    def gather(self, part: T) -> list[T]:
        """See `Team`."""
        parts: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(parts, part, group=self._objects)
        return parts

    def agree(self) -> Asked:
        """The strongest request to stop that any of the processes has had, known to all."""
        return self._strongest(self._stops.asked())

    def _strongest(self, asked: Asked) -> Asked:
        strongest = torch.tensor(int(asked))
        torch.distributed.all_reduce(strongest, torch.distributed.ReduceOp.MAX, group=self._objects)
        return Asked(int(strongest))

    def engine(self, name: str, network: nn.Module, learning_rate: float, gradient_norm: float) -> Engine:
        """See `Team`."""
        from hpc.training.deepspeed_engine import DeepSpeedEngine, deepspeed_config

        config = deepspeed_config(self._settings.zero_stage, learning_rate, gradient_norm)
        engine = DeepSpeedEngine(name, network, config, (self.rank, self.size))
        return _Stopping(engine, lambda: self._strongest(self._stops.pressing()))

    def leave(self) -> None:
        """Part from the others; a process that ends without it now and then aborts."""
        torch.distributed.barrier(group=self._objects)
        torch.distributed.destroy_process_group()


class SoloTeam(Alone):
    """The one process of a training job, with torch's own optimiser."""

    def __init__(self, settings: TrainingSettings, world: World, stops: Stops):
        """See `DeepSpeedTeam`.

        Raises:
            PromofError: there are other processes.
        """
        if world.size > 1:
            raise PromofError(
                f"training.engine is torch, but the job has {world.size} tasks; use deepspeed, or one task."
            )
        super().__init__(training_device(settings, world.local_rank))
        self._stops = stops

    def agree(self) -> Asked:
        """See `DeepSpeedTeam`."""
        return self._stops.asked()

    def engine(self, name: str, network: nn.Module, learning_rate: float, gradient_norm: float) -> Engine:
        """See `Team`."""
        return _Stopping(super().engine(name, network, learning_rate, gradient_norm), self._stops.pressing)

    def leave(self) -> None:
        """See `DeepSpeedTeam`."""


class _Stopping:
    """An engine after whose steps all processes stop together if one of them was asked for what is pressing."""

    def __init__(self, engine: Engine, pressing: Callable[[], Asked]):
        self._engine, self._pressing = engine, pressing
        self.save, self.load = engine.save, engine.load

    def step(self, losses: Any) -> float:
        """See `Engine`."""
        norm = self._engine.step(losses)
        asked = self._pressing()
        if asked is not Asked.NOTHING:
            raise Interrupted(asked)
        return norm


def _begin_deepspeed(backend: str, limit: timedelta) -> None:
    if backend == "gloo":
        os.environ["DS_ACCELERATOR"] = "cpu"
    try:
        import deepspeed
    except ImportError as error:
        raise PromofError(
            f"DeepSpeed cannot be loaded ({error}), which several training processes need: pip install "
            "'promof-hpc[train]', or set training.tasks to 1."
        ) from error

    # Its compilation leaves a lock where a process is killed meanwhile, at which every later start waits for ever.
    # (`import deepspeed.comm.torch as x` gives the real torch: the package's attribute of that name is another module.)
    communication: Any = importlib.import_module("deepspeed.comm.torch")
    communication.build_shm_op = lambda: None
    deepspeed.logger.setLevel("WARNING")
    try:
        deepspeed.init_distributed(backend, auto_mpi_discovery=False, timeout=limit)
    except (RuntimeError, ValueError) as error:
        raise PromofError(
            f"The processes of this training job do not find each other ({error}); check MASTER_ADDR and the network "
            "interface in the site profile (`promof doctor`)."
        ) from error


def training_device(settings: TrainingSettings, local_rank: int = 0) -> str:
    """The device of a process: all GPUs of the node are visible to each.

    Raises:
        PromofError: a GPU is asked for and there is none.
    """
    device = own_device(settings.device, "training.device", local_rank)
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    return device
