"""The stochastic sampler that makes the engineer a policy: steps with Gaussian noise, their densities, exact ratios.

A step at time t over Delta adds increments drawn from N(mean, sigma² Delta) (SCIENCE, the SDE):

    translation, lattice   mean = [v - sigma² (x - t v - m0) / (2 (1 - t) S0²)] Delta    score-corrected
    rotation, torsion      mean = v Delta                                                velocity only
    sigma = a S0 sqrt((1 - t) / max(t, t1)), at most 3 a S0; 0 for t > 0.9 and in the last step

with the engineer's velocity v, the prior's mean m0 and spread S0 (10 Å; 1 rad; the lattice's own moments). The
increments are stored as drawn; the next state follows from them without any parameter, so ratios need no Jacobian.
Translations are made in the cell before the step, and the score takes noise and crystal for independent: since training
lays them out for each other (`policy.coupling`), it keeps the spread only about.
Rollout and replay share one function.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from promof_hpc.assembly.stack import Stack
from promof_hpc.config.design import SdeSettings
from promof_hpc.policy.flow import SPREAD_ANG, prior_moments, row_generators, scaled, sizes, time_grid, velocity
from promof_hpc.policy.state import MODALITIES, Increments, State, advance, centred

if TYPE_CHECKING:
    from promof_hpc.policy.engineer import Engineer, Prepared

QUIET = 0.9  # no noise later: the density's logarithm would explode
CAP = 3.0  # of sigma in units of a S0
STATE_PARTS = tuple(f.name for f in fields(State))
ACTION_PARTS = tuple(f.name for f in fields(Increments))


@dataclass(frozen=True)
class Rollout:
    """B assemblies from start to end in S steps, with all that learning needs; fp32 as sampled.

    Attributes:
        states: state before each step, [B, S, ...].
        actions: increments as drawn, [B, S, ...]; equal to the means where there was no noise.
        final: the assemblies.
        times: flow times, [B, S + 1].
        sigma: noise levels by modality, in units of its S0, [B, S, 4]; 0 where a step was deterministic.
        log_prob: log-density of each step's action by modality, [B, S, 4]; 0 where deterministic.
        dof: degrees of freedom by modality, [B, 4].
    """

    states: State
    actions: Increments
    final: State
    times: Tensor
    sigma: Tensor
    log_prob: Tensor
    dof: Tensor

    def __len__(self) -> int:
        return len(self.times)

    @property
    def steps(self) -> int:
        """Number of steps S."""
        return self.times.shape[1] - 1

    @property
    def noisy(self) -> Tensor:
        """True for the steps that the loss is made of, [B, S]."""
        return (self.sigma > 0).any(-1)

    @property
    def noisy_steps(self) -> list[int]:
        """The steps that are noisy in any row."""
        return torch.nonzero(self.noisy.any(0))[:, 0].tolist()

    def take(self, rows: Sequence[int] | Tensor) -> Rollout:
        """The assemblies `rows`."""
        index = torch.as_tensor(rows, dtype=torch.long, device=self.times.device)
        states, final = self.states.take(index), self.final.take(index)
        actions = Increments(*(x[index] for x in self.actions.parts()))
        return Rollout(states, actions, final, *(x[index] for x in (self.times, self.sigma, self.log_prob, self.dof)))

    def to(self, device: torch.device | str) -> Rollout:
        """A copy on another device."""
        actions = Increments(*(x.to(device) for x in self.actions.parts()))
        rest = (x.to(device) for x in (self.times, self.sigma, self.log_prob, self.dof))
        return Rollout(self.states.to(device), actions, self.final.to(device), *rest)

    def columns(self) -> dict[str, np.ndarray]:
        """All arrays by name, for a shard."""
        named = {f"state_{n}": getattr(self.states, n) for n in STATE_PARTS}
        named |= {f"action_{n}": getattr(self.actions, n) for n in ACTION_PARTS}
        named |= {f"final_{n}": getattr(self.final, n) for n in STATE_PARTS}
        named |= {n: getattr(self, n) for n in ("times", "sigma", "log_prob", "dof")}
        return {name: value.detach().cpu().numpy() for name, value in named.items()}

    @classmethod
    def from_columns(cls, columns: Mapping[str, np.ndarray], device: torch.device | str = "cpu") -> Rollout:
        """The inverse of `columns`, bit by bit."""

        def of(name: str) -> Tensor:
            return torch.from_numpy(np.array(columns[name])).to(device)

        return cls(
            State(*(of(f"state_{n}") for n in STATE_PARTS)),
            Increments(*(of(f"action_{n}") for n in ACTION_PARTS)),
            State(*(of(f"final_{n}") for n in STATE_PARTS)),
            *(of(n) for n in ("times", "sigma", "log_prob", "dof")),
        )


@torch.no_grad()
def rollout(
    engineer: Engineer,
    fixed: Stack,
    x0: State,
    start_time: float | Tensor,
    settings: SdeSettings,
    generator: torch.Generator,
    *,
    first: int = 0,
) -> Rollout:
    """Assemble with noise. What a row draws depends on the generator and its place only, not on padding.

    Args:
        x0: starts at `start_time` (a number, or [B]).
        settings: steps and noise levels; with a window only the steps from `first` on are noisy (MixGRPO, arXiv
            2507.21802).
        first: first step of the window.
    """
    prepared, state = engineer.prepare(fixed), x0
    times = time_grid(start_time, settings.steps, x0)
    sigma = noise_levels(times, settings, first)
    noise = _noise(fixed, settings.steps, generator)
    states, actions, log_probs = [], [], []
    for k in range(settings.steps):
        means = step_means(engineer, prepared, state, times[:, k], times[:, k + 1], sigma[:, k])
        action = _drawn(means, noise[k], times[:, k + 1] - times[:, k], sigma[:, k])
        log_probs.append(log_density(action, means, times[:, k + 1] - times[:, k], sigma[:, k], fixed))
        states.append(state)
        actions.append(action)
        state = advance(state, action)
    return Rollout(
        State(*(torch.stack([getattr(s, n) for s in states], 1) for n in STATE_PARTS)),
        Increments(*(torch.stack([getattr(a, n) for a in actions], 1) for n in ACTION_PARTS)),
        state, times, sigma, torch.stack(log_probs, 1), degrees_of_freedom(fixed),
    )  # fmt: skip


def replay(
    engineer: Engineer, fixed: Stack, flight: Rollout, step: int, prepared: Prepared | None = None
) -> tuple[Tensor, Increments]:
    """Log-density of a stored step's actions under an engineer's present weights, and its means, with gradient.

    Args:
        prepared: from `engineer.prepare(fixed)` at the same weights, to share it between steps of one update.

    Returns:
        [B, 4] by modality (0 where the step was deterministic), and the means.
    """
    prepared = engineer.prepare(fixed) if prepared is None else prepared
    state = State(*(getattr(flight.states, n)[:, step] for n in STATE_PARTS))
    action = Increments(*(x[:, step] for x in flight.actions.parts()))
    t, until, sigma = flight.times[:, step], flight.times[:, step + 1], flight.sigma[:, step]
    means = step_means(engineer, prepared, state, t, until, sigma)
    return log_density(action, means, until - t, sigma, fixed), means


def step_kl(means: Increments, reference: Increments, flight: Rollout, step: int) -> Tensor:
    """KL divergence of a step's Gaussians, |mean - reference|² / (2 sigma² Delta), by modality, [B, 4]."""
    delta = flight.times[:, step + 1] - flight.times[:, step]
    parts = zip(means.parts(), reference.parts(), strict=True)
    squares = _squares(Increments(*(a - b for a, b in parts)))
    sigma = flight.sigma[:, step]
    variance = sigma**2 * delta[:, None]
    return torch.where(sigma > 0, squares / (2.0 * variance.clamp_min(1e-20)), 0.0)


