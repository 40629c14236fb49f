"""One resumable training loop for both policies: killed anywhere and repeated, it ends with the same bits.

Batches, noise and dropout of a step follow from the seed and the step; checkpoints hold everything else and are
published whole, so work since the last one is done again exactly. With `minutes` instead of `steps` the schedule
follows the clock, and only then do repetitions differ.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from promof_hpc.config.pretrain import TrainingSettings
from promof_hpc.errors import PromofError, UsageError
from promof_hpc.policy.batches import step_generator
from promof_hpc.store.shard import list_names, publish, publish_text, replace_text

LOG_EVERY = 20  # steps averaged in one line of the loss curve
LOWEST_RATE = 0.01  # share of the learning rate at the end of the schedule
LEARNING = ("network", "optimiser", "averaged")  # parts of a checkpoint that are state dicts; the others are plain
PLAIN = ("best", "best_loss", "best_step", "step", "elapsed_s", "curve", "sums")
Losses = Mapping[str, float]
Part = Literal["training", "validation"]


class Course(Protocol):
    """What a policy learns from; the loop knows nothing else about it."""

    policy: str
    network: nn.Module
    identity: Mapping[str, Any]
    """Everything that decides the result beside the settings: data digest, sizes."""

    def loss(self, step: int, generator: torch.Generator) -> Mapping[str, Tensor]:
        """The losses of one step's batch; `loss` is what is minimised."""
        ...

    def validate(self, network: nn.Module) -> Losses:
        """Losses on the validation part, without randomness between calls; `loss` decides which weights are kept."""
        ...

    def card(self, network: nn.Module) -> Mapping[str, Any]:
        """What else is to be said of the final weights in their card."""
        ...

    def save(self, folder: Path, network: nn.Module) -> str:
        """Write the policy; returns the SHA-256 of its weights."""
        ...


@dataclass(frozen=True)
class Look:
    """How training stands.

    Attributes:
        step: steps done.
        share: of the whole training that is done, in [0, 1].
        elapsed_s: training time over all starts.
        losses: averaged over the last steps, or of the validation part.
        part: which of the two.
    """

    step: int
    share: float
    elapsed_s: float
    losses: Losses
    part: Part


