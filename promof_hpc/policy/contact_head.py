"""Who meets whom: a logit for every pair of a node end and a linker end, from what the engineer knows and the pose.

Ends that differ in their donors never meet. The logits are read both ways: which linker end a node end meets, and
which node end a linker end meets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from promof_hpc.geometry.lattice import nearest_image
from promof_hpc.policy.features import Inputs, Places
from promof_hpc.policy.layers import Smearing, mlp

if TYPE_CHECKING:
    from promof_hpc.assembly.components import Components
    from promof_hpc.assembly.net_start import NetStart
    from promof_hpc.policy.engineer import Engineer

REACH_ANG = 12.0
GAUSSIANS = 16
WIDTH = 32
START_TIME = 0.9  # flow time that poses of a net start are about as reliable as
FORBIDDEN = -1e4  # finite, so that a softmax over nothing but forbidden pairs is a number


class ContactHead(nn.Module):
    """Logits from the two ends' tokens and from how the ends lie to each other at the present pose."""

    def __init__(self, width: int):
        super().__init__()
        self.node = mlp(width, width)
        self.linker = mlp(width, width)
        self.smearing = Smearing(REACH_ANG, GAUSSIANS)
        self.geometry = nn.Sequential(nn.Linear(GAUSSIANS + 4, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH), nn.GELU(),
                                      nn.Linear(WIDTH, 1))  # fmt: skip

    def forward(self, tokens: Tensor, inputs: Inputs, places: Places, cells: Tensor, t: Tensor) -> Tensor:
        """Logits [B, E, E] (node end, linker end); `FORBIDDEN` where two ends cannot meet, and in padding.

        Args:
            tokens: the trunk's output, [B, N, D].
            cells: lattice vectors in rows in Å, [B, 3, 3].
            t: flow time, [B].
        """
        ends = inputs.end_share @ tokens
        e = inputs.ends.shape[1]
        node, linker = self.node(ends[:, :e]), self.linker(ends[:, e:])
        logits = node @ linker.transpose(-1, -2) * tokens.shape[-1] ** -0.5
        logits = logits + self.geometry(self._geometry(e, places, cells, t)).squeeze(-1)
        return logits.masked_fill(~inputs.allowed, FORBIDDEN)

    @torch.no_grad()
    def _geometry(self, e: int, places: Places, cells: Tensor, t: Tensor) -> Tensor:
        """Distance of the ends' centres, angle between what lies behind both, angles to the line between, time."""
        centre, behind = places.centres, places.behind
        direction = functional.normalize(behind - centre, dim=-1)
        node, linker = direction[:, :e, None], direction[:, None, e:]
        between = nearest_image(centre[:, None, e:] - centre[:, :e, None], cells)
        distance = between.norm(dim=-1)
        line = between / (distance[..., None] + 1.0)
        angles = [(node * linker).sum(-1), (node * line).sum(-1), (linker * line).sum(-1)]
        gaussians = self.smearing(distance).transpose(-1, -2)
        return torch.cat([gaussians, torch.stack([*angles, t[:, None, None].expand_as(distance)], -1)], -1)


def ways_to_partners(logits: Tensor, inputs: Inputs, places: Places, cells: Tensor) -> Tensor:
    """How far the ends of each token are from where their likely partners are, in Å, [B, N, 2, 3].

    Mean over partners with the probabilities of the logits [B, E, E], to the nearest image: the way of the centre, and
    the way of what lies behind it. A token in several ends has the mean of their ways, one in none has 0.
    """
    e = inputs.ends.shape[1]
    centre, arm = places.centres, places.behind - places.centres
    between = nearest_image(centre[:, None, e:] - centre[:, :e, None], cells)
    ways = torch.stack([between, between + arm[:, None, e:] - arm[:, :e, None]], 3)  # [B, E, E, 2, 3]
    forth = torch.einsum("bij,bijkc->bikc", logits.softmax(2), ways)
    back = -torch.einsum("bij,bijkc->bjkc", logits.softmax(1), ways)
    both = torch.cat([forth, back], 1) * inputs.ends.repeat(1, 2)[..., None, None]
    mine = (inputs.end_share > 0).to(both.dtype)
    sums = torch.einsum("ben,bekc->bnkc", mine, both)
    return sums / mine.sum(1).clamp_min(1.0)[..., None, None]


def contact_loss(logits: Tensor, partner: Tensor) -> Tensor:
    """Mean cross entropy of the true partners, both ways.

    Args:
        logits: [B, E, E].
        partner: linker end that each node end meets, int64 [B, E]; -1 in padding.
    """
    real = partner >= 0
    target = partner.clamp_min(0)[..., None]
    forth, back = logits.log_softmax(2), logits.log_softmax(1)
    found = torch.gather(forth + back, 2, target).squeeze(-1) * real
    return -0.5 * found.sum() / real.sum().clamp_min(1)


@torch.no_grad()
def preference(engineer: Engineer, components: Components, starts: Sequence[NetStart]) -> list[float]:
    """Mean log-probability, both ways, of the contacts of net starts at their own poses; higher is better."""
    from promof_hpc.assembly.stack import stack
    from promof_hpc.policy.state import states_of

    if not starts:
        return []
    fixed = stack([components] * len(starts))
    fixed = fixed.to(next(engineer.parameters()).device)
    times = fixed.local.new_full((len(starts),), START_TIME)
    logits = engineer.contact_logits(engineer.prepare(fixed), states_of([s.solution for s in starts], fixed), times)
    partner = torch.stack([torch.as_tensor(s.solution.partner, dtype=torch.long) for s in starts]).to(logits.device)
    found = torch.gather(logits.log_softmax(2) + logits.log_softmax(1), 2, partner[..., None]).squeeze(-1)
    return (0.5 * found.mean(-1)).tolist()