def noise_levels(times: Tensor, settings: SdeSettings, first: int = 0) -> Tensor:
    """sigma / S0 of every step by modality, [B, S, 4], at times [B, S + 1]."""
    t, steps = times[:, :-1], times.shape[1] - 1
    a = torch.tensor([settings.translation, settings.rotation, settings.torsion, settings.lattice]).to(times)
    earliest = (times[:, 1:2] - times[:, :1]).clamp_min(1e-6)  # t1, the first time after 0
    level = ((1.0 - t) / torch.maximum(t, earliest)).sqrt().clamp_max(CAP)
    number = torch.arange(steps, device=times.device)
    end = steps if settings.window is None else min(first + settings.window, steps)
    begin = 0 if settings.window is None else first
    on = (t <= QUIET) & ((number >= begin) & (number < end) & (number < steps - 1))
    return level[..., None] * a * on[..., None]


def step_means(
    engineer: Engineer, prepared: Prepared, state: State, t: Tensor, until: Tensor, sigma: Tensor
) -> Increments:
    """Means of the increments of a step between times [B] at noise levels sigma / S0 [B, 4]."""
    v = velocity(engineer(prepared, state, t), state, prepared.fixed, t)
    delta = until - t
    step = scaled(v, delta)
    pull = sigma**2 * (delta / (2.0 * (1.0 - t)))[:, None]  # (sigma / S0)² Delta / (2 (1 - t))
    mean, _ = prior_moments(state.lattice.device)
    begun = state.centroids - t[:, None, None] * v.translation
    return Increments(
        translation=step.translation - pull[:, 0, None, None] * begun,
        rotation=step.rotation,
        torsion=step.torsion,
        lattice=step.lattice - pull[:, 3:] * (state.lattice - t[:, None] * v.lattice - mean),
    )


