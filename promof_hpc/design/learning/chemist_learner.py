"""How the chemist learns: clipped token-level policy gradient, KL to the pretrained chemist, entropy, replay."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from promof_hpc.config import LearningSettings
from promof_hpc.design.learning.objective import clipped_surrogate, masked_mean, token_entropy, token_kl
from promof_hpc.design.learning.signals import Signals
from promof_hpc.design.learning.team import Rows, Team, own_rows
from promof_hpc.policy.grammar import Grammar
from promof_hpc.policy.sampling import distributions, padded, said_mask
from promof_hpc.policy.weights import LoadedChemist


@dataclass(frozen=True)
class Lesson:
    """A component set that the chemist wrote and how much better than the others it was.

    Attributes:
        tokens: as sampled, int64 [L].
        log_probs: of the tokens when they were sampled, float32 [L].
        target: what it was written for, by property.
        advantage: of the set.
    """

    tokens: np.ndarray
    log_probs: np.ndarray
    target: Mapping[str, float]
    advantage: float


@dataclass(frozen=True)
class _Written:
    """A batch of component sets as tensors, or some of its rows.

    Attributes:
        tokens: int64 [B, T]; `conditions` [B, P]; `allowed` by the grammar [B, T - 1, V], None without one.
        then: log-probs when they were sampled, [B, T - 1].
        advantage: [B, 1].
        said: which tokens count, bool [B, T - 1].
        total: tokens that count in the whole batch.
    """

    tokens: Tensor
    conditions: Tensor
    allowed: Tensor | None
    then: Tensor
    advantage: Tensor
    said: Tensor
    total: Tensor

    def take(self, rows: Rows) -> _Written:
        """Some rows."""
        index = rows.index
        return _Written(
            tokens=self.tokens[index],
            conditions=self.conditions[index],
            allowed=None if self.allowed is None else self.allowed[index],
            then=self.then[index],
            advantage=self.advantage[index],
            said=self.said[index] & torch.tensor(rows.counted, device=self.said.device)[:, None],
            total=self.total,
        )


class ChemistLearner:
    """A chemist, the frozen copy of what it was, and its optimiser."""

    def __init__(self, loaded: LoadedChemist, settings: LearningSettings, grammar: Grammar | None, team: Team):
        """Learn with `grammar` as the sequences were sampled with it."""
        self.network = loaded.network
        self.conditions = loaded.conditions
        self.reference = copy.deepcopy(loaded.network).requires_grad_(False).eval()
        self.engine = team.engine("chemist", loaded.network, settings.learning_rate_chemist, settings.gradient_norm)
        self._settings, self._grammar, self._team = settings, grammar, team

    def learn(self, batches: Sequence[Sequence[Lesson]], remembered: Sequence[Lesson] = ()) -> dict[str, float]:
        """One optimiser step for each batch, and one for what is remembered, `epochs` times over.

        Args:
            batches: sets of the round, written by the present weights.
            remembered: sets of earlier rounds. Their ratios are to what the weights were then, so clipping ends the
                pull once a set is likelier by the clip than when it was written.

        Returns:
            learning signals, those of what is remembered by themselves.
        """
        signals, again = Signals("chemist"), Signals("replay")
        for _ in range(self._settings.epochs):
            for batch in batches:
                signals.stepped(self.engine.step(self._losses(batch, signals)))
            if remembered:
                again.stepped(self.engine.step(self._losses(remembered, again)))
        return signals.summary(self._team) | (again.summary(self._team) if remembered else {})

    def _losses(self, batch: Sequence[Lesson], signals: Signals) -> Iterator[Tensor]:
        """Every token counts alike, so that long sets are not learned from less."""
        whole = self._written(batch)
        for rows in own_rows(len(batch), self._team, self._settings.rows_at_once):
            yield self._loss(whole.take(rows), signals)

    def _written(self, batch: Sequence[Lesson]) -> _Written:
        tokens, lengths = (x.to(self._device) for x in padded([lesson.tokens.tolist() for lesson in batch]))
        then = torch.zeros(len(batch), tokens.shape[1] - 1, device=self._device)
        for row, lesson in zip(then, batch, strict=True):
            row[: len(lesson.log_probs) - 1] = torch.from_numpy(lesson.log_probs[1:]).to(then)
        said = said_mask(tokens, lengths)[:, 1:]
        return _Written(
            tokens=tokens,
            conditions=self.conditions.encode([lesson.target for lesson in batch]).to(self._device),
            allowed=None if self._grammar is None else self._grammar.masks(tokens, lengths).to(self._device),
            then=then,
            advantage=torch.tensor([[lesson.advantage] for lesson in batch], device=self._device),
            said=said,
            total=said.sum(),
        )

    def _loss(self, part: _Written, signals: Signals) -> Tensor:
        """What some rows add to the loss of their batch."""
        settings, said, total = self._settings, part.said, part.total
        log_p = distributions(self.network, part.tokens, part.conditions, part.allowed)  # no dropout: as was sampled
        with torch.no_grad():
            log_q = distributions(self.reference, part.tokens, part.conditions, part.allowed)
        now = log_p.gather(2, part.tokens[:, 1:, None])[..., 0]
        log_ratio = torch.where(said, now - part.then, 0.0)
        surrogate = clipped_surrogate(log_ratio, part.advantage, settings.clip, said, total)
        kl = masked_mean(token_kl(log_p, log_q), said, total)
        entropy = masked_mean(token_entropy(log_p), said, total)
        loss = surrogate.loss + settings.kl_chemist * kl - settings.entropy * entropy
        signals.add(surrogate, loss=loss, kl=kl, entropy=entropy)
        return loss

    @property
    def _device(self) -> torch.device:
        return self.network.to_logits.weight.device
