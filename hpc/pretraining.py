"""The pretraining journey: prepared MOFs in, the weights of one policy out, with progress on the terminal."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from hpc.console import duration
from hpc.exit_codes import DONE, STOPPED
from promof_hpc.errors import UsageError
from promof_hpc.store.shard import list_names

if TYPE_CHECKING:
    from promof_hpc.config.pretrain import TrainingSettings
    from promof_hpc.policy.pretrain import Course, Look

LINE_EVERY_S = 15.0
POLICIES = ("chemist", "engineer")
MINUTES = 30.0


def pretrain_policy(policy: str, data: Sequence[Path], out: Path, overrides: Sequence[str]) -> int:
    """Train a policy, or go on with a training that was stopped; returns the exit code.

    Args:
        data: folders made by `promof prep`; the first gives vocabulary and validation, all give training.
        overrides: key=value for the keys of `config.pretrain`.

    Raises:
        UsageError: the policy, the settings or the data cannot be used, or `out` holds another training.
    """
    settings = training_settings(policy, overrides)
    course = course_of(settings, data)
    with _StopSignals() as stopped:
        complete = train_course(course, settings, out, lambda: stopped.asked)
    return DONE if complete else STOPPED


def training_settings(policy: str, overrides: Sequence[str]) -> TrainingSettings:
    """The settings of a policy's training, half an hour long unless `overrides` say otherwise.

    Raises:
        UsageError: there is no such policy, or the settings have mistakes.
    """
    from promof_hpc.config import load_config
    from promof_hpc.config.pretrain import ChemistTraining, EngineerTraining

    if policy not in POLICIES:
        raise UsageError(f"there is no policy '{policy}' to train; known: {', '.join(POLICIES)}")
    keys = {key.partition("=")[0].strip() for key in overrides}
    length = [] if keys & {"minutes", "steps"} else [f"minutes={MINUTES:g}"]
    model = ChemistTraining if policy == "chemist" else EngineerTraining
    return load_config(model, None, [*overrides, *length])


def course_of(settings: TrainingSettings, data: Sequence[Path]) -> Course:
    """What the policy that these settings are of learns from.

    Raises:
        UsageError: a folder holds no prepared MOFs.
    """
    from promof_hpc.config.pretrain import ChemistTraining, EngineerTraining
    from promof_hpc.policy.chemist_course import ChemistCourse
    from promof_hpc.policy.engineer_course import EngineerCourse
    from promof_hpc.policy.training_data import TrainingData

    if isinstance(settings, ChemistTraining):
        return ChemistCourse(TrainingData.read(data, molecules=False), settings)
    if isinstance(settings, EngineerTraining):
        return EngineerCourse(TrainingData.read(data), settings)
    raise TypeError(f"{type(settings).__name__} are settings of no policy")


def train_course(course: Course, settings: TrainingSettings, out: Path, stop: Callable[[], bool]) -> bool:
    """Train to the end, or until `stop` says so after a step, and say how it went; whether it is complete.

    Raises:
        UsageError: `out` holds another training.
    """
    from promof_hpc.policy.pretrain import train

    policy = course.policy
    if not train(course, settings, out, _Lines(), stop):
        print(f"Stopped; the same command goes on. Checkpoint: {out / 'training' / policy}")
        return False
    print(f"Weights: {out / policy}.safetensors\nCard:    {out / policy}.card.json")
    print(f"Curves:  tensorboard --logdir {out / 'training'}")
    return True


def differing_keys(settings: TrainingSettings, policy: str, out: Path) -> list[str]:
    """Settings in which a training that was begun in `out` differs; without its data, which takes reading."""
    begun = out / "training" / policy / "training.json"
    if begun.name not in list_names(begun.parent):
        return []
    there = json.loads(begun.read_text(encoding="utf-8"))
    return sorted(key for key, value in settings.identity().items() if there.get(key) != value)


def is_trained(policy: str, out: Path) -> bool:
    """Whether weights of the policy are there, with the card that is written after them."""
    return f"{policy}.card.json" in list_names(out)


def steps_kept(policy: str, out: Path) -> int:
    """Steps of the newest checkpoint."""
    names = list_names(out / "training" / policy / "checkpoints", ".pt")
    return int(names[-1].removesuffix(".pt")) if names else 0


class _StopSignals:
    """Whether TERM or INT has come: training then ends after its step, with a checkpoint."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> _StopSignals:
        self._before = {s: signal.signal(s, self._note) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True


class _Lines:
    """Progress as plain lines: every look at the validation part, and the training loss every so often."""

    def __init__(self) -> None:
        self._printed = 0.0

    def __call__(self, look: Look) -> None:
        if look.part == "training" and time.monotonic() - self._printed < LINE_EVERY_S:
            return
        self._printed = time.monotonic()
        left = look.elapsed_s * (1.0 / look.share - 1.0) if look.share > 0 else float("nan")
        losses = ", ".join(f"{name} {value:.4f}" for name, value in look.losses.items())
        print(
            f"step {look.step} ({look.share:.0%}; {duration(max(0.0, left))} left) {look.part}: {losses}",
            file=sys.stderr, flush=True,
        )  # fmt: skip
