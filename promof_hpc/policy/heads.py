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
LEAST_EXTENT = 0.05  # mean square extent of a block in Å² along a direction, below which it is not turned across it
FIRST_PULL = 0.25  # share of the way to its partner that an end goes before any training
DISPLACEMENT_ANG = 3.0  # unit of the displacements in `Pairs.features`


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
    """Where each token wants to go, as a vector made of displacements to other tokens; it turns with the assembly.

    Each head looks at some tokens, by what they are and how far they lie, and pulls towards them or pushes off. Tokens
    of an end are besides pulled to where its likely partners are: that way vanishes by itself as a crystal closes,
    while the rest has to be told that little is left to do.
    """

    def __init__(self, width: int, gaussians: int):
        super().__init__()
        self.linear_q = nn.Linear(width, width)
        self.linear_k = nn.Linear(width + gaussians, width, bias=False)
        self.pull = nn.Linear(width, VECTOR_HEADS)
        self.pull_ends = nn.Linear(width, 2)
        for parameter in (*self.pull.parameters(), *self.pull_ends.parameters()):
            nn.init.zeros_(parameter)
        nn.init.constant_(self.pull_ends.bias, FIRST_PULL)

    def forward(self, tokens: Tensor, pairs: Pairs, rest: Tensor, ways: Tensor | None) -> Tensor:
        """Vectors [B, N, 3] in Å of tokens [B, N, D].

        Args:
            rest: what is left of the way at the flow time, [B].
            ways: of each token to where its partners are in Å, [B, N, 2, 3].
        """
        b, n, width = tokens.shape
        h, c = VECTOR_HEADS, width // VECTOR_HEADS
        q = self.linear_q(tokens).view(b, n, h, c) * c**-0.5
        own, near = self.linear_k.weight[:, :width], self.linear_k.weight[:, width:].reshape(h, c, -1)
        k = functional.linear(tokens, own).view(b, n, h, c)
        g = near.shape[-1]
        logits = torch.matmul(torch.einsum("bmhc,hcg->bmhg", q, near), pairs.features[:, :, :g])
        logits = logits + torch.matmul(q.transpose(1, 2), k.permute(0, 2, 3, 1)).transpose(1, 2)
        weights = logits.masked_fill(pairs.blocked[..., None, :], MASKED).softmax(-1)
        towards = torch.matmul(weights, pairs.features[:, :, g:].transpose(-1, -2)) * DISPLACEMENT_ANG  # [B, N, H, 3]
        vectors = rest[:, None, None] * (self.pull(tokens)[..., None] * towards).sum(2)
        return vectors if ways is None else vectors + (self.pull_ends(tokens)[..., None] * ways).sum(2)


def rigid_moves(asked: Tensor, offset: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The moves of blocks that come nearest to what their tokens ask for (weighted least squares).

    Args:
        asked: move of each token in Å, [B, N, 3].
        offset: of each token from the centroid of its block in Å, [B, N, 3].
        weight: of each token in each block, [B, K, N].

    Returns:
        Moves of the centroids [B, K, 3] in Å, and matrices M [B, K, 3, 3]: a token moves by about its block's move
        and M @ offset. Directions in which a block has no extent are not turned.
    """
    total = weight.sum(-1, keepdim=True).clamp_min(1e-6)
    with torch.no_grad():
        middle = weight @ offset / total
        square = (weight @ _outer(offset, offset)).unflatten(-1, (3, 3)) / total[..., None]
        square = square - middle[..., :, None] * middle[..., None, :] + LEAST_EXTENT * torch.eye(3).to(offset)
        inverse = torch.linalg.inv(square)
    mean = weight @ asked / total
    both = (weight @ _outer(asked, offset)).unflatten(-1, (3, 3)) / total[..., None]
    matrix = (both - mean[..., :, None] * middle[..., None, :]) @ inverse
    return mean - (matrix @ middle[..., None]).squeeze(-1), matrix


def _outer(a: Tensor, b: Tensor) -> Tensor:
    """Outer products [B, N, 9] of vectors [B, N, 3]."""
    return (a[..., :, None] * b[..., None, :]).flatten(2)
