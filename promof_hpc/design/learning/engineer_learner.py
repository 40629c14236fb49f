"""How the engineer learns: clipped policy gradient of every noisy step and modality, step KL to the pretrained one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from promof_hpc.assembly.stack import Stack
from promof_hpc.config import LearningSettings
from promof_hpc.design.learning.objective import at_reference_dof, clipped_surrogate, masked_mean
from promof_hpc.design.learning.signals import Signals
from promof_hpc.design.learning.team import Team, own_rows
from promof_hpc.policy import sde
from promof_hpc.policy.engineer import Engineer
from promof_hpc.policy.features import Inputs
from promof_hpc.policy.state import Increments


@dataclass(frozen=True)
class Lesson:
    """The assemblies of one group, and how much better than the group each was.

    Attributes:
        fixed: their components, [B].
        rollout: what was stored when they flew.
        advantages: float32 [B].
    """

    fixed: Stack
    rollout: sde.Rollout
    advantages: Tensor

    @property
    def counted(self) -> Tensor:
        """Which steps and modalities the loss is made of, [B, S, 4]."""
        return (self.rollout.sigma > 0) & (self.rollout.dof > 0)[:, None]


@dataclass(frozen=True)
class _Part:
    """Some rows of a lesson, with what stays the same however often they are learned from.

    Attributes:
        counted: what they count in the lesson, [b, S, 4]; `total` what all rows count, [S].
        inputs: of the networks.
        reference: means of the frozen engineer at every noisy step.
    """

    lesson: Lesson
    counted: Tensor
    total: Tensor
    inputs: Inputs
    reference: dict[int, Increments]


class EngineerLearner:
    """An engineer, the frozen copy of what it was, and its optimiser."""

    def __init__(self, network: Engineer, reference: Engineer, settings: LearningSettings, team: Team):
        self.network, self.reference = network, reference
        self.engine = team.engine("engineer", network, settings.learning_rate_engineer, settings.gradient_norm)
        self._settings, self._team = settings, team

    def learn(self, groups: Sequence[Lesson]) -> dict[str, float]:
        """One optimiser step for each group, `epochs` times over; returns learning signals."""
        signals = Signals("engineer")
        lessons = [self._parts(lesson) for lesson in groups if lesson.rollout.noisy_steps]
        for _ in range(self._settings.epochs):
            for parts in lessons:
                signals.stepped(self.engine.step(self._losses(parts, signals)))
        return signals.summary(self._team)

    @torch.no_grad()
    def _parts(self, lesson: Lesson) -> list[_Part]:
        """The share of this process, in pieces."""
        counted, parts = lesson.counted, []
        for rows in own_rows(len(lesson.rollout), self._team, self._settings.rows_at_once):
            index, real = rows.index, torch.tensor(rows.counted, device=counted.device)
            fixed, flight = lesson.fixed.take(index), lesson.rollout.take(index)
            inputs = self.network.inputs(fixed)
            before = self.reference.prepare(fixed, inputs=inputs)
            reference = {
                step: sde.replay(self.reference, fixed, flight, step, before)[1] for step in lesson.rollout.noisy_steps
            }
            some = Lesson(fixed, flight, lesson.advantages[index])
            parts.append(_Part(some, counted[index] & real[:, None, None], counted.sum((0, 2)), inputs, reference))
        return parts

    def _losses(self, parts: Sequence[_Part], signals: Signals) -> Iterator[Tensor]:
        """Every assembly, noisy step and modality counts alike; a graph a step, so that memory does not grow."""
        for part in parts:
            for step in part.reference:
                yield self._loss(part, step, signals, 1.0 / len(part.reference))

    def _loss(self, part: _Part, step: int, signals: Signals, weight: float) -> Tensor:
        """Surrogate and divergence of one step, weighted."""
        settings, flight, fixed = self._settings, part.lesson.rollout, part.lesson.fixed
        counted, total, reference = part.counted[:, step], part.total[step], part.reference[step]
        prepared = self.network.prepare(fixed, inputs=part.inputs)
        log_prob, means = sde.replay(self.network, fixed, flight, step, prepared)
        log_ratio = at_reference_dof(log_prob - flight.log_prob[:, step], flight.dof, settings.reference_dof)
        surrogate = clipped_surrogate(log_ratio, part.lesson.advantages[:, None], settings.clip, counted, total)
        divergence = sde.step_kl(means, reference, flight, step)
        kl = masked_mean(at_reference_dof(divergence, flight.dof, settings.reference_dof), counted, total)
        loss = surrogate.loss + settings.kl_engineer * kl
        signals.add(surrogate, weight, loss=loss, kl=kl)
        return loss * weight
