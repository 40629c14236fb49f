"""From a component set to components: a template for each node, a conformer and a split into contacts for each linker.

Nodes fix how many contacts of which elements there are; the splits of the linkers must add up to just that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from enum import StrEnum
from functools import lru_cache

import numpy as np
from rdkit import Chem, rdBase

from promof_hpc.assembly.components import BuildingBlock, Components, End, linker_end
from promof_hpc.assembly.exact_cover import Choice, exact_cover
from promof_hpc.assembly.linker_library import LinkerLibrary, Offers, Option
from promof_hpc.assembly.node_library import NodeLibrary
from promof_hpc.assembly.sites import FITTING_BITE_ANG, Site, worst_bite
from promof_hpc.chem.blocks import Kind
from promof_hpc.chem.bonds import IS_METAL
from promof_hpc.chem.conformer import embed
from promof_hpc.chem.donors import Split, smiles_molecule
from promof_hpc.chem.linkers import rotatable_bonds
from promof_hpc.chem.sequence import ComponentSet, canonical_key
from promof_hpc.errors import Refused
from promof_hpc.geometry.torsion import Torsions

ATOM_CAP, BLOCK_CAP = 150, 30
EMBED_TIMEOUT_S = 5
DRAWS = 6  # of templates and splits, until every contact finds an end that bites like it
CARBON = 6


class RealiseReason(StrEnum):
    """Why a component set cannot be put together, before any assembly is tried."""

    EMPTY = "empty"
    TOO_MANY_BLOCKS = "too_many_blocks"
    UNKNOWN_NODE = "unknown_node"
    NOT_A_LINKER = "not_a_linker"
    TOO_MANY_ATOMS = "too_many_atoms"
    NO_DONOR = "no_donor"
    NO_EXACT_COVER = "no_exact_cover"
    NOT_EMBEDDED = "not_embedded"


class Realiser:
    """Turns component sets into components with the libraries of one training set.

    Args:
        nodes: templates of the metal nodes.
        linkers: splits of the linkers.
        atom_cap: larger sets are refused; so are those of more than `block_cap` blocks.
    """

    def __init__(
        self, nodes: NodeLibrary, linkers: LinkerLibrary, *, atom_cap: int = ATOM_CAP, block_cap: int = BLOCK_CAP
    ):
        self.nodes, self.linkers = nodes, linkers
        self.atom_cap, self.block_cap = atom_cap, block_cap
        self._templates: dict[str, dict[Offers, list[int]]] = {}
        for key, indices in nodes.by_key.items():
            by_pattern = self._templates.setdefault(key, {})
            for k in indices:
                by_pattern.setdefault(nodes.templates[k].pattern, []).append(k)

    def realise(
        self, component_set: ComponentSet, generator: np.random.Generator, conformer_seed: int = 0
    ) -> Components:
        """Components of a set, blocks in its order; equal linkers share one conformer.

        Equal nodes share one template. Only where no splits add up that way may equal nodes have contacts of
        different patterns. Among equal linkers splits may differ; the likeliest that add up are taken. Up to `DRAWS`
        draws are made, until every contact finds an end on the other side that bites like it; else the best is taken.

        Args:
            generator: draws the templates by how often they occurred in training.
            conformer_seed: of the linkers' conformers.

        Raises:
            Refused: with a `RealiseReason`.
        """
        self._check_nodes(component_set)
        keys = self._linker_keys(component_set)
        self._check_atoms(component_set.nodes, keys)
        asked = ComponentSet(component_set.nodes, keys)
        options = self._options(asked)
        best, least = None, np.inf
        for _ in range(DRAWS):
            cover = self._cover(asked, options, generator)
            linkers = [_linker(key, conformer_seed) for key in keys]  # the dearest step last; it is cached
            components = self._components(asked, linkers, cover)
            misfit = _bite_misfit_ang(components)
            if best is None or misfit < least:
                best, least = components, misfit
            if least <= FITTING_BITE_ANG:
                break
        assert best is not None  # at least one draw
        return best

    def _check_nodes(self, asked: ComponentSet) -> None:
        if not asked.nodes or not asked.linkers:
            raise Refused(RealiseReason.EMPTY, f"{len(asked.nodes)} nodes and {len(asked.linkers)} linkers")
        blocks = len(asked.nodes) + len(asked.linkers)
        if blocks > self.block_cap:
            raise Refused(RealiseReason.TOO_MANY_BLOCKS, f"{blocks} blocks, the cap is {self.block_cap}")
        unknown = [key for key in asked.nodes if key not in self._templates]
        if unknown:
            raise Refused(RealiseReason.UNKNOWN_NODE, f"'{unknown[0]}' is not in the node library")

    def _linker_keys(self, asked: ComponentSet) -> tuple[str, ...]:
        """Canonical keys of the linkers.

        Raises:
            Refused: one is no linker, or too large.
        """
        key_of = {text: _linker_key(text, self.atom_cap) for text in dict.fromkeys(asked.linkers)}
        return tuple(key_of[text] for text in asked.linkers)

    def _check_atoms(self, nodes: Sequence[str], linkers: Sequence[str]) -> None:
        in_nodes = sum(len(self.nodes.templates[self.nodes.by_key[key][0]].numbers) for key in nodes)
        molecules = [smiles_molecule(key) for key in linkers]
        atoms = in_nodes + sum(mol.GetNumAtoms() for mol in molecules if mol is not None)
        if atoms > self.atom_cap:
            raise Refused(RealiseReason.TOO_MANY_ATOMS, f"{atoms} atoms, the cap is {self.atom_cap}")

    def _options(self, asked: ComponentSet) -> dict[str, tuple[Option, ...]]:
        """How each linker may be split.

        Raises:
            Refused: one cannot be bound.
        """
        options = {key: _options(self.linkers, key) for key in asked.linkers}
        without = [key for key, found in options.items() if not found]
        if without:
            raise Refused(RealiseReason.NO_DONOR, f"{without[0]} has no atom like those that bind metals in training")
        return options

    def _cover(
        self, asked: ComponentSet, options: Mapping[str, Sequence[Option]], generator: np.random.Generator
    ) -> tuple[list[int], list[Split]]:
        """The template of every node and the split of every linker.

        The likeliest cover under log weights with Gumbel noise is a draw by weight (Gumbel-max), among the templates
        that the linkers can meet.

        Raises:
            Refused: no splits add up to any templates.
        """
        nodes, linkers = Counter(asked.nodes), Counter(asked.linkers)
        drawn = {key: self._drawn(key, generator) for key in nodes}
        found = exact_cover(
            [Choice(n, tuple(self._templates[key]), tuple(w for w, _ in drawn[key])) for key, n in nodes.items()],
            [
                Choice(n, tuple(o.offers for o in options[key]), tuple(o.log_weight for o in options[key]))
                for key, n in linkers.items()
            ],
        )
        if found is None:
            raise Refused(RealiseReason.NO_EXACT_COVER, _mismatch(nodes, linkers))
        taken = {key: iter(t) for key, t in zip(nodes, found[0], strict=True)}
        split = {key: iter(t) for key, t in zip(linkers, found[1], strict=True)}
        return (
            [drawn[key][next(taken[key])][1] for key in asked.nodes],
            [options[key][next(split[key])].split for key in asked.linkers],
        )

    def _components(
        self, asked: ComponentSet, linkers: Sequence[BuildingBlock], cover: tuple[list[int], list[Split]]
    ) -> Components:
        templates, splits = cover
        nodes = [self._node(k) for k in templates]
        node_ends = [end for block, k in enumerate(templates) for end in self._node_ends(block, k)]
        linker_ends = [
            linker_end(len(nodes) + k, linkers[k], np.array(donors, np.int32))
            for k, split in enumerate(splits)
            for donors in split
        ]
        return Components((*nodes, *linkers), tuple(node_ends), tuple(linker_ends), asked.sequence)

    def _drawn(self, key: str, generator: np.random.Generator) -> list[tuple[float, int]]:
        """For each pattern of a node key: its log weight with Gumbel noise, and a template drawn by weight."""
        drawn = []
        for indices in self._templates[key].values():
            counts = np.array([self.nodes.templates[k].count for k in indices], float)
            noisy = np.log(counts) + generator.gumbel(size=len(counts))
            drawn.append((float(noisy.max()), indices[int(noisy.argmax())]))
        return drawn

    def _node(self, template: int) -> BuildingBlock:
        found = self.nodes.templates[template]
        return BuildingBlock(Kind.METAL, found.key, found.numbers, found.local, None, None, template)

    def _node_ends(self, block: int, template: int) -> list[End]:
        """The ends of a node, by place."""
        contacts = sorted(self.nodes.templates[template].contacts, key=lambda c: tuple(c.sites.mean(0)))
        return [End(block, Site(c.sites, c.behind, c.elements), np.zeros(0, np.int32), ()) for c in contacts]


@lru_cache(maxsize=2048)
def _options(library: LinkerLibrary, key: str) -> tuple[Option, ...]:
    return library.options(key)


def _linker(key: str, seed: int) -> BuildingBlock:
    """A linker with a conformer.

    Raises:
        Refused: it has none.
    """
    found = _embedded(key, seed)
    if isinstance(found, Refused):
        raise Refused(RealiseReason.NOT_EMBEDDED, found.detail)
    return found


@lru_cache(maxsize=4096)
def _embedded(key: str, seed: int) -> BuildingBlock | Refused:
    """A linker with a conformer, or why it has none: a failure takes longest, so it is remembered as well."""
    try:
        found = embed(key, seed, timeout_s=EMBED_TIMEOUT_S)
    except Refused as refusal:
        return refusal
    bonds = np.array([(b.GetBeginAtomIdx(), b.GetEndAtomIdx()) for b in found.mol.GetBonds()], int).reshape(-1, 2)
    quads = rotatable_bonds(found.mol)
    numbers = np.array([a.GetAtomicNum() for a in found.mol.GetAtoms()], np.int32)
    torsions = Torsions.of(len(numbers), bonds, quads) if len(quads) else None
    return BuildingBlock(Kind.ORGANIC, key, numbers, found.positions[0], found.mol, torsions)


def _bite_misfit_ang(components: Components) -> float:
    """How much worse than any end of the other side the worst end bites, each kind of end looked at once."""
    nodes, linkers = (
        list({(e.site.positions.tobytes(), e.site.elements.tobytes()): e.site for e in ends}.values())
        for ends in (components.node_ends, components.linker_ends)
    )
    return max(worst_bite(nodes, linkers), worst_bite(linkers, nodes))


def _linker_key(text: str, atom_cap: int) -> str:
    """The canonical key of a linker.

    Raises:
        Refused: no molecule, not in one piece, with a metal, without carbon, or larger than a whole set may be.
    """
    with rdBase.BlockLogs():
        mol = Chem.MolFromSmiles(text) if text else None
    if mol is None:
        raise Refused(RealiseReason.NOT_A_LINKER, f"'{text[:80]}' is no valid SMILES")
    if mol.GetNumAtoms() > atom_cap:  # before anything else is done with it
        raise Refused(
            RealiseReason.TOO_MANY_ATOMS, f"a linker of {mol.GetNumAtoms()} heavy atoms, the cap is {atom_cap}"
        )
    numbers = [a.GetAtomicNum() for a in mol.GetAtoms()]
    if CARBON not in numbers or 0 in numbers or IS_METAL[numbers].any() or "." in text:
        raise Refused(RealiseReason.NOT_A_LINKER, f"'{text[:80]}' is not one molecule with carbon and without metals")
    return canonical_key(text)


def _mismatch(nodes: Mapping[str, int], linkers: Mapping[str, int]) -> str:
    """What was asked for, in words."""
    wanted, offered = (" + ".join(f"{n} {key}" for key, n in side.items()) for side in (nodes, linkers))
    return f"no splits of {offered} add up to the contacts of {wanted}"
