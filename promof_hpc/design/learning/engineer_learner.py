"""How the engineer learns: clipped policy gradient of every noisy step and modality, step KL to the pretrained one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from promof_hpc.assembly.stack import Stack
from promof_hpc.config import LearningSettings
from promof_hpc.design.learning.objective import at_reference_dof, clipped_surrogate, masked_mean
from promof_hpc.design.learning.signals import Signals
from promof_hpc.policy import sde
from promof_hpc.policy.engineer import Engineer, Prepared


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


class EngineerLearner:
    """An engineer, the frozen copy of what it was, and its optimiser."""

    def __init__(self, network: Engineer, reference: Engineer, settings: LearningSettings):
        self.network, self.reference = network, reference
        self.optimiser = torch.optim.Adam(network.parameters(), settings.learning_rate_engineer)
        self._settings = settings

    def learn(self, groups: Sequence[Lesson]) -> dict[str, float]:
        """One optimiser step for each group, `epochs` times over; returns learning signals."""
        signals = Signals("engineer")
        for _ in range(self._settings.epochs):
            for lesson in groups:
                self._update(lesson, signals)
        return signals.summary()

    def _update(self, lesson: Lesson, signals: Signals) -> None:
        """Every assembly, noisy step and modality counts alike; a graph a step, so that memory does not grow."""
        steps = lesson.rollout.noisy_steps
        if not steps:
            return
        self.optimiser.zero_grad(set_to_none=True)
        inputs = self.network.inputs(lesson.fixed)
        with torch.no_grad():
            before = self.reference.prepare(lesson.fixed, inputs=inputs)
        for step in steps:
            prepared = self.network.prepare(lesson.fixed, inputs=inputs)
            loss = self._loss(lesson, step, prepared, before, signals)
            (loss / len(steps)).backward()
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), self._settings.gradient_norm)
        self.optimiser.step()
        signals.stepped(norm)

    def _loss(self, lesson: Lesson, step: int, prepared: Prepared, before: Prepared, signals: Signals) -> Tensor:
        """Surrogate and divergence of one step."""
        settings, flight = self._settings, lesson.rollout
        counted = (flight.sigma[:, step] > 0) & (flight.dof > 0)
        log_prob, means = sde.replay(self.network, lesson.fixed, flight, step, prepared)
        with torch.no_grad():
            _, reference = sde.replay(self.reference, lesson.fixed, flight, step, before)
        log_ratio = at_reference_dof(log_prob - flight.log_prob[:, step], flight.dof, settings.reference_dof)
        surrogate = clipped_surrogate(log_ratio, lesson.advantages[:, None], settings.clip, counted)
        divergence = sde.step_kl(means, reference, flight, step)
        kl = masked_mean(at_reference_dof(divergence, flight.dof, settings.reference_dof), counted)
        loss = surrogate.loss + settings.kl_engineer * kl
        signals.add(surrogate, loss=loss, kl=kl)
        return loss
