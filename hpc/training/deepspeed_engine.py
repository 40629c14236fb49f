"""One policy under DeepSpeed: steps with ZeRO, states that are copied at once and written later.

Two engines in one process, one a policy, share the process group. Every backward pass only adds to the gradients
(`managed_gradient_accumulation` off), so a step may have any number of pieces; processes meet in `step`.
"""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine
from torch import Tensor, nn

from promof_hpc.design.learning.engine import adam_file
from promof_hpc.errors import PromofError
from promof_hpc.policy.host_buffers import HostBuffers
from promof_hpc.store.checkpoint import Write

log = logging.getLogger("promof.training")
TAG = "state"
WORLD = "world.json"
CONVERT_S = 1800.0


class HostCopies(TorchCheckpointEngine):
    """DeepSpeed's way to its files: here it keeps copies in host memory until they are asked for."""

    def __init__(self) -> None:
        super().__init__()
        self._copies: dict[str, Any] = {}
        self._buffers: dict[str, HostBuffers] = {}  # by file name, which every state has anew

    def save(self, state_dict: Any, path: str) -> None:
        """Copy what would be written."""
        buffers = self._buffers.setdefault(path.rpartition("/")[2], HostBuffers())
        self._copies[path] = buffers.copy(state_dict)

    def taken(self) -> Write:
        """What writes the copies; there are none here afterwards."""
        copies, self._copies = self._copies, {}

        def write() -> None:
            for path, state in copies.items():
                torch.save(state, path)

        return write


class DeepSpeedEngine:
    """An `Engine` whose gradients, and from stage 1 on the optimiser, are spread over the processes of a job."""

    def __init__(self, name: str, network: nn.Module, config: dict[str, Any], world: tuple[int, int]):
        """Take charge of `network`.

        Args:
            name: of the policy; its files lie in a folder called so.
            config: DeepSpeed's; see `deepspeed_config`.
            world: rank and size.
        """
        import deepspeed

        self._name, self._network, self._config = name, network, config
        self._rank, self._size = world
        self._stage = int(config["zero_optimization"]["stage"])
        self._engine, *_ = deepspeed.initialize(
            model=network,
            model_parameters=[p for p in network.parameters() if p.requires_grad],
            config=config,
            dist_init_required=False,
        )
        self._copies = HostCopies()
        self._engine.checkpoint_engine = self._copies
        self._norm = 0.0
        self._engine.clip_fp32_gradients = self._clip

    def step(self, losses: Iterable[Tensor]) -> float:
        """See `Engine`. DeepSpeed takes the mean over processes, so each loss is multiplied by their number."""
        for loss in losses:
            self._engine.backward(loss * self._size)
        self._engine.step()
        spread = self._engine.get_global_grad_norm()
        return self._norm if spread is None else float(spread)

    def _clip(self) -> None:
        """What DeepSpeed calls at stage 0, where it does not say what the norm was."""
        self._norm = float(nn.utils.clip_grad_norm_(self._network.parameters(), self._config["gradient_clipping"]))

    def save(self, folder: Path) -> Write:
        """See `Engine`; every process must call it."""
        place = folder / self._name
        self._engine.save_checkpoint(str(place), tag=TAG, save_latest=self._rank == 0)
        write = self._copies.taken()
        if self._rank > 0:
            return write

        def write_all() -> None:
            write()
            (place / WORLD).write_text(json.dumps({"size": self._size, "stage": self._stage}), encoding="utf-8")

        return write_all

    def load(self, folder: Path) -> None:
        """See `Engine`; every process must call it.

        The same number of processes goes on bit by bit. Another number goes through DeepSpeed's universal format, and
        where that cannot be made, and where torch's own optimiser was used before, with the weights alone: Adam then
        begins anew, which is said.
        """
        place = folder / self._name
        if (folder / adam_file(self._name)).exists():
            self._forget("torch's own Adam was used before")
            return
        saved = _read_world(place)
        if saved == {"size": self._size, "stage": self._stage} or (saved["stage"] == self._stage == 0):
            self._load(place)
            return
        why = self._load_universal(place, saved)
        if why:
            self._forget(why)

    def _load(self, place: Path) -> None:
        with _plainly_named(place) as name:
            path, _ = self._engine.load_checkpoint(name, tag=TAG)
        if path is None:
            raise PromofError(f"DeepSpeed cannot read its state in {place}; see the log of the training job.")

    def _load_universal(self, place: Path, saved: dict[str, int]) -> str:
        """Go on from the state of another number of processes; why not, or nothing."""
        if not (1 <= saved["stage"] <= 2 and self._stage == saved["stage"]):
            return f"ZeRO stage {saved['stage']} was used before and {self._stage} is now"
        # beside the checkpoints, where every node sees it and what is left behind is swept
        converted = place.parent.parent / f".{place.parent.name}-{self._name}.universal"
        answer = [_convert(place, converted) if self._rank == 0 else ""]
        torch.distributed.broadcast_object_list(answer)
        if not answer[0]:
            self._engine._config.load_universal_checkpoint = True
            self._load(converted)
            self._engine._config.load_universal_checkpoint = False
            torch.distributed.barrier()
        if self._rank == 0:
            shutil.rmtree(converted, ignore_errors=True)
        return answer[0]

    def _forget(self, why: str) -> None:
        """Keep the weights that the network has been given, with a new optimiser."""
        if self._rank == 0:
            log.warning("%s: Adam begins anew with the saved weights, because %s", self._name, why)
        refresh = getattr(self._engine.optimizer, "refresh_fp32_params", None)
        if refresh is not None:
            refresh()


def deepspeed_config(stage: int, learning_rate: float, gradient_norm: float) -> dict[str, Any]:
    """What DeepSpeed is told: torch's own Adam, so that nothing is compiled and one process does what torch does."""
    return {
        "train_micro_batch_size_per_gpu": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": gradient_norm,
        "zero_optimization": {"stage": stage, "overlap_comm": False},
        "optimizer": {"type": "Adam", "params": {"lr": learning_rate, "torch_adam": True, "adam_w_mode": False}},
        "steps_per_print": 10**9,
    }


def _read_world(place: Path) -> dict[str, int]:
    try:
        saved: dict[str, int] = json.loads((place / WORLD).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PromofError(
            f"{place} holds no state of DeepSpeed ({error}); a run goes on with the engine that it was begun with."
        ) from error
    return saved


@contextmanager
def _plainly_named(folder: Path) -> Iterator[str]:
    """Another name of a folder: DeepSpeed looks for files by patterns, to which a bracket in a run's name is none."""
    with tempfile.TemporaryDirectory(prefix="promof-") as place:
        link = Path(place) / "state"
        link.symlink_to(folder.absolute(), target_is_directory=True)
        yield str(link)


def _convert(place: Path, converted: Path) -> str:
    """Bring a state into the form that any number of processes can read; why not, or nothing."""
    shutil.rmtree(converted, ignore_errors=True)
    converted.mkdir()
    try:
        with _plainly_named(place) as source, _plainly_named(converted) as target:
            command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state",
                       "--input_folder", f"{source}/{TAG}", "--output_folder", f"{target}/{TAG}"]  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True, timeout=CONVERT_S, check=False)
    except subprocess.TimeoutExpired:
        return f"its conversion took more than {CONVERT_S:.0f} s"
    if done.returncode:
        return f"its conversion failed ({(done.stderr.strip().splitlines() or ['no message'])[-1]})"
    return ""