@dataclass
class Training:
    """The state of a training; what a checkpoint holds.

    Attributes:
        step: steps done.
        elapsed_s: training time over all starts.
        averaged: exponential mean of the weights.
        best: averaged weights with the lowest validation loss; `best_loss`, `best_step` say which.
        curve: the loss curve, one mapping a line; `sums` what the next line is to average.
    """

    network: nn.Module
    optimiser: torch.optim.AdamW
    averaged: nn.Module
    best: dict[str, Tensor]
    best_loss: float = math.inf
    best_step: int = -1
    step: int = 0
    elapsed_s: float = 0.0
    curve: list[dict[str, float | str]] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=dict)

    @classmethod
    def start(cls, network: nn.Module, settings: TrainingSettings) -> Training:
        """A training that has done nothing yet."""
        optimiser = torch.optim.AdamW(
            network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        averaged = copy.deepcopy(network).requires_grad_(False)
        return cls(network, optimiser, averaged, _copied(network))

    def state(self) -> dict[str, Any]:
        """As plain values and tensors."""
        parts = {name: getattr(self, name).state_dict() for name in LEARNING}
        return {**{name: getattr(self, name) for name in PLAIN}, **parts}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        for name in LEARNING:
            getattr(self, name).load_state_dict(state[name])
        for name in PLAIN:
            setattr(self, name, state[name])


def train(
    course: Course,
    settings: TrainingSettings,
    out: Path,
    report: Callable[[Look], None] = lambda look: None,
    stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Train a policy, or go on training it, and write it with its card to `out`.

    Args:
        report: told every line of the loss curve.
        stop: asked after every step; where it says so a checkpoint is written and training ends.

    Returns:
        True where training is complete, False where it was stopped.

    Raises:
        UsageError: `out` holds a training with other settings or data, or the device is not there.
        PromofError: the loss is not finite.
    """
    folder = out / "training" / course.policy
    _claim(folder, {**settings.identity(), **course.identity})
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("device is cuda, but torch sees no GPU here; set it to cpu.")
    training = Training.start(course.network.to(settings.device), settings)
    _resume(folder, training, settings.device)
    notes = _Notes(training, settings, _board(folder, training.step), report)
    begun, saved = time.monotonic() - training.elapsed_s, time.monotonic()
    try:
        while _share(training, settings) < 1.0:
            for name, value in _step(course, training, settings).items():
                training.sums[name] = training.sums.get(name, 0.0) + value / LOG_EVERY
            training.elapsed_s = time.monotonic() - begun
            if training.step % LOG_EVERY == 0:
                notes.add("training", training.sums)
                training.sums = {}
            if training.step % settings.validate_every == 0:
                _validate(course, training, notes)
            stopped = stop()
            if stopped or time.monotonic() - saved >= settings.checkpoint_s:
                notes.board.flush()
                _save(folder, training)
                saved = time.monotonic()
            if stopped:
                return False
        if not any(line["part"] == "validation" and line["step"] == training.step for line in training.curve):
            _validate(course, training, notes)
        _save(folder, training)
    finally:
        notes.board.close()
    _finish(course, training, settings, out)
    return True


@dataclass(frozen=True)
class _Notes:
    """Where lines of the loss curve go: the training's own record, TensorBoard, and whoever watches."""

    training: Training
    settings: TrainingSettings
    board: Any
    report: Callable[[Look], None]

    def add(self, part: Part, losses: Losses) -> None:
        """Note the losses of the step that the training has come to."""
        now = self.training
        rate = now.optimiser.param_groups[0]["lr"]
        where = {"step": now.step, "elapsed_s": round(now.elapsed_s, 1), "part": part, "learning_rate": rate}
        now.curve.append({**where, **losses})
        for name, value in losses.items():
            self.board.add_scalar(f"{name}/{part}", value, now.step)
        self.report(Look(now.step, _share(now, self.settings), now.elapsed_s, losses, part))


def learning_rate(settings: TrainingSettings, step: int, share: float) -> float:
    """Linear rise over the warm-up, then a cosine from the highest rate to a hundredth of it at share 1."""
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(share, 1.0)))
    warm = min(1.0, (step + 1) / settings.warmup_steps) if settings.warmup_steps else 1.0
    return settings.learning_rate * warm * (LOWEST_RATE + (1.0 - LOWEST_RATE) * cosine)


def command_of(policy: str, settings: TrainingSettings) -> str:
    """The command that gives these settings; DATA stands for the folder made by `promof prep`."""
    changed = settings.model_dump(mode="json", exclude_defaults=True)
    return " ".join([f"promof pretrain {policy} --data DATA", *(f"--set {k}={v}" for k, v in changed.items())])


def _step(course: Course, training: Training, settings: TrainingSettings) -> dict[str, float]:
    """One optimiser step; returns its losses.

    Raises:
        PromofError: the loss is not finite.
    """
    for group in training.optimiser.param_groups:
        group["lr"] = learning_rate(settings, training.step, _share(training, settings))
    training.network.train()
    losses = course.loss(training.step, step_generator(settings.seed, course.policy, training.step))
    total = losses["loss"]
    if not torch.isfinite(total):
        raise PromofError(
            f"the loss of the {course.policy} is {total.item()} at step {training.step}; lower learning_rate "
            "or gradient_norm and train into another folder."
        )
    training.optimiser.zero_grad(set_to_none=True)
    total.backward()
    norm = nn.utils.clip_grad_norm_(training.network.parameters(), settings.gradient_norm)
    training.optimiser.step()
    training.step += 1
    decay = min(settings.ema, (1 + training.step) / (10 + training.step))
    with torch.no_grad():
        for mean, now in zip(training.averaged.parameters(), training.network.parameters(), strict=True):
            mean.lerp_(now, 1.0 - decay)
        for mean, now in zip(training.averaged.buffers(), training.network.buffers(), strict=True):
            mean.copy_(now)
    return {**{name: value.item() for name, value in losses.items()}, "gradient_norm": norm.item()}


