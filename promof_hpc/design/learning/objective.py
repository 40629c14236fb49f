"""Objectives: what the policies' parameters are moved against, as functions of log-probs, advantages and references.

Signs are those of losses: smaller is better. Every function is differentiable in its first argument and knows neither
policies nor settings. The clipped surrogate is PPO's (arXiv 1707.06347); the ratios of the engineer are taken step by
step and modality by modality, those of the chemist token by token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Surrogate:
    """A clipped surrogate and what it says about the update.

    Attributes:
        loss: mean over what the mask keeps; where that is part of a batch, its share of the batch's mean.
        clip_share: share of it where clipping took the gradient away.
        ratio_deviation: largest |ratio - 1|; 0 up to rounding when data and policy agree.
    """

    loss: Tensor
    clip_share: float
    ratio_deviation: float


def clipped_surrogate(
    log_ratio: Tensor, advantage: Tensor, clip: float, mask: Tensor, count: Tensor | None = None
) -> Surrogate:
    """-min(r A, clip(r, 1 - clip, 1 + clip) A) with r = exp(log_ratio).

    Args:
        log_ratio: log-prob now less log-prob when sampled, of any shape.
        advantage: broadcastable to it.
        clip: half width.
        mask: True for what counts, of the shape of `log_ratio`.
        count: see `masked_mean`.
    """
    ratio = torch.exp(torch.where(mask, log_ratio, torch.zeros_like(log_ratio)))
    free, held = ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage
    loss = masked_mean(-torch.minimum(free, held), mask, count)
    with torch.no_grad():
        clipped = masked_mean((held < free).to(ratio.dtype), mask, count)
        deviation = (ratio - 1).abs().max() if ratio.numel() else ratio.new_zeros(())  # masked ratios are 1
    return Surrogate(loss, float(clipped), float(deviation))


def at_reference_dof(summed: Tensor, dof: Tensor, reference_dof: float) -> Tensor:
    """Sums as if each were over `reference_dof` degrees of freedom, so that one clip and one weight serve all sizes.

    Args:
        summed: log-ratios or divergences, summed over a modality's degrees of freedom.
        dof: their number, broadcastable; where 0 the result is 0.
    """
    return summed * torch.where(dof > 0, reference_dof / dof.clamp_min(1), torch.zeros_like(dof))


def token_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) in nats of distributions over the last axis; a token that p forbids adds nothing.

    Args:
        log_p: log-probs of the policy, [..., V]; -inf for forbidden tokens, the same ones in both.
        log_q: log-probs of the reference, [..., V].
    """
    allowed = torch.isfinite(log_p)
    difference = torch.where(allowed, log_p, 0.0) - torch.where(allowed, log_q, 0.0)
    return (_probabilities(log_p, allowed) * difference).sum(-1)


def token_entropy(log_p: Tensor) -> Tensor:
    """Entropy in nats of distributions over the last axis, [...]."""
    allowed = torch.isfinite(log_p)
    return -(_probabilities(log_p, allowed) * torch.where(allowed, log_p, 0.0)).sum(-1)


def masked_mean(values: Tensor, mask: Tensor, count: Tensor | None = None) -> Tensor:
    """Mean over what the mask keeps, of the same shape; 0 where it keeps nothing.

    Args:
        count: what the whole batch keeps, where `values` are a part of it: the parts' results then add up to the
            batch's mean.
    """
    kept = torch.where(mask, values, torch.zeros_like(values))
    return kept.sum() / (mask.sum() if count is None else count).clamp_min(1)


def _probabilities(log_p: Tensor, allowed: Tensor) -> Tensor:
    """exp(log_p) with gradients that stay finite at -inf."""
    return torch.where(allowed, torch.exp(torch.where(allowed, log_p, 0.0)), 0.0)
