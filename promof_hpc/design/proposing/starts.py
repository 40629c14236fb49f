"""Where the assemblies of a component set begin: nets of known MOFs brought to a flow time by noise, or the prior.

Noise is laid out as in training: the crystal's blocks move to the images nearest to their noise. A contact's image
moves with them, so that snap still knows which block meets which.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from promof_hpc.assembly.components import Components
from promof_hpc.assembly.net_library import NetLibrary
from promof_hpc.assembly.net_start import NetStart, net_starts
from promof_hpc.assembly.stack import Stack
from promof_hpc.config import AssemblySettings
from promof_hpc.geometry.lattice import cells_of
from promof_hpc.policy.contact_head import preference
from promof_hpc.policy.coupling import couple
from promof_hpc.policy.engineer import Engineer
from promof_hpc.policy.flow import interpolate, prior
from promof_hpc.policy.state import State, states_of


@dataclass(frozen=True)
class Launch:
    """The beginnings of B assemblies.

    Attributes:
        x0: state at `times`.
        times: flow time, 0 for noise, float32 [B].
        nets: the net start of each, its contacts' images as in `x0`; None for noise.
    """

    x0: State
    times: Tensor
    nets: tuple[NetStart | None, ...]


def chosen_nets(
    components: Components,
    library: NetLibrary,
    count: int,
    settings: AssemblySettings,
    head: Engineer,
    generator: np.random.Generator,
) -> list[NetStart | None]:
    """Starts of `count` assemblies: the nets that the contact head prefers, None for noise.

    Where there are fewer nets than wanted they come again (with other noise); where there are none, all is noise.

    Args:
        head: whose contact head is asked; it must not learn during the campaign.
    """
    wanted = {"noise": 0, "net": count, "mixed": count // 2}[settings.start]
    known = net_starts(components, library, wanted, generator) if wanted else []
    if not known:
        return [None] * count
    if settings.contact_weight > 0 and head.contact_head is not None:
        scores = preference(head, components, known)
        known = [known[k] for k in sorted(range(len(known)), key=lambda k: -scores[k])]
    if settings.start == "mixed":
        return [known[k // 2 % len(known)] if k % 2 else None for k in range(count)]
    return [known[k % len(known)] for k in range(count)]


def launch(fixed: Stack, nets: Sequence[NetStart | None], start_time: float, generator: torch.Generator) -> Launch:
    """The states that assemblies of one component set begin with.

    Args:
        nets: from `chosen_nets`.
        start_time: flow time that net starts are noised to; 1 leaves them as they are.
    """
    noise = prior(fixed, generator)
    known = [n for n in nets if n is not None]
    if not known:
        return Launch(noise, torch.zeros(len(nets)).to(fixed.local), tuple(nets))
    times = torch.tensor([start_time if n is not None else 0.0 for n in nets]).to(fixed.local)
    crystals = states_of([(n or known[0]).solution for n in nets], fixed)  # at time 0 nothing is seen of them
    aim = couple(fixed, noise, crystals, generator)
    moved = _moved(crystals, aim.data)
    followed = [n and _with_images(n, fixed.components[k], moved[k]) for k, n in enumerate(nets)]
    return Launch(interpolate(aim.noise, aim.data, times), times, tuple(followed))


def _moved(before: State, after: State) -> np.ndarray:
    """By how many cells each block has moved relative to the first, int [B, K, 3]."""
    inverse = torch.linalg.inv(cells_of(before.lattice))
    way = (after.centroids - before.centroids) @ inverse
    return torch.round(way - way[:, :1]).long().cpu().numpy()


def _with_images(start: NetStart, components: Components, moved: np.ndarray) -> NetStart:
    """The start with its contacts between the images that its blocks [K, 3] have moved to."""
    node = np.array([end.block for end in components.node_ends])
    linker = np.array([end.block for end in components.linker_ends])[start.solution.partner]
    shifts = start.solution.shifts + moved[node] - moved[linker]
    return replace(start, solution=replace(start.solution, shifts=shifts))
