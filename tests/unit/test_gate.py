from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase.io import read

from promof_hpc.assembly.gate import Expected, GateReason, GateResult, expect, gate
from promof_hpc.chem.blocks import Block, Contact, Decomposition
from promof_hpc.chem.decompose import decompose
from promof_hpc.structure import Structure

DATA = Path(__file__).parents[1] / "data"


def taken_apart(name: str) -> Decomposition:
    return decompose(Structure.from_ase(read(DATA / name)))


def put_together(blocks: list[Block], cell: np.ndarray) -> Structure:
    return Structure(
        np.concatenate([b.numbers for b in blocks]), np.concatenate([b.positions for b in blocks]), np.asarray(cell)
    )


@pytest.fixture(scope="module")
def mof5() -> Decomposition:
    return taken_apart("mofs/EDUSIF_clean.cif")


def reasons(result: GateResult) -> set[GateReason]:
    return {f.reason for f in result.failures}


def moved(found: Decomposition, factor: float) -> tuple[Structure, Expected]:
    """The blocks kept rigid while cell and centroids scale."""
    blocks = [replace(b, centroid=b.centroid * factor) for b in found.blocks]
    return put_together(blocks, found.structure.cell * factor), expect(blocks, found.contacts)


@pytest.mark.parametrize(
    "name", ["mofs/EDUSIF_clean.cif", "mofs/FIQCEN_clean.cif", "mofs/RUBTAK01_SL.cif", "mofs/OFERUN_clean.cif"]
)
def test_known_frameworks_pass(name: str) -> None:
    found = taken_apart(name)
    structure = put_together(list(found.blocks), found.structure.cell)
    assert gate(structure, expect(found.blocks, found.contacts)) == GateResult(True, 1.0, ())


def test_atoms_wrapped_into_the_cell_pass_when_their_images_are_given(mof5: Decomposition) -> None:
    expected = expect(mof5.blocks, mof5.contacts)
    straight = put_together(list(mof5.blocks), mof5.structure.cell)
    images = np.floor(straight.fractional).astype(np.int32)
    wrapped = Structure(straight.numbers, straight.positions - images @ straight.cell, straight.cell)
    assert gate(wrapped, replace(expected, images=images)).passed


def test_gas_of_separate_blocks_fails_as_free_fragments(mof5: Decomposition) -> None:
    result = gate(*moved(mof5, 1.3))
    assert GateReason.FREE_FRAGMENT in reasons(result)
    assert not result.passed
    assert result.score < 0.4  # nothing bonded, no net, only room


def test_collapsed_cell_fails_by_overlap_and_crowding(mof5: Decomposition) -> None:
    result = gate(*moved(mof5, 0.6))
    assert {GateReason.OVERLAP, GateReason.CROWDED} <= reasons(result)


@pytest.mark.parametrize("factor", [0.05, 0.2])
def test_cell_crushed_to_a_point_is_refused_without_an_error(mof5: Decomposition, factor: float) -> None:
    result = gate(*moved(mof5, factor))
    assert {GateReason.DENSITY, GateReason.CROWDED, GateReason.OVERLAP} <= reasons(result)
    assert 0.0 <= result.score < 0.5


def test_removed_linker_fails_as_other_blocks(mof5: Decomposition) -> None:
    incomplete = put_together(list(mof5.blocks[:-1]), mof5.structure.cell)
    assert reasons(gate(incomplete, expect(mof5.blocks, mof5.contacts))) == {GateReason.OTHER_BLOCKS}


def test_layer_fails_as_not_three_periodic(mof5: Decomposition) -> None:
    node = mof5.blocks[0]
    towards = {c.linker: c.sites.mean(0) @ node.rotation.T for c in mof5.contacts if c.node == 0}
    first = next(iter(towards.values()))
    kept = [k for k in range(len(mof5.blocks)) if k not in towards or abs(towards[k] @ first) < 0.9 * (first @ first)]
    assert len(kept) == len(mof5.blocks) - 2
    blocks = [mof5.blocks[k] for k in kept]
    contacts: list[Contact] = [
        replace(c, node=kept.index(c.node), linker=kept.index(c.linker)) for c in mof5.contacts if c.linker in kept
    ]
    result = gate(put_together(blocks, mof5.structure.cell), expect(blocks, contacts))
    assert GateReason.NOT_3D in reasons(result)
    assert reasons(result) <= {GateReason.NOT_3D, GateReason.NOT_ONE_NET}


def test_two_interpenetrated_nets_fail_as_not_one_net() -> None:
    found = taken_apart("cases/C000_base_pmx3.cif")
    result = gate(put_together(list(found.blocks), found.structure.cell), expect(found.blocks, found.contacts))
    assert reasons(result) == {GateReason.NOT_ONE_NET}


def test_linker_turned_away_leaves_contacts_open(mof5: Decomposition) -> None:
    quarter = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1.0]])
    turned = replace(mof5.blocks[-1], rotation=mof5.blocks[-1].rotation @ quarter)
    blocks = [*mof5.blocks[:-1], turned]
    result = gate(put_together(blocks, mof5.structure.cell), expect(blocks, mof5.contacts))
    assert reasons(result) & {GateReason.FREE_FRAGMENT, GateReason.MISSING_CONTACTS}
    # ten of twelve contacts are closed and the rest of the net stands
    assert 0.7 < result.score <= 0.95


def test_linker_that_slid_off_one_metal_is_loose() -> None:
    found = taken_apart("mofs/OFERUN_clean.cif")
    contacts = [c for c in found.contacts if c.linker == len(found.blocks) - 1]
    linker = found.blocks[-1]
    first, second = (linker.positions[c.donors[0]] for c in contacts)
    # Zn-N of 1.98 Å becomes 2.4 Å at one end, which is no bond, and 1.6 Å at the other, which is no overlap
    slid = replace(linker, centroid=linker.centroid + 0.5 * (second - first) / np.linalg.norm(second - first))
    blocks = [*found.blocks[:-1], slid]
    result = gate(put_together(blocks, found.structure.cell), expect(blocks, found.contacts))
    assert reasons(result) == {GateReason.MISSING_CONTACTS, GateReason.LOOSE_LINKER}
    assert {f.detail for f in result.failures} == {"23 of 24", "Cc1ncc[n-]1 by 1 of 2 donors"}


def test_more_atoms_than_the_cap_fail(mof5: Decomposition) -> None:
    structure = put_together(list(mof5.blocks), mof5.structure.cell)
    result = gate(structure, expect(mof5.blocks, mof5.contacts), atom_cap=100)
    assert GateReason.TOO_MANY_ATOMS in reasons(result)


def test_another_linker_than_expected_is_told_by_key(mof5: Decomposition) -> None:
    expected = expect(mof5.blocks, mof5.contacts)
    renamed = replace(expected, keys=(*expected.keys[:-1], "C"))
    result = gate(put_together(list(mof5.blocks), mof5.structure.cell), renamed)
    assert reasons(result) == {GateReason.OTHER_BLOCKS}
    assert result.failures[0].detail == "-1 C, +1 O=C([O-])c1ccc(C(=O)[O-])cc1"


def test_score_grades_rejects_by_their_distance_from_the_crystal(mof5: Decomposition) -> None:
    scores = [gate(*moved(mof5, f)).score for f in (1.0, 1.12, 1.4)]
    assert scores[0] == 1.0
    assert scores[0] > scores[1] >= scores[2]
    overlapping = [gate(*moved(mof5, f)).score for f in (0.9, 0.85, 0.7)]
    assert overlapping[0] > overlapping[1] > overlapping[2]
