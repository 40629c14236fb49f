"""CIF files: every data block with atoms as a crystal, read right or refused with a typed reason."""

from __future__ import annotations

from pathlib import Path

import gemmi
import numpy as np

from promof_hpc.errors import Refused
from promof_hpc.screen.cif_block import HALL_TAGS, NAME_TAGS, NUMBER_TAGS, Block, Sites, read_cell, read_sites
from promof_hpc.screen.cif_text import parse, too_big
from promof_hpc.screen.contacts import check_cell, check_physical, closest_pair, same_atoms
from promof_hpc.screen.evidence import Declared, check_second_reader
from promof_hpc.screen.refusals import DEFAULT_LIMITS, ReadLimits, ReadReason, ReadStructure
from promof_hpc.screen.symmetry import (
    Operators,
    expand,
    fits_cell,
    identity,
    operators_from_hall,
    operators_from_list,
    operators_from_name,
    operators_from_number,
)
from promof_hpc.structure import Structure

SHORTEST_HEAVY_ANG = 0.9  # no two nuclei heavier than hydrogen come closer (N≡N has 1.10 Å)


def read_cif(
    source: Path | bytes, *, block: str | None = None, limits: ReadLimits = DEFAULT_LIMITS
) -> list[ReadStructure]:
    """Read the crystals of a CIF (plain or gzip).

    Symmetry comes from the operator list; without one, from the Hall symbol, the Hermann-Mauguin name or the number;
    without any, the crystal is P1. An operator list that is only the identity is P1 whatever name stands beside it,
    unless that name, applied to the listed sites, gives another possible crystal and neither formula nor density
    says which is meant: then the file is refused.

    Args:
        block: name of the only block to read, as `block_names` gives it; all blocks with atoms by default.

    Raises:
        Refused: the first block that cannot be read right.
    """
    document = parse(source if isinstance(source, bytes) else read_bytes(source, limits), limits)
    named = _named_blocks(document)
    if block is not None:
        named = [(name, content) for name, content in named if name == block]
        if not named:
            raise Refused(ReadReason.CHANGED, f"the data block '{block}' is not in the file any more; start again")
    return [_read_block(content, name if len(document) > 1 else "", limits) for name, content in named]


def block_names(source: bytes, limits: ReadLimits = DEFAULT_LIMITS) -> list[str]:
    """Names of the blocks that list atoms (all blocks where none does); a repeated name gets `~2`, `~3`.

    Raises:
        Refused: the text is not a CIF.
    """
    return [name for name, _ in _named_blocks(parse(source, limits))]


def read_bytes(path: Path, limits: ReadLimits = DEFAULT_LIMITS) -> bytes:
    """Bytes of a file no larger than the limit (what a gzip file holds is bounded again).

    Raises:
        Refused: too big; nothing of it is parsed then.
    """
    with path.open("rb") as file:
        data = file.read(limits.file_bytes + 1)
    if len(data) > limits.file_bytes:
        raise too_big(path.stat().st_size, limits)
    return data


def _named_blocks(document: gemmi.cif.Document) -> list[tuple[str, gemmi.cif.Block]]:
    with_sites = [b for b in document if b.find_loop("_atom_site_fract_x")]
    named, seen = [], dict[str, int]()
    for content in with_sites or list(document):
        seen[content.name] = seen.get(content.name, 0) + 1
        suffix = f"~{seen[content.name]}" if seen[content.name] > 1 else ""
        named.append((content.name + suffix, content))
    return named


def _read_block(content: gemmi.cif.Block, name: str, limits: ReadLimits) -> ReadStructure:
    block = Block.from_gemmi(content)
    sites = read_sites(block)
    cell, angles = read_cell(block)
    check_cell(cell)
    reading = _Reading(sites, cell, Declared.from_block(block), limits)
    primary, suggested = _groups(block, angles)
    structure, operators = reading.only_crystal(primary)
    notes = list(sites.notes)
    for other in suggested:
        reading.refuse_rival(structure, other)
        notes.append(f"{other.origin} is not what the operator list says, and was ignored")
    if operators.origin == identity().origin:
        notes.append("no symmetry is stated: taken as P1")
    check_second_reader(content, sites, structure, operators)
    return ReadStructure(structure, name, tuple(notes))


