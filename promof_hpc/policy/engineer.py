"""The engineer: a Transformer over all atoms of a cell that predicts the finished crystal from any state on the way.

It is MOFFlow-2's structure predictor with dense attention (see `policy.layers`) and the same parameters under the same
names. Options that the released model does not have sit in modules of their own: node sites as tokens, distances and
displacements to the nearest periodic image, heads that predict relative to the present state, vectors that turn with
the assembly, a contact head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from promof_hpc.assembly.stack import Stack, per_atom
from promof_hpc.geometry.lattice import cells_of, nearest_image
from promof_hpc.policy.contact_head import ContactHead, ways_to_partners
from promof_hpc.policy.features import NONE, Inputs, Places, inputs_of, places
from promof_hpc.policy.heads import (
    DISPLACEMENT_ANG,
    TORSION_REACH_ANG,
    InitialEmbed,
    Pool,
    TorsionOutput,
    VectorOutput,
    rigid_moves,
)
from promof_hpc.policy.layers import Head, Layer, Pairs, start_at_zero, waves_of_number
from promof_hpc.policy.state import State, centred, recelled

FIRST_ATOMS = 130  # of `first_by_index`: neighbours in the trunk, as many of the lowest-numbered atoms as there are
FIRST_TORSION_ATOMS = 24
ANG_PER_NM = 10.0
ENDLESS = 0.1  # weight of a token without an end where a block's move is fitted to its tokens'
OFFSET_ANG = 1.0  # and offsets from the block's centroid to the tokens in this
SPREAD_ANG = 10.0  # of centroids at any time: crystals are laid out about their noise
WAY_ANG = 3.0  # from a block's noise to its place in one direction: half a cell at most
LATTICE_MEANS = (9.0, 11.5, 15.0, 1.57, 1.57, 1.57)  # of crystals in Å and rad
LATTICE_SPREADS = ((6.0, 0.30), (1.5, 0.15))  # of the prior, and of crystals of known blocks: lengths, angles


@dataclass(frozen=True)
class EngineerSettings:
    """Size and options of an engineer; stored beside its weights.

    Attributes:
        width: of a token.
        layers, heads, gaussians: of the trunk.
        reach_ang: distance in Å up to which Gaussians stand.
        neighbor_rule: `all`, or the `first_by_index` within `reach_ang` that the released weights were trained with.
        periodic: distances to the nearest image in the present cell.
        directions: displacements beside distances.
        hydrogens: whether hydrogen on carbon is seen.
        sites: whether the sites of nodes are tokens.
        poses: ends' directions, offsets from centroids, places, lattice and torsion angles are inputs once more, each
            in units of its spread.
        relative: heads predict the change from the best guess that needs no network (see `guess`).
        vectors: tokens say where they should go, and a block's turn is fitted to them besides its own output.
        contact: whether there is a contact head.
    """

    width: int = 128
    layers: int = 4
    heads: int = 4
    gaussians: int = 24
    reach_ang: float = 12.0
    neighbor_rule: Literal["all", "first_by_index"] = "all"
    periodic: bool = True
    directions: bool = True
    hydrogens: bool = False
    sites: bool = True
    poses: bool = True
    relative: bool = True
    vectors: bool = True
    contact: bool = True

    def __post_init__(self) -> None:
        if self.vectors and not self.directions:
            raise ValueError("vectors are made of displacements: turn directions on, or vectors off")
        if self.width % self.heads or self.width % 8:
            raise ValueError(f"width {self.width} cannot be shared among {self.heads} heads, or is no multiple of 8")


@dataclass(frozen=True)
class Prepared:
    """What stays the same at every step.

    Attributes:
        fixed: the components.
        inputs: tokens and ends.
        static: part of the first layer's output that depends on neither pose nor time, [B, N, D].
    """

    fixed: Stack
    inputs: Inputs
    static: Tensor


@dataclass(frozen=True)
class Clean:
    """The finished crystal as predicted from a state.

    Attributes:
        lattice: lengths in Å and angles in rad, [B, 6].
        turns: any matrix near the rotation of each block from its present to its final pose, [B, K, 3, 3].
        centroids: in Å with zero mean over the blocks, where they lie in the present cell before it becomes the final
            one and carries them along, [B, K, 3].
        torsions: anything near (cos, sin) of each final angle, [B, T, 2].
        contacts: logits [B, E, E] (node end, linker end); None where they were not asked for.
    """

    lattice: Tensor
    turns: Tensor
    centroids: Tensor
    torsions: Tensor
    contacts: Tensor | None = None


class Engineer(nn.Module):
    """The velocity of the flow, as a prediction of the finished crystal.

    Attributes:
        bf16: whether products of matrices inside the layers are taken in bfloat16, never those of geometry; off when
            it is made.
    """

    def __init__(self, settings: EngineerSettings | None = None):
        """Make an engineer with random weights (from torch's global generator, as all of torch's layers)."""
        super().__init__()
        self.settings = s = settings or EngineerSettings()
        self.bf16 = False
        self.initial_embed = InitialEmbed(s.width)
        self.interaction_layers = nn.ModuleList(
            Layer(s.width, s.heads, s.gaussians, s.reach_ang, s.directions) for _ in range(s.layers)
        )
        self.final_pool = Pool(s.width, s.heads, s.gaussians)
        self.rotation_output = Head("rot_output", s.width, 9)
        self.translation_output = Head("trans_output", s.width, 3)
        self.lattice_output = Head("lattice_output", s.width, 6)
        self.torsion_output = TorsionOutput(s.width, s.heads, s.gaussians)
        if s.sites:
            self.role_embed = nn.Embedding(3, s.width)  # other, donor, site
        if s.poses:
            self.pose_embed = nn.Linear(15, s.width, bias=False)
            self.angle_embed = nn.Linear(2, s.width, bias=False)
        self.vector_output = VectorOutput(s.width, s.gaussians) if s.vectors else None
        self.contact_head = ContactHead(s.width) if s.contact else None
        if s.relative:
            for head in (self.rotation_output, self.translation_output, self.lattice_output):
                start_at_zero(head.net)
            start_at_zero(self.torsion_output.torsion_output)

    def prepare(self, fixed: Stack, order: Tensor | None = None, inputs: Inputs | None = None) -> Prepared:
        """The inputs that no pose changes, with gradients where they are on.

        Args:
            order: number of each block, int64 [B, K]; equal blocks may be numbered in any way. None: as they stand.
            inputs: from `inputs(fixed)`, where they are at hand.
        """
        inputs = self.inputs(fixed) if inputs is None else inputs
        if order is None:
            order = torch.arange(fixed.blocks.shape[1], device=fixed.blocks.device).expand_as(fixed.blocks)
        static = self.initial_embed.static(inputs.types, inputs.chemistry)
        static = static + waves_of_number(per_atom(order, inputs.block), self.settings.width).to(static)
        if self.settings.sites:
            static = static + self.role_embed(inputs.donor.long() + 2 * inputs.site.long())
        return Prepared(fixed, inputs, static)

    def inputs(self, fixed: Stack) -> Inputs:
        """The tokens that this engineer sees of a stack; no parameters."""
        return inputs_of(fixed, hydrogens=self.settings.hydrogens, sites=self.settings.sites)

    def forward(self, prepared: Prepared, state: State, t: Tensor, contacts: bool = False) -> Clean:
        """The finished crystal as seen from a state at time t [B] (0 noise, 1 data); contacts on request."""
        inputs, blocks = prepared.inputs, prepared.fixed.blocks
        here = places(prepared.fixed, inputs, state)
        cells = cells_of(state.lattice)
        tokens, pairs = self._trunk(prepared, here, state, cells, t)
        member = inputs.block[:, None, :] == torch.arange(blocks.shape[1], device=blocks.device)[:, None]
        member = member & inputs.real[:, None, :] & blocks[..., None]
        from_centre = (here.points - per_atom(state.centroids, inputs.block)).norm(dim=-1)
        pooled = self.final_pool.pool(tokens, from_centre, member)
        logits, moves = None, None
        if self.contact_head is not None and (contacts or self.vector_output is not None):
            logits = self._contacts(inputs, here, cells, tokens, t)
        if self.vector_output is not None:
            ways = None if logits is None else ways_to_partners(logits, inputs, here, cells)
            asked = self.vector_output(tokens, pairs, 1.0 - t, ways)
            weight = torch.where(inputs.end != NONE, 1.0, ENDLESS).to(asked)
            moves = rigid_moves(asked, here.points - per_atom(state.centroids, inputs.block), member * weight[:, None])
        clean = self._heads(prepared, state, pooled, t, moves)
        return Clean(
            lattice=clean[0],
            turns=clean[1],
            centroids=clean[2],
            torsions=self._torsions(prepared, state, here, tokens, t),
            contacts=logits if contacts else None,
        )

    def contact_logits(self, prepared: Prepared, state: State, t: Tensor) -> Tensor:
        """Logits [B, E, E] of which linker end each node end meets, for poses as reliable as at time t [B].

        Raises:
            ValueError: the engineer has no contact head.
        """
        if self.contact_head is None:
            raise ValueError("this engineer has no contact head (settings.contact)")
        here, cells = places(prepared.fixed, prepared.inputs, state), cells_of(state.lattice)
        tokens, _ = self._trunk(prepared, here, state, cells, t)
        return self._contacts(prepared.inputs, here, cells, tokens, t)

    def _contacts(self, inputs: Inputs, here: Places, cells: Tensor, tokens: Tensor, t: Tensor) -> Tensor:
        head = cast(ContactHead, self.contact_head)
        logits: Tensor = head(tokens, inputs, here, cells, t)
        return logits

    def _trunk(self, prepared: Prepared, here: Places, state: State, cells: Tensor, t: Tensor) -> tuple[Tensor, Pairs]:
        """Tokens [B, N, D] after all layers, and what the layers know of pairs."""
        inputs = prepared.inputs
        static = prepared.static
        if self.settings.poses:
            static = static + self.pose_embed(self._pose(inputs, here, state, t))
        x = self.initial_embed(static, here.points / ANG_PER_NM, in_nm(state.lattice), t)
        pairs = self._pairs(inputs, here.points, cells)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16):
            for layer in self.interaction_layers:
                x = layer(x, pairs)
        return x, pairs

    @torch.no_grad()
    def _pose(self, inputs: Inputs, here: Places, state: State, t: Tensor) -> Tensor:
        """Direction of each token's end, offset from its block's centroid, place, lattice; of size 1; [B, N, 15]."""
        b, n, _ = here.points.shape
        if inputs.ends.shape[1]:
            direction = functional.normalize(here.behind - here.centres, dim=-1)
            index = inputs.end.clamp_min(0)[..., None].expand(-1, -1, 3)
            own = torch.gather(direction, 1, index) * (inputs.end != NONE)[..., None]
        else:
            own = torch.zeros_like(here.points)
        offset = here.points - per_atom(state.centroids, inputs.block)
        mean, wide, narrow = lattice_scales(t)
        scale = (1.0 - t)[:, None] * wide + t[:, None] * narrow
        lattice = ((state.lattice - mean) / scale)[:, None].expand(b, n, 6)
        return torch.cat([own, offset / OFFSET_ANG, here.points / SPREAD_ANG, lattice], -1)

    @torch.no_grad()
    def _pairs(self, inputs: Inputs, points: Tensor, cells: Tensor) -> Pairs:
        """Smeared distances, displacements and masks of all pairs of tokens, once for all layers."""
        s, (b, n, _) = self.settings, points.shape
        displacement = points[:, None] - points[:, :, None]  # [B, i, j, 3] from i to j
        if s.periodic:
            displacement = nearest_image(displacement, cells)
        distances = displacement.norm(dim=-1)
        features = points.new_empty(b, n, s.gaussians + 3 * s.directions, n)
        smearing = cast(Layer, self.interaction_layers[0]).edge_dist_embedder
        smearing.fill(features[:, :, : s.gaussians], distances)
        if s.directions:
            features[:, :, s.gaussians :] = displacement.transpose(-1, -2) / DISPLACEMENT_ANG
        seen = inputs.real[:, None, :]
        if s.neighbor_rule == "first_by_index":
            seen = first(seen & (distances < s.reach_ang), FIRST_ATOMS)
        seen = seen.expand(b, n, n)
        bonded = torch.gather(seen, 2, inputs.bonded)
        blocked = ~seen
        if s.neighbor_rule == "first_by_index":  # a bond edge is there even where the pair is beyond the cap
            linked = torch.zeros(b, n, n, device=seen.device)
            linked.scatter_add_(2, inputs.bonded, (inputs.bond >= 0).to(linked))
            blocked = blocked & (linked == 0)
        return Pairs(features, blocked, inputs.bonded, inputs.bond, bonded)

    def _heads(
        self, prepared: Prepared, state: State, pooled: Tensor, t: Tensor, moves: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Lattice, turns and centroids from the tokens of blocks [B, K, D]."""
        blocks = prepared.fixed.blocks
        real = blocks[..., None].to(pooled.dtype)
        mean = (pooled * real).sum(1) / real.sum(1).clamp_min(1.0)
        lattice, turns = self.lattice_output(mean), self.rotation_output(pooled).unflatten(-1, (3, 3))
        move = self.translation_output(pooled)
        if not self.settings.relative:
            lattice = functional.softplus(lattice)
            lattice = torch.cat([lattice[:, :3] * ANG_PER_NM, lattice[:, 3:]], -1)
            return lattice, turns, recelled(centred(move * ANG_PER_NM, blocks), lattice, state.lattice)
        rest = (1.0 - t)[:, None, None]
        turns, move = torch.eye(3).to(turns) + rest[..., None] * turns, WAY_ANG * rest * move
        if moves is not None:
            move, turns = move + moves[0], turns + moves[1]
        mean, before, after = lattice_scales(t)
        keep, scale = guess(t[:, None], before, after)
        lattice = mean + keep * (state.lattice - mean) + scale * lattice
        return lattice, turns, state.centroids + centred(move, blocks)

    def _torsions(self, prepared: Prepared, state: State, here: Places, tokens: Tensor, t: Tensor) -> Tensor:
        """(cos, sin) of the final angles, [B, T, 2]."""
        quads, inputs = prepared.fixed.quads, prepared.inputs
        b, count = quads.shape[:2]
        if not count:
            return tokens.new_zeros(b, 0, 2)
        index = torch.gather(inputs.token_of, 1, quads.reshape(b, -1))
        four = torch.gather(tokens, 1, index[..., None].expand(-1, -1, tokens.shape[-1])).view(b, count, 4, -1)
        with torch.no_grad():
            atoms = torch.gather(here.points, 1, index[..., None].expand(-1, -1, 3)).view(b, count, 4, 3)
            apart = here.points[:, None] - atoms[:, :, 1:3].mean(2)[:, :, None]
            apart = nearest_image(apart, cells_of(state.lattice)) if self.settings.periodic else apart
            distances = apart.norm(dim=-1)
            seen = inputs.real[:, None] & (distances < TORSION_REACH_ANG)
            if self.settings.neighbor_rule == "first_by_index":
                seen = first(seen, FIRST_TORSION_ATOMS)
        known = torch.stack([state.angles.cos(), state.angles.sin()], -1)
        own = self.angle_embed(known) if self.settings.poses else None
        out: Tensor = self.torsion_output.predict(four, own, tokens, distances, ~seen)
        if not self.settings.relative:
            return out
        cosine, sine = state.angles.cos(), state.angles.sin()
        rest = (1.0 - t)[:, None]
        x, y = 1.0 + rest * out[..., 0], rest * out[..., 1]
        return torch.stack([x * cosine - y * sine, x * sine + y * cosine], -1)


def guess(t: Tensor, before: float | Tensor, after: float | Tensor) -> tuple[Tensor, Tensor]:
    """Share of the present state in the best linear guess of the end, and the spread of what is then left to predict.

    For x = (1 - t) x0 + t x1 with independent x0 and x1 of spreads `before` and `after` about one mean, as in the
    preconditioning of Karras et al. (arXiv 2206.00364).
    """
    variance = (t * after) ** 2 + ((1.0 - t) * before) ** 2
    return t * after**2 / variance, (1.0 - t) * before * after / variance.sqrt()


def lattice_scales(like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean of crystals' lattices, and spreads of the prior and of crystals about it, [6] each."""
    before, after = (torch.tensor(x).repeat_interleave(3).to(like) for x in LATTICE_SPREADS)
    return torch.tensor(LATTICE_MEANS).to(like), before, after


def in_nm(lattice: Tensor) -> Tensor:
    """Lengths in nm and angles in rad, [B, 6], of lengths in Å and angles in rad."""
    return torch.cat([lattice[:, :3] / ANG_PER_NM, lattice[:, 3:]], -1)


def first(seen: Tensor, count: int) -> Tensor:
    """The first `count` True entries of the last dimension."""
    return seen & (seen.cumsum(-1) <= count)