def _validate(course: Course, training: Training, notes: _Notes) -> None:
    """Look at the validation part with the averaged weights and keep them where they are the best so far."""
    training.averaged.eval()
    losses = dict(course.validate(training.averaged))
    if losses["loss"] < training.best_loss:
        training.best_loss, training.best_step = losses["loss"], training.step
        training.best = _copied(training.averaged)
    notes.add("validation", losses)


def _share(training: Training, settings: TrainingSettings) -> float:
    if settings.steps is not None:
        return training.step / settings.steps
    return training.elapsed_s / (60.0 * (settings.minutes or 1.0))


def _claim(folder: Path, identity: Mapping[str, Any]) -> None:
    """Write what is trained here, or check that it is the same.

    Raises:
        UsageError: it is another training.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, text = folder / "training.json", json.dumps(identity, indent=1, sort_keys=True) + "\n"
    if publish_text(path, text):
        return
    there = json.loads(path.read_text(encoding="utf-8"))
    now = json.loads(text)
    differ = sorted(k for k in {**there, **now} if there.get(k) != now.get(k))
    if differ:
        raise UsageError(
            f"{folder} holds a training with another {', '.join(differ)}; choose another --out, or repeat its command"
        )


def _resume(folder: Path, training: Training, device: str) -> None:
    """Go on from the last checkpoint, if there is one, and remove what a killed writer left.

    Raises:
        PromofError: the checkpoint is damaged.
    """
    for unfinished in folder.rglob(".*.tmp"):
        unfinished.unlink(missing_ok=True)
    names = list_names(folder / "checkpoints", ".pt")
    if names:
        path = folder / "checkpoints" / names[-1]
        try:
            training.restore(torch.load(path, map_location=device, weights_only=True))
        except (RuntimeError, KeyError, EOFError, ValueError, UnpicklingError) as error:
            raise PromofError(f"{path} cannot be read ({error}); delete it and repeat the command.") from error


def _save(folder: Path, training: Training) -> None:
    """Publish a checkpoint and the loss curve, then remove older checkpoints."""
    kept = folder / "checkpoints"
    kept.mkdir(exist_ok=True)
    name = f"{training.step:09d}.pt"
    publish(kept / name, lambda temporary: torch.save(training.state(), temporary))
    for old in list_names(kept, ".pt"):
        if old < name:
            (kept / old).unlink(missing_ok=True)
    replace_text(folder / "losses.jsonl", "".join(json.dumps(line) + "\n" for line in training.curve))


def _finish(course: Course, training: Training, settings: TrainingSettings, out: Path) -> None:
    """Write the best averaged weights and their card."""
    training.averaged.load_state_dict(training.best)
    sha256 = course.save(out, training.averaged.eval())
    last = [line for line in training.curve if line["part"] == "validation" and line["step"] == training.best_step]
    card = {
        "policy": course.policy,
        "command": command_of(course.policy, settings),
        "weights_sha256": sha256,
        "parameters": sum(p.numel() for p in training.network.parameters()),
        "settings": settings.model_dump(mode="json"),
        "data": dict(course.identity),
        "steps": training.step,
        "minutes": round(training.elapsed_s / 60.0, 2),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "best_step": training.best_step,
        "validation": last[-1] if last else {},
        **course.card(training.averaged),
    }
    replace_text(out / f"{course.policy}.card.json", json.dumps(card, indent=1) + "\n")
    replace_text(out / f"{course.policy}.losses.jsonl", "".join(json.dumps(line) + "\n" for line in training.curve))


def _copied(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def _board(folder: Path, step: int) -> Any:
    """TensorBoard events; what a killed training wrote after its last checkpoint is marked as void."""
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder / "events"), purge_step=step)