def _groups(block: Block, angles: tuple[float, float, float]) -> tuple[list[Operators], list[Operators]]:
    """Groups that the block states (two where a name leaves the origin open), and those of a name beside operators."""
    hall, name, number = block.text(*HALL_TAGS), block.text(*NAME_TAGS), block.number(*NUMBER_TAGS)
    it_number = None if number is None else int(number)
    triplets = block.operators
    if not triplets:
        return _from_names(hall, name, it_number, angles) or [identity()], []
    listed = operators_from_list(triplets)
    try:
        named = _from_names(hall, name, None if name else it_number, angles)
    except Refused:  # an unknown name beside operators decides nothing
        return [listed], []
    return [listed], [] if any(group.keys() == listed.keys() for group in named) else named


def _from_names(
    hall: str | None, name: str | None, number: int | None, angles: tuple[float, float, float]
) -> list[Operators]:
    if hall is not None:
        try:
            return [operators_from_hall(hall)]
        except Refused:
            if name is None:
                raise
    if name is not None:
        return operators_from_name(name, number, angles)
    return operators_from_number(number) if number is not None else []


class _Reading:
    """The sites of one block and what any crystal made of them must agree with."""

    def __init__(self, sites: Sites, cell: np.ndarray, declared: Declared, limits: ReadLimits):
        self.sites = sites
        self.cell = cell
        self.declared = declared
        self.limits = limits

    def only_crystal(self, groups: list[Operators]) -> tuple[Structure, Operators]:
        """The one crystal that the groups make of the sites, and its group.

        Raises:
            Refused: none is possible, or two different ones are.
        """
        possible, refusals = [], []
        for operators in groups:
            try:
                possible.append((self._crystal(operators), operators))
            except Refused as refusal:
                refusals.append(refusal)
        if not possible:
            raise refusals[0]
        structure, operators = possible[0]
        for rival, other in possible[1:]:
            if not same_atoms(structure, rival, self.limits.merge_ang):
                raise Refused(
                    ReadReason.SYMMETRY_UNKNOWN,
                    f"{operators.origin} and {other.origin} give different crystals; "
                    "write _space_group_symop_operation_xyz",
                )
        return structure, operators

    def _crystal(self, operators: Operators) -> Structure:
        """The atoms under these operators, in agreement with cell, physics and declared properties."""
        if not fits_cell(operators, self.cell):
            raise Refused(
                ReadReason.CONTRADICTION, f"{operators.origin} does not fit the cell; correct the cell or the symmetry"
            )
        fractional, source = expand(self.sites.fractional, self.cell, operators, self.limits)
        structure = Structure(self.sites.numbers[source], fractional @ self.cell, self.cell)
        check_physical(structure, [self.sites.labels[k] for k in source], self.limits)
        self.declared.check(structure)
        return structure

    def refuse_rival(self, structure: Structure, operators: Operators) -> None:
        """Refuse where these operators make another crystal that could as well be meant.

        Where all atoms of the cell are listed, the images of a site fall on or next to listed atoms, so that a stale
        name is recognised by overlap; where only the asymmetric unit is listed, they do not. A few sites tell.

        Raises:
            Refused: as said; not where formula or density fix the number of atoms.
        """
        if self.declared.fixes_count or not fits_cell(operators, self.cell):
            return
        few = max(1, self.limits.atoms // len(operators))
        numbers, fractional = self.sites.numbers, self.sites.fractional
        try:
            images, source = expand(fractional[:few], self.cell, operators, self.limits)
        except Refused:
            return
        rival = Structure(
            np.concatenate([numbers[:few][source], numbers[few:]]),
            np.concatenate([images, fractional[few:]]) @ self.cell,
            self.cell,
        )
        heavy = Structure(rival.numbers[rival.numbers > 1], rival.positions[rival.numbers > 1], self.cell)
        if closest_pair(rival, self.limits.shortest_ang) or (len(heavy) and closest_pair(heavy, SHORTEST_HEAVY_ANG)):
            return
        if rival.density < self.limits.heaviest_g_per_cm3 and not same_atoms(structure, rival, self.limits.merge_ang):
            raise Refused(
                ReadReason.CONTRADICTION,
                f"the operator list gives {structure.formula}, {operators.origin} another possible crystal; "
                "correct one of them, or state _chemical_formula_sum and _cell_formula_units_Z",
            )
