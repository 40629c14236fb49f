"""What stands around the engineer's trunk: from inputs to tokens, from tokens to blocks, torsions and vectors.

Names and shapes are those of MOFFlow-2's released weights, except for `VectorOutput`, which is our own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from promof_hpc.policy.features import FEATURES
from promof_hpc.policy.layers import MASKED, PairAttention, Pairs, Smearing, mlp, waves_of_time

ATOM_TYPES = 100
TYPE_WIDTH = 64
TIME_WIDTH = 64
POOL_REACH_ANG = 20.0
TORSION_REACH_ANG = 5.0
VECTOR_HEADS = 8


class InitialEmbed(nn.Module):
    """From atom types, chemistry, coordinates, lattice and time to tokens."""

    def __init__(self, width: int):
        super().__init__()
        self.atom_type_embed = nn.Embedding(ATOM_TYPES, TYPE_WIDTH)
        self.linear_out = nn.Linear(TYPE_WIDTH + FEATURES + 3 + 6 + TIME_WIDTH, width)

    def static(self, types: Tensor, chemistry: Tensor) -> Tensor:
        """The part of types [B, N] and features [B, N, 38]."""
        known = torch.cat([self.atom_type_embed(types.clamp_max(ATOM_TYPES - 1)), chemistry], -1)
        return functional.linear(known, self.linear_out.weight[:, : TYPE_WIDTH + FEATURES], self.linear_out.bias)

    def forward(self, static: Tensor, points: Tensor, lattice: Tensor, t: Tensor) -> Tensor:
        """Tokens [B, N, D] from the static part, points [B, N, 3] (nm), lattice [B, 6] (nm, rad) and time [B]."""
        weight = self.linear_out.weight[:, TYPE_WIDTH + FEATURES :]
        whole = functional.linear(torch.cat([lattice, waves_of_time(t, TIME_WIDTH)], -1), weight[:, 3:])
        return static + functional.linear(points, weight[:, :3]) + whole[:, None]


class Pool(PairAttention):
    """Tokens of blocks from the tokens of their atoms."""

    def __init__(self, width: int, heads: int, gaussians: int):
        super().__init__(width, heads, gaussians)
        self.edge_dist_embedder = Smearing(POOL_REACH_ANG, gaussians)

    def pool(self, tokens: Tensor, distances: Tensor, member: Tensor) -> Tensor:
        """Blocks [B, K, D] from tokens [B, N, D].

        Args:
            distances: of each token from the centroid of its own block in Å, [B, N].
            member: True for a block's own tokens, [B, K, N].
        """
        summed = member.to(tokens.dtype) @ tokens
        smeared = self.edge_dist_embedder(distances[:, None]).expand(-1, member.shape[1], -1, -1)
        result: Tensor = self(summed, tokens, Pairs(smeared, ~member))
        return result


class TorsionOutput(PairAttention):
    """(cos, sin) of torsions from their four atoms and what surrounds the middle bond."""

    def __init__(self, width: int, heads: int, gaussians: int):
        super().__init__(width, heads, gaussians)
        self.edge_dist_embedder = Smearing(TORSION_REACH_ANG, gaussians)
        self.dihedral_proj = nn.Linear(4 * width, width)
        self.torsion_output = mlp(width, 2)

    def predict(self, four: Tensor, known: Tensor | None, tokens: Tensor, distances: Tensor, blocked: Tensor) -> Tensor:
        """Outputs [B, T, 2] from the tokens of the four atoms [B, T, 4, D].

        Args:
            known: what is known of each torsion besides, [B, T, D]; with it the query reaches the output directly.
            tokens: [B, N, D].
            distances: of tokens from the middles of the bonds in Å, [B, T, N].
            blocked: True for tokens that a torsion does not see, [B, T, N].
        """
        query = self.dihedral_proj(four.flatten(2)) + self.dihedral_proj(four.flip(2).flatten(2))
        query = query if known is None else query + known
        seen = self(query, tokens, Pairs(self.edge_dist_embedder(distances), blocked))
        result: Tensor = self.torsion_output(seen if known is None else seen + query)
        return result


class VectorOutput(nn.Module):
    """A vector for each token, made of displacements to other tokens; it turns with the assembly.

    Each head looks at some tokens, by what they are and how far they lie, and pulls towards them or pushes off.
    """

    def __init__(self, width: int, gaussians: int):
        super().__init__()
        self.linear_q = nn.Linear(width, width)
        self.linear_k = nn.Linear(width + gaussians, width, bias=False)
        self.pull = nn.Linear(width, VECTOR_HEADS)
        nn.init.zeros_(self.pull.weight)
        nn.init.zeros_(self.pull.bias)

    def forward(self, tokens: Tensor, pairs: Pairs) -> Tensor:
        """Vectors [B, N, 3], in units of `DISPLACEMENT_ANG`, of tokens [B, N, D]."""
        b, n, width = tokens.shape
        h, c = VECTOR_HEADS, width // VECTOR_HEADS
        q = self.linear_q(tokens).view(b, n, h, c) * c**-0.5
        own, near = self.linear_k.weight[:, :width], self.linear_k.weight[:, width:].reshape(h, c, -1)
        k = functional.linear(tokens, own).view(b, n, h, c)
        g = near.shape[-1]
        logits = torch.matmul(torch.einsum("bmhc,hcg->bmhg", q, near), pairs.features[:, :, :g])
        logits = logits + torch.matmul(q.transpose(1, 2), k.permute(0, 2, 3, 1)).transpose(1, 2)
        weights = logits.masked_fill(pairs.blocked[..., None, :], MASKED).softmax(-1)
        towards = torch.matmul(weights, pairs.features[:, :, g:].transpose(-1, -2))  # [B, N, H, 3]
        return (self.pull(tokens)[..., None] * towards).sum(2)
