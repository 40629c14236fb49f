"""Attention over all pairs with a term for each pair, computed per token: exact, without an edge list.

MOFFlow-2 (github.com/nayoung10/MOFFlow-2) gives every edge its own key and value, W [x_source | bond | smeared
distance]. W splits by columns, so a logit is q.k + (q W_distance).smear + q W_bond, and a value sum is
A v + (A smear) W_distance + (A bond) W_bond: no tensor has edges times width entries. A bonded pair has two edges
there, one with and one without the bond; two logits s and s + b with one softmax are one logit s + softplus(b).
Names and shapes of parameters are those of the released weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

BONDS = 4
LEAST_EXPONENT = -40.0  # of a Gaussian: smaller ones become subnormal numbers, which are slow to multiply
MASKED = -1e9  # finite: a row without any key must not become NaN


@dataclass(frozen=True)
class Pairs:
    """What attention knows of M targets and N sources; the same for all layers of a step.

    Attributes:
        features: smeared distances, and displacements where the layer knows directions, [B, M, G, N].
        blocked: True where a source is not seen, broadcastable to [B, M, N].
        bonded: sources bonded to each target, int64 [B, M, d]; None without bonds.
        bond: the type of each of them, int64 [B, M, d]; -1 for none.
        seen: True where the bonded source is also seen without the bond, [B, M, d].
    """

    features: Tensor
    blocked: Tensor
    bonded: Tensor | None = None
    bond: Tensor | None = None
    seen: Tensor | None = None


class Smearing(nn.Module):
    """Gaussians on a grid of distances; the grid is a buffer of the released weights."""

    offset: Tensor

    def __init__(self, reach_ang: float, gaussians: int):
        super().__init__()
        self.register_buffer("offset", torch.linspace(0.0, reach_ang, gaussians))

    def fill(self, features: Tensor, distances: Tensor) -> None:
        """Write the Gaussians of distances [B, M, N] (Å) into features [B, M, G, N]."""
        width = self.offset[1] - self.offset[0]
        torch.sub(distances[:, :, None, :], self.offset[:, None], out=features)
        features.square_().mul_(-0.5 / width**2).clamp_min_(LEAST_EXPONENT).exp_()

    def forward(self, distances: Tensor) -> Tensor:
        """Gaussians [B, M, G, N] of distances [B, M, N] in Å."""
        b, m, n = distances.shape
        features = distances.new_empty(b, m, len(self.offset), n)
        self.fill(features, distances)
        return features


class RootMeanSquare(nn.Module):
    """Division by the root mean square, times a scale."""

    def __init__(self, width: int):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        return self.scale * x / (x.norm(dim=-1, keepdim=True) * x.shape[-1] ** -0.5 + 1e-8)


class PairAttention(nn.Module):
    """Attention of targets to sources with pair features in keys and values."""

    def __init__(self, width: int, heads: int, gaussians: int, bonds: int = 0, directions: bool = False):
        """Make the four linear maps.

        Args:
            bonds: 4 where bonded pairs have edges of their own, else 0.
            directions: whether pair features end with the displacement, which has its own maps.
        """
        super().__init__()
        self.heads, self.bonds = heads, bonds
        self.linear_q = nn.Linear(width, width)
        self.linear_k = nn.Linear(width + bonds + gaussians, width)
        self.linear_v = nn.Linear(width + bonds + gaussians, width)
        self.linear_out = nn.Linear(width, width)
        self.direction_k = nn.Linear(3, width, bias=False) if directions else None
        self.direction_v = nn.Linear(3, width, bias=False) if directions else None

    def forward(self, targets: Tensor, sources: Tensor, pairs: Pairs) -> Tensor:
        """Targets [B, M, D] after attention to sources [B, N, D]: [B, M, D] without residual."""
        b, m, width = targets.shape
        h, c = self.heads, width // self.heads
        q = self.linear_q(targets).view(b, m, h, c) * c**-0.5
        k, pair_k, bond_k = self._split(self.linear_k, self.direction_k, sources)
        v, pair_v, bond_v = self._split(self.linear_v, self.direction_v, sources)
        logits = torch.matmul(torch.einsum("bmhc,hcg->bmhg", q, pair_k), pairs.features)
        logits = logits + torch.matmul(q.transpose(1, 2), k.permute(0, 2, 3, 1)).transpose(1, 2)
        logits = logits.masked_fill(pairs.blocked[..., None, :], MASKED)
        share = None
        if self.bonds:
            logits, share = self._bonded(logits, torch.einsum("bmhc,hct->bmht", q, bond_k), pairs)
        weights = logits.softmax(-1, torch.promote_types(logits.dtype, torch.float32)).to(logits.dtype)
        out = torch.matmul(weights.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)
        near = torch.matmul(weights, pairs.features.transpose(-1, -2))
        out = out + torch.einsum("bmhg,hcg->bmhc", near, pair_v)
        if share is not None:
            out = out + torch.einsum("bmht,hct->bmhc", self._by_type(weights, share, pairs), bond_v)
        result: Tensor = self.linear_out(out.reshape(b, m, width))
        return result

    def _split(self, linear: nn.Linear, direction: nn.Linear | None, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sources' own part [B, N, H, c], and the columns for pairs [H, c, G] and bonds [H, c, 4]."""
        b, n, width = x.shape
        h, c = self.heads, width // self.heads
        own = functional.linear(x, linear.weight[:, :width], linear.bias).view(b, n, h, c)
        bond, pair = linear.weight[:, width : width + self.bonds], linear.weight[:, width + self.bonds :]
        if direction is not None:
            pair = torch.cat([pair, direction.weight], 1)
        return own, pair.reshape(h, c, -1), bond.reshape(h, c, self.bonds)

    def _bonded(self, logits: Tensor, bond_logits: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """Logits with the bond edges, and the bond edge's share of each bonded pair's weight, [B, M, H, d]."""
        bonded, bond, seen = (cast(Tensor, x)[:, :, None, :] for x in (pairs.bonded, pairs.bond, pairs.seen))
        shape = (*bond_logits.shape[:3], bonded.shape[-1])
        extra = torch.gather(bond_logits, 3, bond.clamp_min(0).expand(shape))
        there = (bond >= 0).to(logits.dtype)
        added = torch.where(seen, functional.softplus(extra), extra) * there
        share = torch.where(seen, torch.sigmoid(extra), torch.ones_like(extra)) * there
        return logits.scatter_add(3, bonded.expand(shape), added), share

    def _by_type(self, weights: Tensor, share: Tensor, pairs: Pairs) -> Tensor:
        """Weight of the bond edges of each type, [B, M, H, 4]."""
        bonded, bond = cast(Tensor, pairs.bonded), cast(Tensor, pairs.bond)
        edges = torch.gather(weights, 3, bonded[:, :, None, :].expand(share.shape)) * share
        types = (bond[..., None] == torch.arange(self.bonds, device=bond.device)).to(edges.dtype)
        return torch.matmul(edges, types)


class Block(nn.Module):
    """One layer of the trunk: attention and a feed-forward net, each behind a normalisation, with residuals."""

    def __init__(self, width: int, heads: int, gaussians: int, directions: bool):
        super().__init__()
        self.attn_norm = RootMeanSquare(width)
        self.self_attn = PairAttention(width, heads, gaussians, BONDS, directions)
        self.ffn_norm = RootMeanSquare(width)
        self.ffn = nn.Sequential(
            nn.Linear(width, 4 * width, bias=False), nn.GELU(), nn.Linear(4 * width, width, bias=False)
        )

    def forward(self, x: Tensor, pairs: Pairs) -> Tensor:
        """Tokens [B, N, D] to tokens."""
        normal = self.attn_norm(x)
        x = x + self.self_attn(normal, normal, pairs)
        result: Tensor = x + self.ffn(self.ffn_norm(x))
        return result


class Layer(nn.Module):
    """A block under the name that the released weights give it, with the grid of distances that they repeat."""

    def __init__(self, width: int, heads: int, gaussians: int, reach_ang: float, directions: bool):
        super().__init__()
        self.edge_dist_embedder = Smearing(reach_ang, gaussians)
        self.interaction_layer = Block(width, heads, gaussians, directions)

    def forward(self, x: Tensor, pairs: Pairs) -> Tensor:
        """Tokens [B, N, D] to tokens."""
        result: Tensor = self.interaction_layer(x, pairs)
        return result


class Head(nn.Module):
    """Two linear maps under the name that the released weights give them."""

    def __init__(self, name: str, width: int, out: int):
        super().__init__()
        self._name = name
        self.add_module(name, mlp(width, out))

    @property
    def net(self) -> nn.Sequential:
        """The two maps."""
        return cast(nn.Sequential, self.get_submodule(self._name))

    def forward(self, x: Tensor) -> Tensor:
        """Map the last dimension."""
        result: Tensor = self.net(x)
        return result


def mlp(width: int, out: int) -> nn.Sequential:
    """Linear, GELU, linear."""
    return nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, out))


def start_at_zero(net: nn.Sequential) -> None:
    """Let the output of `mlp` be 0 before any training."""
    for parameter in net[2].parameters():
        nn.init.zeros_(parameter)


def waves_of_time(t: Tensor, size: int = 64, scale: float = 2056.0) -> Tensor:
    """Sines and cosines [B, size] of times [B], with frequencies from 1 down to 1/2056 of t * 2056."""
    half = size // 2
    exponent = torch.arange(half, device=t.device, dtype=t.dtype) * (-math.log(scale) / (half - 1))
    phase = t[:, None] * scale * torch.exp(exponent)
    return torch.cat([phase.sin(), phase.cos()], -1)


def waves_of_number(number: Tensor, width: int) -> Tensor:
    """Sines and cosines [..., width] of integer positions [...]."""
    k = torch.arange(width // 2, device=number.device)
    phase = number[..., None] * torch.pi / 2048.0 ** (2.0 * k / width)
    return torch.cat([phase.sin(), phase.cos()], -1)
