"""What the engineer sees of components before any pose: tokens, chemical features, bonds, ends; no parameters.

A token is an atom, or a site: a place at a node where a donor must come. Nine nodes of ten are single metal atoms,
whose orientation shows in nothing but their sites. Hydrogen on carbon can be left out: rigid blocks carry it along.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np
import torch
from rdkit import Chem
from torch import Tensor

from promof_hpc.assembly.components import BuildingBlock, Components, End
from promof_hpc.assembly.stack import Stack, place
from promof_hpc.policy.state import State, at_blocks

FEATURES = 38
HYBRIDISATIONS = (
    Chem.HybridizationType.SP,
    Chem.HybridizationType.SP2,
    Chem.HybridizationType.SP3,
    Chem.HybridizationType.SP3D,
    Chem.HybridizationType.SP3D2,
)
BONDS = (Chem.BondType.SINGLE, Chem.BondType.DOUBLE, Chem.BondType.TRIPLE, Chem.BondType.AROMATIC)
NONE = -1


@dataclass(frozen=True)
class Inputs:
    """Tokens and ends of B component sets, padded to N tokens, P sites, E ends of either side, d bonds of one token.

    Attributes:
        tokens: number of the token's point among the A atoms followed by the P sites, int64 [B, N].
        real: False in padding, [B, N].
        types: atomic number of the atom, or of the donor that a site waits for, int64 [B, N].
        chemistry: features of `atom_features`; 0 for nodes and sites, [B, N, 38].
        block: block of the token, int64 [B, N].
        site: True for sites, [B, N]; `donor` True for atoms that linkers bind with.
        end: end that the token belongs to among node ends followed by linker ends, int64 [B, N]; -1 for others.
        bonded: tokens bonded to each token, int64 [B, N, d]; `bond` the type of the bond (as `BONDS`), -1 for none.
        token_of: token of each atom, int64 [B, A]; 0 where it has none.
        group: blocks with equal numbers are interchangeable, int64 [B, K].
        site_local: sites in the frames of their blocks in Å, [B, P, 3]; `site_behind` what lies behind their donors.
        site_block: int64 [B, P].
        site_share: weight of each site in the centre of each node end, [B, E, P].
        donor_share: weight of each atom in the centre of each linker end, [B, E, A]; `back_share` in what lies behind.
        ends: True for real ends, [B, E].
        end_block: block of each end, node ends followed by linker ends, int64 [B, 2E].
        node_pattern: equal numbers may meet, int64 [B, E]; `linker_pattern` likewise; -1 and -2 in padding.
        end_share: weight of each token in each end, node ends followed by linker ends, [B, 2E, N].
    """

    tokens: Tensor
    real: Tensor
    types: Tensor
    chemistry: Tensor
    block: Tensor
    site: Tensor
    donor: Tensor
    end: Tensor
    bonded: Tensor
    bond: Tensor
    token_of: Tensor
    group: Tensor
    site_local: Tensor
    site_behind: Tensor
    site_block: Tensor
    site_share: Tensor
    donor_share: Tensor
    back_share: Tensor
    ends: Tensor
    end_block: Tensor
    node_pattern: Tensor
    linker_pattern: Tensor
    end_share: Tensor

    def take(self, rows: Tensor) -> Inputs:
        """The component sets `rows`, int64 [B']."""
        return Inputs(*(getattr(self, f.name)[rows] for f in fields(self)))

    def like(self, x: Tensor) -> Inputs:
        """The same on the device of a tensor, real numbers in its precision."""
        named = {f.name: getattr(self, f.name) for f in fields(self)}
        return Inputs(**{n: v.to(x) if v.is_floating_point() else v.to(x.device) for n, v in named.items()})

    @property
    def allowed(self) -> Tensor:
        """True where a node end may meet a linker end: equal patterns, no padding; [B, E, E]."""
        return self.node_pattern[:, :, None] == self.linker_pattern[:, None, :]


@dataclass(frozen=True)
class Places:
    """Where the tokens and ends of B assemblies are at their present poses, in Å.

    Attributes:
        points: of every token, [B, N, 3].
        centres: of every end, node ends followed by linker ends, [B, 2E, 3].
        behind: what lies behind every end, [B, 2E, 3]: the same place for two ends that meet.
    """

    points: Tensor
    centres: Tensor
    behind: Tensor


@torch.no_grad()
def places(fixed: Stack, inputs: Inputs, state: State) -> Places:
    """Tokens and ends at the poses of a state."""
    atoms = place(fixed, state.poses())
    sites = at_blocks(inputs.site_local, inputs.site_block, state)
    far = at_blocks(inputs.site_behind, inputs.site_block, state)
    points = torch.cat([atoms, sites], 1)
    return Places(
        points=torch.gather(points, 1, inputs.tokens[..., None].expand(-1, -1, 3)),
        centres=torch.cat([inputs.site_share @ sites, inputs.donor_share @ atoms], 1),
        behind=torch.cat([inputs.site_share @ far, inputs.back_share @ atoms], 1),
    )


def inputs_of(fixed: Stack, *, hydrogens: bool = True, sites: bool = False) -> Inputs:
    """The tokens of a stack. Rows with the same components object are filled in once.

    Args:
        hydrogens: False leaves out hydrogen on carbon unless a torsion is measured at it.
        sites: whether node sites are tokens.
    """
    unique = {id(c): c for c in fixed.components}
    number = {key: k for k, key in enumerate(unique)}
    tables = [_Table.of(c, hydrogens, sites) for c in unique.values()]
    rows = torch.tensor([number[id(c)] for c in fixed.components], dtype=torch.long)
    padded = _padded(list(unique.values()), tables, fixed.numbers.shape[1], fixed.blocks.shape[1])
    return padded.take(rows).like(fixed.local)


def atom_features(mol: Chem.Mol) -> np.ndarray:
    """Features of every atom, float32 [n, 38], with the columns of MOFFlow-2.

    Aromatic; number of bonds 0-6 or other; sp, sp2, sp3, sp3d, sp3d2 or other; implicit valence 0-6 or other;
    charge -1, 0, 1 or other; in a ring of 3 to 8 atoms; number of rings 0-3 or more.
    """
    rings = mol.GetRingInfo()
    rows = []
    for atom in mol.GetAtoms():
        k = atom.GetIdx()
        rows.append(
            [
                float(atom.GetIsAromatic()),
                *_one_hot(atom.GetDegree(), range(7)),
                *_one_hot(atom.GetHybridization(), HYBRIDISATIONS),
                *_one_hot(atom.GetValence(Chem.ValenceType.IMPLICIT), range(7)),
                *_one_hot(atom.GetFormalCharge(), (-1, 0, 1)),
                *(float(rings.IsAtomInRingOfSize(k, size)) for size in range(3, 9)),
                *_one_hot(rings.NumAtomRings(k), range(4)),
            ]
        )
    return np.array(rows, np.float32).reshape(-1, FEATURES)


def _one_hot(value: object, known: Sequence[object]) -> list[float]:
    """One-hot with a last place for everything else."""
    hits = [float(value == k) for k in known]
    return [*hits, float(not any(hits))]


@lru_cache(maxsize=8192)
def _chemistry(mol: Chem.Mol) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features [n, 38], bonds (atom, atom, type) [b, 3] and whether each atom is hydrogen on carbon [n]."""
    bonds = [(b.GetBeginAtomIdx(), b.GetEndAtomIdx(), BONDS.index(b.GetBondType())) for b in mol.GetBonds()]
    plain = [a.GetAtomicNum() == 1 and all(n.GetAtomicNum() == 6 for n in a.GetNeighbors()) for a in mol.GetAtoms()]
    return atom_features(mol), np.array(bonds, int).reshape(-1, 3), np.array(plain, bool)


@dataclass(frozen=True)
class _Table:
    """Tokens of one component set without padding; `sites` holds (end, site of the end)."""

    atoms: np.ndarray
    chemistry: np.ndarray
    bonds: list[tuple[int, int, int]]
    sites: list[tuple[int, int]]
    site_tokens: bool

    @classmethod
    def of(cls, components: Components, hydrogens: bool, sites: bool) -> _Table:
        atoms: list[np.ndarray] = []
        chemistry, bonds, first, count = [], [], 0, 0
        for block in components.blocks:
            kept, features, pairs = _atoms(block, hydrogens)
            place = np.full(len(block.numbers), NONE)
            place[kept] = np.arange(len(kept)) + count
            for a, b, kind in pairs:
                if place[a] >= 0 and place[b] >= 0:
                    bonds += [(int(place[a]), int(place[b]), int(kind)), (int(place[b]), int(place[a]), int(kind))]
            atoms.append(kept + first)
            chemistry.append(features[kept])
            first, count = first + len(block.numbers), count + len(kept)
        listed = [(e, s) for e, end in enumerate(components.node_ends) for s in range(len(end.site.elements))]
        return cls(np.concatenate(atoms), np.concatenate(chemistry), bonds, listed, sites)

    def __len__(self) -> int:
        return len(self.atoms) + (len(self.sites) if self.site_tokens else 0)


def _atoms(block: BuildingBlock, hydrogens: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Atoms that are tokens, features of all atoms, and bonds."""
    if block.mol is None:
        n = len(block.numbers)
        return np.arange(n), np.zeros((n, FEATURES), np.float32), np.zeros((0, 3), int)
    features, bonds, plain = _chemistry(block.mol)
    keep = np.ones(len(plain), bool) if hydrogens else ~plain
    if block.torsions is not None:
        keep[block.torsions.quads.ravel()] = True
    return np.flatnonzero(keep), features, bonds


def _padded(many: Sequence[Components], tables: Sequence[_Table], a: int, k: int) -> Inputs:
    """Tables side by side; `a` and `k` are the stack's sizes."""
    u = len(many)
    n = max(map(len, tables), default=0)
    p = max((len(t.sites) for t in tables), default=0)
    e = max((len(c.node_ends) for c in many), default=0)
    degree = [np.bincount([i for i, _, _ in t.bonds], minlength=1).max() for t in tables]
    d = max([1, *degree])
    ints = {"tokens": (u, n), "types": (u, n), "block": (u, n), "end": (u, n), "bonded": (u, n, d), "bond": (u, n, d)}
    ints |= {"token_of": (u, a), "group": (u, k), "site_block": (u, p), "node_pattern": (u, e)}
    ints |= {"linker_pattern": (u, e), "end_block": (u, 2 * e)}
    reals = {"chemistry": (u, n, FEATURES), "site_local": (u, p, 3), "site_behind": (u, p, 3), "site_share": (u, e, p)}
    reals |= {"donor_share": (u, e, a), "back_share": (u, e, a), "end_share": (u, 2 * e, n)}
    flags = {"real": (u, n), "site": (u, n), "donor": (u, n), "ends": (u, e)}
    arrays = {name: np.zeros(shape, np.int64) for name, shape in ints.items()}
    arrays |= {name: np.zeros(shape, np.float32) for name, shape in reals.items()}
    arrays |= {name: np.zeros(shape, bool) for name, shape in flags.items()}
    for name, empty in (("end", NONE), ("bond", NONE), ("node_pattern", -1), ("linker_pattern", -2)):
        arrays[name][:] = empty
    for row, (components, table) in enumerate(zip(many, tables, strict=True)):
        own = {name: array[row] for name, array in arrays.items()}
        _fill_tokens(own, components, table, a)
        _fill_ends(own, components, table)
    return Inputs(**{name: torch.from_numpy(array) for name, array in arrays.items()})


def _fill_tokens(own: dict[str, np.ndarray], c: Components, table: _Table, a: int) -> None:
    """Write tokens, bonds and interchangeable blocks of one row."""
    m, n = len(table.atoms), len(table)
    own["tokens"][:m], own["real"][:n] = table.atoms, True
    own["types"][:m], own["block"][:m] = c.numbers[table.atoms], c.block_of[table.atoms]
    own["chemistry"][:m] = table.chemistry
    own["token_of"][table.atoms] = np.arange(m)
    if table.site_tokens:
        ends = [c.node_ends[e] for e, _ in table.sites]
        own["tokens"][m:n], own["site"][m:n] = a + np.arange(n - m), True
        own["types"][m:n] = [end.site.elements[s] for end, (_, s) in zip(ends, table.sites, strict=True)]
        own["block"][m:n] = [end.block for end in ends]
    used = np.zeros(len(own["real"]), int)
    for i, j, kind in table.bonds:
        own["bonded"][i, used[i]], own["bond"][i, used[i]] = j, kind
        used[i] += 1
    keys: dict[tuple[int, str, int], int] = {}
    for k, block in enumerate(c.blocks):
        own["group"][k] = keys.setdefault((int(block.kind), block.key, len(block.numbers)), len(keys))
    own["group"][len(c.blocks) :] = NONE


def _fill_ends(own: dict[str, np.ndarray], c: Components, table: _Table) -> None:
    """Write sites and ends of one row."""
    e, m = len(own["ends"]), len(table.atoms)
    patterns: dict[tuple[int, ...], int] = {}
    for row, (number, s) in enumerate(table.sites):
        end = c.node_ends[number]
        shift = c.blocks[end.block].local.mean(0)
        own["site_local"][row], own["site_behind"][row] = end.site.positions[s] - shift, end.site.behind[s] - shift
        own["site_block"][row] = end.block
        own["site_share"][number, row] = 1.0 / len(end.site.elements)
        if table.site_tokens:
            own["end"][m + row] = number
            own["end_share"][number, m + row] = 1.0 / len(end.site.elements)
    for number, end in enumerate(c.node_ends):
        own["end_block"][number] = end.block
        own["node_pattern"][number] = patterns.setdefault(end.pattern, len(patterns))
    for number, end in enumerate(c.linker_ends):
        own["end_block"][e + number] = end.block
        own["linker_pattern"][number] = patterns.setdefault(end.pattern, len(patterns))
        _fill_linker_end(own, c, end, number, e)
    own["ends"][: len(c.node_ends)] = True


def _fill_linker_end(own: dict[str, np.ndarray], c: Components, end: End, number: int, e: int) -> None:
    """Write the atoms of one linker end."""
    first = int(c.first_atom[end.block])
    share = 1.0 / len(end.donors)
    for donor, backs in zip(end.donors, end.backs, strict=True):
        token = own["token_of"][first + donor]
        own["donor_share"][number, first + donor] += share
        own["back_share"][number, first + backs] += share / len(backs)
        own["end_share"][e + number, token] += share
        own["donor"][token], own["end"][token] = True, e + number
