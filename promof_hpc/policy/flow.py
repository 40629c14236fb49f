"""Flow matching from noise to crystals: priors, paths, the loss, and the deterministic solver.

Time runs from 0 (noise) to 1 (data); the engineer predicts the data x1, the velocity is (x1 - x) / (1 - t)
(MOFFlow-2, arXiv 2505.17914). Translations are N(0, (10 Å)²) with zero mean over the blocks, rotations and torsions
uniform, lattice lengths log-normal, lattice angles uniform.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from promof_hpc.assembly.stack import Stack, rotation_of
from promof_hpc.policy import so3
from promof_hpc.policy.contact_head import contact_loss
from promof_hpc.policy.coupling import Aim, Copies, couple
from promof_hpc.policy.state import Increments, State, advance, centred, recelled, state_of, states_of, wrap

if TYPE_CHECKING:
    from promof_hpc.policy.engineer import Clean, Engineer, Prepared

__all__ = ["State", "state_of", "states_of"]

SPREAD_ANG = 10.0
LENGTH_LOC = (2.5542, 2.7547, 2.9633)  # of the logarithm of a length in Å
LENGTH_SCALE = (0.3739, 0.3011, 0.3126)
ANGLES_DEG = (59.9, 120.1)
WEIGHTS = {"translation": 3.0, "rotation": 1.0, "lattice": 1.0, "torsion": 1.0, "contact": 0.2}
LATE_RATIO = 0.33  # spread of crystals' centroids over the prior's
MOST_LATE = 10.0  # weight of the latest times
LATEST = 0.999  # a step never divides by less than 1 - LATEST


@dataclass(frozen=True)
class Losses:
    """Mean losses of a batch; each with gradient.

    Attributes:
        total: weighted sum.
        translation: squared error of centroids in the true cell in nm², mean over blocks.
        rotation: squared Frobenius error of the turn to the final pose, mean over blocks.
        lattice: squared error in nm² and rad², sum over the six numbers.
        torsion: squared error of (cos, sin), mean over torsions.
        contact: cross entropy of who meets whom; 0 where it was not asked for.
    """

    total: Tensor
    translation: Tensor
    rotation: Tensor
    lattice: Tensor
    torsion: Tensor
    contact: Tensor

    def parts(self) -> dict[str, float]:
        """The numbers, for logs."""
        return {name: float(value.detach()) for name, value in vars(self).items()}


def row_generators(rows: int, generator: torch.Generator) -> list[torch.Generator]:
    """One generator for each row, so that what a row draws depends on neither padding nor its neighbours."""
    seeds = torch.randint(2**62, (rows,), generator=generator).tolist()
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def prior(fixed: Stack, generator: torch.Generator) -> State:
    """Noise for every assembly of a stack; a row's draw does not depend on the padding."""
    b, k = fixed.blocks.shape
    centroids, quaternions = torch.zeros(b, k, 3), torch.zeros(b, k, 4)
    quaternions[..., 0] = 1.0
    angles, normal, uniform = torch.zeros(fixed.torsions.shape), torch.zeros(b, 3), torch.zeros(b, 3)
    for row, own in enumerate(row_generators(b, generator)):
        blocks, torsions = sizes(fixed, row)
        centroids[row, :blocks] = torch.randn(blocks, 3, generator=own) * SPREAD_ANG
        quaternions[row, :blocks] = torch.randn(blocks, 4, generator=own)
        angles[row, :torsions] = (2 * torch.rand(torsions, generator=own) - 1) * torch.pi
        normal[row], uniform[row] = torch.randn(3, generator=own), torch.rand(3, generator=own)
    low, high = torch.deg2rad(torch.tensor(ANGLES_DEG))
    lengths = torch.exp(torch.tensor(LENGTH_LOC) + torch.tensor(LENGTH_SCALE) * normal)
    lattice = torch.cat([lengths, low + (high - low) * uniform], -1)
    like = fixed.local
    return State(
        lattice.to(like), so3.uniform(quaternions).to(like), centred(centroids.to(like), fixed.blocks), angles.to(like)
    )  # fmt: skip


