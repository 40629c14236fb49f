"""Sampling component sets from a chemist, and the log-probabilities of what was sampled.

Sampled is exactly the distribution that `Chemist.forward` gives, restricted to a grammar where one is given:
temperature 1, nothing else cut off. One row's random
numbers are its own row of a matrix of uniforms drawn before the first token, so the first rows of a larger batch are
those of a smaller one (but for rounding in the network, which depends on the batch's shape).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from promof_hpc.chem.sequence import BOS, EOS, Vocabulary
from promof_hpc.policy.chemist import Cache, Chemist
from promof_hpc.policy.grammar import Grammar, masked, stacked

MAX_TOKENS = 320
LOOK_EVERY = 8  # tokens between two looks whether all are done: each look waits for the device


@dataclass(frozen=True)
class Samples:
    """Sampled sequences.

    Attributes:
        tokens: numbers, int64 [B, T]: `<BOS>` first; after `<EOS>` padding with 0.
        lengths: tokens of each with `<BOS>` and `<EOS>`, int64 [B]; one cut off at T has no `<EOS>`.
        log_probs: of every token as sampled, float32 [B, T]; 0 for `<BOS>` and padding.
    """

    tokens: Tensor
    lengths: Tensor
    log_probs: Tensor

    def __len__(self) -> int:
        return len(self.tokens)

    def texts(self, vocabulary: Vocabulary) -> list[str]:
        """The sequences as text, for `chem.sequence.parse_sequence`."""
        rows, lengths = self.tokens.tolist(), self.lengths.tolist()
        return [vocabulary.decode(row[:n]) for row, n in zip(rows, lengths, strict=True)]


@torch.no_grad()
def sample(
    chemist: Chemist,
    vocabulary: Vocabulary,
    conditions: Tensor,
    generator: torch.Generator,
    max_tokens: int = MAX_TOKENS,
    grammar: Grammar | None = None,
) -> Samples:
    """Write one sequence for every row of `conditions` [B, P] (`Conditions.encode` or `.nothing`).

    Args:
        generator: on the CPU, wherever the chemist is.
        max_tokens: longest sequence, `<BOS>` included.
        grammar: what may be written; anything where None.
    """
    weight = chemist.to_logits.weight
    rows, device = len(conditions), weight.device
    chances = torch.rand(rows, max_tokens, generator=generator, dtype=torch.float64).to(device)
    conditions = conditions.to(device)
    begin, end = vocabulary.number_of[BOS], vocabulary.number_of[EOS]
    tokens = torch.zeros(rows, max_tokens, dtype=torch.long, device=device)
    tokens[:, 0] = begin
    said = torch.zeros(rows, max_tokens, device=device)
    lengths = torch.ones(rows, dtype=torch.long, device=device)
    writing = torch.ones(rows, dtype=torch.bool, device=device)
    cache = Cache(chemist.settings, rows, max_tokens, weight)
    walks = [grammar.begin() for _ in range(rows)] if grammar is not None else []
    for t in range(1, max_tokens):
        log_p = chemist(tokens[:, t - 1 : t], conditions, cache=cache)[:, 0]
        if walks:
            log_p = masked(log_p, stacked(walks).to(device))
        chosen = _draw(log_p, chances[:, t])
        for walk, token in zip(walks, chosen.tolist() if walks else (), strict=True):
            walk.follow(token)
        tokens[:, t] = torch.where(writing, chosen, 0)
        said[:, t] = torch.where(writing, log_p.gather(1, chosen[:, None])[:, 0], 0.0)
        lengths += writing
        writing = writing & (chosen != end)
        if t % LOOK_EVERY == 0 and not writing.any():
            break
    longest = int(lengths.max()) if rows else 1
    tokens, said = tokens[:, :longest], said[:, :longest]
    if chemist.bf16:  # rounds differently token by token and all at once, and learning compares with all at once
        said = log_probs(chemist, tokens, lengths, conditions, grammar)
    return Samples(tokens, lengths, said)


def distributions(chemist: Chemist, tokens: Tensor, conditions: Tensor, allowed: Tensor | None = None) -> Tensor:
    """Log-probabilities of every token at each place after the first, [B, T - 1, V]; -inf where never said.

    Args:
        allowed: what a grammar allows (`Grammar.masks`), bool [B, T - 1, V]; everything where None.
    """
    log_p: Tensor = chemist(tokens[:, :-1], conditions)
    return log_p if allowed is None else masked(log_p, allowed)


def log_probs(
    chemist: Chemist, tokens: Tensor, lengths: Tensor, conditions: Tensor, grammar: Grammar | None = None
) -> Tensor:
    """Log-probabilities of given tokens, differentiable, [B, T]; 0 for `<BOS>` and padding.

    Args:
        tokens: int64 [B, T] with `<BOS>` first, as in `Samples`.
        lengths: int64 [B].
        conditions: [B, P], those that the tokens were sampled under.
        grammar: the one that they were written under.
    """
    allowed = None if grammar is None else grammar.masks(tokens, lengths).to(tokens.device)
    table = distributions(chemist, tokens, conditions, allowed)
    chosen = table.gather(2, tokens[:, 1:, None])[..., 0]
    said = said_mask(tokens, lengths)[:, 1:]
    chosen = torch.where(said, chosen, 0.0)  # padding is never said: its -inf must not reach the gradient
    return torch.cat([torch.zeros_like(chosen[:, :1]), chosen], 1)


def said_mask(tokens: Tensor, lengths: Tensor) -> Tensor:
    """True for the tokens that were chosen: neither `<BOS>` nor padding, [B, T]."""
    place = torch.arange(tokens.shape[1], device=tokens.device)
    return (place > 0) & (place < lengths[:, None])


def padded(sequences: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Token numbers of ragged sequences as (tokens [B, T], lengths [B]); 0 pads."""
    lengths = torch.tensor([len(s) for s in sequences], dtype=torch.long)
    tokens = torch.zeros(len(sequences), int(lengths.max()) if len(sequences) else 0, dtype=torch.long)
    for row, sequence in zip(tokens, sequences, strict=True):
        row[: len(sequence)] = torch.tensor(sequence, dtype=torch.long)
    return tokens, lengths


def _draw(log_p: Tensor, chance: Tensor) -> Tensor:
    """Token whose interval of the cumulated probabilities [B, V] holds `chance` [B] in [0, 1)."""
    summed = log_p.double().exp().cumsum(-1)
    token = torch.searchsorted(summed, (chance * summed[:, -1])[:, None], right=True)[:, 0]
    last = log_p.shape[-1] - 1 - (log_p > -torch.inf).flip(-1).int().argmax(-1)  # rounding may pass the last one
    return torch.minimum(token, last)
