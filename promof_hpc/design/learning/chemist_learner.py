"""How the chemist learns: clipped token-level policy gradient, KL to the pretrained chemist, entropy, replay."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from promof_hpc.config import LearningSettings
from promof_hpc.design.learning.objective import Surrogate, clipped_surrogate, masked_mean, token_entropy, token_kl
from promof_hpc.design.learning.signals import Signals
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


class ChemistLearner:
    """A chemist, the frozen copy of what it was, and its optimiser."""

    def __init__(self, loaded: LoadedChemist, settings: LearningSettings, grammar: Grammar | None = None):
        """Learn with `grammar` as the sequences were sampled with it."""
        self.network = loaded.network
        self.conditions = loaded.conditions
        self.reference = copy.deepcopy(loaded.network).requires_grad_(False).eval()
        self.optimiser = torch.optim.Adam(loaded.network.parameters(), settings.learning_rate_chemist)
        self._settings, self._grammar = settings, grammar

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
                self._step(batch, signals)
            if remembered:
                self._step(remembered, again)
        return signals.summary() | (again.summary() if remembered else {})

    def _step(self, batch: Sequence[Lesson], signals: Signals) -> None:
        tokens, lengths = (x.to(self._device) for x in padded([lesson.tokens.tolist() for lesson in batch]))
        conditions = self.conditions.encode([lesson.target for lesson in batch]).to(self._device)
        said = said_mask(tokens, lengths)[:, 1:]
        allowed = None if self._grammar is None else self._grammar.masks(tokens, lengths).to(self._device)
        log_p = distributions(self.network, tokens, conditions, allowed)  # no dropout: the density that was sampled
        with torch.no_grad():
            log_q = distributions(self.reference, tokens, conditions, allowed)
        surrogate = self._surrogate(batch, tokens, log_p, said)
        kl, entropy = masked_mean(token_kl(log_p, log_q), said), masked_mean(token_entropy(log_p), said)
        loss = surrogate.loss + self._settings.kl_chemist * kl - self._settings.entropy * entropy
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), self._settings.gradient_norm)
        self.optimiser.step()
        signals.add(surrogate, loss=loss, kl=kl, entropy=entropy)
        signals.stepped(norm)

    def _surrogate(self, batch: Sequence[Lesson], tokens: Tensor, log_p: Tensor, said: Tensor) -> Surrogate:
        """Every token counts alike, so that long sets are not learned from less."""
        now = log_p.gather(2, tokens[:, 1:, None])[..., 0]
        then = torch.zeros_like(now)
        for row, lesson in zip(then, batch, strict=True):
            row[: len(lesson.log_probs) - 1] = torch.from_numpy(lesson.log_probs[1:]).to(then)
        advantage = torch.tensor([[lesson.advantage] for lesson in batch], dtype=now.dtype, device=now.device)
        return clipped_surrogate(torch.where(said, now - then, 0.0), advantage, self._settings.clip, said)

    @property
    def _device(self) -> torch.device:
        return self.network.to_logits.weight.device