def sizes(fixed: Stack, row: int) -> tuple[int, int]:
    """Blocks and torsions of one row without padding, known without asking the device."""
    blocks = fixed.components[row].blocks
    return len(blocks), sum(len(b.torsions) for b in blocks if b.torsions is not None)


def prior_moments(device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the lattice prior, [6] each, in Å and rad."""
    loc, scale = torch.tensor(LENGTH_LOC), torch.tensor(LENGTH_SCALE)
    mean = torch.exp(loc + scale**2 / 2)
    low, high = torch.deg2rad(torch.tensor(ANGLES_DEG))
    spread = torch.cat([mean * torch.expm1(scale**2).sqrt(), ((high - low) / 12**0.5).expand(3)])
    return torch.cat([mean, ((low + high) / 2).expand(3)]).to(device), spread.to(device)


def interpolate(x0: State, x1: State, t: Tensor) -> State:
    """The point at times t [B] on straight lines, geodesics of rotations, and the shorter arcs of torsions.

    Centroids go straight in fractions of the cell, so that a change of the cell carries all images along.
    """
    one, two = t[:, None], t[:, None, None]
    turn = so3.log(x1.rotations @ x0.rotations.transpose(-1, -2))
    lattice = x0.lattice + one * (x1.lattice - x0.lattice)
    begin, end = (recelled(x.centroids, x.lattice, lattice) for x in (x0, x1))
    return State(
        lattice=lattice,
        rotations=rotation_of(two * turn) @ x0.rotations,
        centroids=begin + two * (end - begin),
        angles=wrap(x0.angles + one * wrap(x1.angles - x0.angles)),
    )


def noised(start: State, fixed: Stack, t0: float | Tensor, generator: torch.Generator) -> State:
    """A start, for instance from a net, brought to flow time t0 (a number, or [B]) with noise from the prior.

    As in training the noise is laid out so that equal blocks, images and origin make the way short.
    """
    aim = couple(fixed, prior(fixed, generator), start, generator)
    return interpolate(aim.noise, aim.data, times_of(t0, start))


def times_of(t: float | Tensor, like: State) -> Tensor:
    """Times [B] from a number or a tensor."""
    return torch.as_tensor(t, dtype=like.lattice.dtype, device=like.lattice.device).expand(len(like))


def loss(
    engineer: Engineer,
    fixed: Stack,
    x1: State,
    generator: torch.Generator,
    partner: Tensor | None = None,
    copies: Copies | None = None,
) -> Losses:
    """The flow-matching loss of a batch at random times, with weights 3 : 1 : 1 : 1 as in MOFFlow-2.

    Args:
        x1: the crystals.
        partner: linker end that each node end meets, int64 [B, E], -1 in padding; with it contacts are learned too.
        copies: other poses of the blocks that look the same (`coupling.stack_copies`).
    """
    aim = couple(fixed, prior(fixed, generator), x1, generator, copies, partner)
    t = torch.rand(len(x1), generator=generator).to(x1.lattice)
    now = interpolate(aim.noise, aim.data, t)
    prepared = engineer.prepare(fixed, aim.order)
    contacts = partner is not None and engineer.settings.contact
    return losses_of(engineer(prepared, now, t, contacts), now, fixed, aim, late_weight(t))


def late_weight(t: Tensor) -> Tensor:
    """Weight of each row, [B], from 1 at t = 0 to `MOST_LATE`: the inverse of what is left to predict at t.

    Without it nothing is learned late, where errors are small, and that is where a start from a net begins.
    """
    return (1.0 + (LATE_RATIO * t / (1.0 - t).clamp_min(1e-3)) ** 2).clamp_max(MOST_LATE)


def losses_of(clean: Clean, now: State, fixed: Stack, aim: Aim, weight: Tensor) -> Losses:
    """Losses of a prediction made at the state `now` on the way to `aim.data`, rows weighted by `weight` [B]."""
    x1 = aim.data
    blocks, torsions = (mask.to(clean.lattice.dtype) for mask in (fixed.blocks, fixed.torsions))
    turn = x1.rotations @ now.rotations.transpose(-1, -2)
    wanted = torch.stack([x1.angles.cos(), x1.angles.sin()], -1)
    off = recelled(clean.centroids, now.lattice, x1.lattice) - x1.centroids
    unit = torch.tensor([0.1, 0.1, 0.1, 1.0, 1.0, 1.0]).to(clean.lattice)  # Å to nm
    zero = clean.lattice.new_zeros(())
    contact = zero if clean.contacts is None or aim.partner is None else contact_loss(clean.contacts, aim.partner)
    parts = {
        "translation": _mean((off * 0.1).square().sum(-1), blocks, weight),
        "rotation": _mean((clean.turns - turn).square().sum((-1, -2)), blocks, weight),
        "lattice": ((clean.lattice - x1.lattice) * unit).square().sum(-1).mul(weight).mean(),
        "torsion": _mean((clean.torsions - wanted).square().sum(-1), torsions, weight),
        "contact": contact,
    }
    total = sum((WEIGHTS[name] * part for name, part in parts.items()), zero)
    return Losses(total, **parts)


def _mean(values: Tensor, real: Tensor, weight: Tensor) -> Tensor:
    """Mean over the real entries of [B, n], rows weighted; 0 where there are none: a batch may have no torsions."""
    return (values * real * weight[:, None]).sum() / real.sum().clamp_min(1.0)


def velocity(clean: Clean, state: State, fixed: Stack, t: Tensor) -> Increments:
    """Change per unit time at times t [B] < 1: straight towards the prediction. 0 in padding."""
    rate = 1.0 / (1.0 - t.clamp_max(LATEST))
    one, two = rate[:, None], rate[:, None, None]
    angle = torch.atan2(clean.torsions[..., 1], clean.torsions[..., 0])
    real = fixed.blocks[..., None].to(one.dtype)
    return Increments(
        translation=two * (clean.centroids - state.centroids) * real,
        rotation=two * so3.log(so3.nearest_rotation(clean.turns)) * real,
        torsion=one * wrap(angle - state.angles) * fixed.torsions,
        lattice=one * (clean.lattice - state.lattice),
    )


def scaled(step: Increments, factor: Tensor) -> Increments:
    """Increments times a factor for each row, [B]."""
    one, two = factor[:, None], factor[:, None, None]
    return Increments(step.translation * two, step.rotation * two, step.torsion * one, step.lattice * one)


def time_grid(start_time: float | Tensor, steps: int, like: State) -> Tensor:
    """Times [B, steps + 1] from the start to 1 in even steps."""
    start = times_of(start_time, like)[:, None]
    share = torch.linspace(0.0, 1.0, steps + 1, dtype=start.dtype, device=start.device)
    return start + (1.0 - start) * share


@torch.no_grad()
def solve(engineer: Engineer, fixed: Stack, x0: State, start_time: float | Tensor, steps: int) -> State:
    """The crystal that a state at `start_time` (a number, or [B]) flows to in Euler steps, the last a jump to it."""
    prepared, state = engineer.prepare(fixed), x0
    times = time_grid(start_time, steps, x0)
    for k in range(steps):
        state = ode_step(engineer, prepared, state, times[:, k], times[:, k + 1])
    return state


def ode_step(engineer: Engineer, prepared: Prepared, state: State, t: Tensor, until: Tensor) -> State:
    """One Euler step between times [B]."""
    clean = engineer(prepared, state, t)
    return advance(state, scaled(velocity(clean, state, prepared.fixed, t), until - t))