def log_density(action: Increments, means: Increments, delta: Tensor, sigma: Tensor, fixed: Stack) -> Tensor:
    """Log-density of actions by modality, [B, 4], in units of each modality's S0; 0 where sigma is 0."""
    parts = zip(action.parts(), means.parts(), strict=True)
    squares = _squares(Increments(*(a - m for a, m in parts)))
    variance = (sigma**2 * delta[:, None]).clamp_min(1e-20)
    dof = degrees_of_freedom(fixed)
    density = -squares / (2.0 * variance) - 0.5 * dof * torch.log(2.0 * torch.pi * variance)
    return torch.where(sigma > 0, density, 0.0)


def degrees_of_freedom(fixed: Stack) -> Tensor:
    """Degrees of freedom by modality, [B, 4]: 3 (M - 1), 3 M, torsions, 6."""
    blocks, torsions = (m.sum(1).to(fixed.local.dtype) for m in (fixed.blocks, fixed.torsions))
    return torch.stack([3 * (blocks - 1), 3 * blocks, torsions, torch.full_like(blocks, 6.0)], -1)


def _scales(device: torch.device) -> tuple[float, float, float, Tensor]:
    """S0 of each modality."""
    return SPREAD_ANG, 1.0, 1.0, prior_moments(device)[1]


def _squares(step: Increments) -> Tensor:
    """Squared lengths of increments in units of S0, [B, 4]. Padding holds zeros and adds nothing."""
    parts = zip(step.parts(), _scales(step.lattice.device), strict=True)
    return torch.stack([(x / scale).flatten(1).square().sum(-1) for x, scale in parts], -1)


def _drawn(means: Increments, noise: Increments, delta: Tensor, sigma: Tensor) -> Increments:
    """Actions from means and standard normal numbers."""
    spread = sigma * delta.sqrt()[:, None]
    drawn = []
    for k, (mean, eps, scale) in enumerate(zip(means.parts(), noise.parts(), _scales(delta.device), strict=True)):
        drawn.append(mean + spread[:, k].reshape(-1, *[1] * (mean.dim() - 1)) * scale * eps)
    return Increments(*drawn)


def _noise(fixed: Stack, steps: int, generator: torch.Generator) -> list[Increments]:
    """Standard normal numbers for every step, 0 in padding, translations with zero mean over the blocks."""
    b, k = fixed.blocks.shape
    shapes = {"translation": (k, 3), "rotation": (k, 3), "torsion": (fixed.torsions.shape[1],), "lattice": (6,)}
    noise = {name: torch.zeros(steps, b, *shapes[name]) for name in MODALITIES}
    for row, own in enumerate(row_generators(b, generator)):
        blocks, torsions = sizes(fixed, row)
        for name, count in (("translation", blocks), ("rotation", blocks), ("torsion", torsions), ("lattice", 6)):
            drawn = torch.randn(steps, count, *shapes[name][1:], generator=own)
            noise[name][:, row, :count] = drawn
    device = fixed.blocks.device
    noise = {name: value.to(device) for name, value in noise.items()}
    return [
        Increments(centred(noise["translation"][s], fixed.blocks), *(noise[n][s] for n in MODALITIES[1:]))
        for s in range(steps)
    ]
