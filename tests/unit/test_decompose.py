from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk
from ase.io import read
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from promof_hpc.chem.blocks import DecomposeReason, Decomposition, Kind
from promof_hpc.chem.decompose import decompose, node_class
from promof_hpc.errors import Refused
from promof_hpc.geometry.topology import labelled_net, net_key
from promof_hpc.structure import Structure

DATA = Path(__file__).parents[1] / "data"
BDC = "O=C([O-])c1ccc(C(=O)[O-])cc1"
ZN4O = "[Zn][Zn][Zn][Zn][O]"
ZR6 = "[Zr]" * 6 + "[H]" * 4 + "[O]" * 8


def load(name: str) -> Structure:
    return Structure.from_ase(read(DATA / name))


@pytest.fixture(scope="module")
def mof5() -> Structure:
    return load("mofs/EDUSIF_clean.cif")


@pytest.fixture(scope="module")
def known() -> dict[str, Decomposition]:
    names = ["EDUSIF_clean", "FIQCEN_clean", "RUBTAK01_SL", "OFERUN_clean"]
    return {n: decompose(load(f"mofs/{n}.cif")) for n in names}


def keys(decomposition: Decomposition) -> Counter[str]:
    return Counter(b.key for b in decomposition.blocks)


@pytest.mark.parametrize(
    ("name", "blocks", "charge"),
    [
        ("mofs/EDUSIF_clean.cif", {ZN4O: 2, BDC: 6}, -2),
        ("cases/C000_base_pmx1.cif", {ZN4O: 2, BDC: 6}, -2),
        ("mofs/FIQCEN_clean.cif", {"[Cu][Cu]": 6, "O=C([O-])c1cc(C(=O)[O-])cc(C(=O)[O-])c1": 4 * 2}, -3),
        ("mofs/RUBTAK01_SL.cif", {ZR6: 1, BDC: 6}, -2),
        ("mofs/OFERUN_clean.cif", {"[Zn]": 6, "Cc1ncc[n-]1": 12}, -1),
        ("cases/C000_base_pmx3.cif", {"[Zn]": 2, "[C-]#N": 4}, -1),
    ],
)
def test_known_frameworks_come_apart_into_their_known_blocks(name: str, blocks: dict[str, int], charge: int) -> None:
    found = decompose(load(name))
    assert keys(found) == blocks
    assert {b.charge for b in found.blocks if b.kind is Kind.ORGANIC} == {charge}
    assert found.dimensionality == 3


def test_interpenetration_is_counted() -> None:
    assert decompose(load("cases/C000_base_pmx3.cif")).components == 2
    assert decompose(load("cases/C000_base_pmx1.cif")).components == 1


@pytest.mark.parametrize("name", ["EDUSIF_clean", "FIQCEN_clean", "RUBTAK01_SL", "OFERUN_clean"])
def test_blocks_put_together_are_the_crystal(known: dict[str, Decomposition], name: str) -> None:
    found = known[name]
    atoms = np.concatenate([b.atoms for b in found.blocks])
    assert sorted(atoms.tolist()) == list(range(len(found.structure)))
    for block in found.blocks:
        there = found.structure.positions[block.atoms] + block.images @ found.structure.cell
        assert np.abs(block.positions - there).max() < 1e-10
        assert np.allclose(block.rotation @ block.rotation.T, np.eye(3))
        assert np.linalg.det(block.rotation) == pytest.approx(1.0)
        assert np.abs(block.local.mean(0)).max() < 1e-10
        fractional = np.linalg.solve(found.structure.cell.T, block.centroid)
        assert ((fractional > -1e-5) & (fractional < 1)).all()


def test_contacts_of_mof5_are_six_carboxylates_per_node(known: dict[str, Decomposition]) -> None:
    found = known["EDUSIF_clean"]
    assert Counter(c.node for c in found.contacts) == {0: 6, 1: 6}
    assert all(c.elements.tolist() == [8, 8] for c in found.contacts)
    for contact in found.contacts:
        node, linker = found.blocks[contact.node], found.blocks[contact.linker]
        zinc = node.local[node.numbers == 30]
        nearest = np.linalg.norm(contact.sites[:, None] - zinc[None], axis=-1).min(1)
        assert nearest == pytest.approx(1.94, abs=0.05)
        # both donors have the carboxylate C behind them, at a C-O bond's length
        assert np.linalg.norm(contact.behind[0] - contact.behind[1]) < 1e-9
        assert np.linalg.norm(contact.sites - contact.behind, axis=1) == pytest.approx(1.27, abs=0.05)
        # the site in the node's frame is the donor in the linker's frame
        world = linker.positions[contact.donors] + contact.shift @ found.structure.cell
        assert np.abs(node.local @ node.rotation.T + node.centroid - node.positions).max() < 1e-10
        assert np.abs(contact.sites @ node.rotation.T + node.centroid - world).max() < 1e-9
        behind = contact.linker_behind @ linker.rotation.T + linker.centroid + contact.shift @ found.structure.cell
        assert np.abs(contact.behind @ node.rotation.T + node.centroid - behind).max() < 1e-9


def test_imidazolate_contacts_look_from_nitrogen_to_the_middle_of_its_carbons(known: dict[str, Decomposition]) -> None:
    for contact in known["OFERUN_clean"].contacts:
        assert contact.elements.tolist() == [7]
        assert 0.6 < np.linalg.norm(contact.sites - contact.behind) < 0.95


def test_terephthalate_turns_about_its_two_carboxylates(known: dict[str, Decomposition]) -> None:
    linker = known["EDUSIF_clean"].blocks[-1]
    assert linker.mol is not None
    assert linker.torsions.shape == (2, 4)
    for i, a, b, j in linker.torsions.tolist():
        assert all(linker.mol.GetBondBetweenAtoms(*pair) is not None for pair in ((i, a), (a, b), (b, j)))
        assert not linker.mol.GetBondBetweenAtoms(a, b).IsInRing()


def test_equal_linkers_of_different_frameworks_share_key_and_numbering(known: dict[str, Decomposition]) -> None:
    ours, theirs = known["EDUSIF_clean"].blocks[-1], known["RUBTAK01_SL"].blocks[-1]
    assert ours.key == theirs.key
    assert ours.numbers.tolist() == theirs.numbers.tolist()
    assert ours.torsions.tolist() == theirs.torsions.tolist()


def test_blocks_are_metals_first_then_by_mass(known: dict[str, Decomposition]) -> None:
    for found in known.values():
        kinds = [int(b.kind) for b in found.blocks]
        assert kinds == sorted(kinds)
        assert all(p < q for p, q, _ in found.edges)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_result_does_not_depend_on_atom_order_orientation_origin_or_cell(seed: int) -> None:
    start = load("mofs/RUBTAK01_SL.cif")
    before = decompose(start)
    rng = np.random.default_rng(seed)
    turn = Rotation.random(random_state=seed).as_matrix()
    basis = np.array([[1, 0, 0], [rng.integers(-1, 2), 1, 0], [rng.integers(-1, 2), rng.integers(-1, 2), 1]])
    order = rng.permutation(len(start))
    cell = basis @ start.cell @ turn.T
    positions = (start.positions @ turn.T + rng.uniform(-3, 3, 3) + rng.integers(-1, 2, (len(start), 3)) @ cell)[order]
    after = decompose(Structure(start.numbers[order], positions, cell))
    assert keys(after) == keys(before)
    assert [b.charge for b in after.blocks] == [b.charge for b in before.blocks]
    assert net_key(labelled_net(after)) == net_key(labelled_net(before))


def test_supercell_is_reduced_unless_told_otherwise() -> None:
    single = load("mofs/RUBTAK01_SL.cif")
    double = Structure.from_ase(single.to_ase().repeat((2, 1, 1)))
    assert keys(decompose(double)) == keys(decompose(single))
    assert keys(decompose(double, reduce=False)) == {ZR6: 2, BDC: 12}


def test_unreduced_cell_keeps_its_atom_indices(mof5: Structure) -> None:
    found = decompose(mof5, reduce=False)
    assert found.structure is mof5
    for block in found.blocks:
        assert block.numbers.tolist() == mof5.numbers[block.atoms].tolist()


def expect_refusal(structure: Structure, reason: DecomposeReason, **options: int) -> Refused:
    with pytest.raises(Refused) as refusal:
        decompose(structure, **options)
    assert refusal.value.reason is reason
    assert node_class(structure) == ("rod" if reason is DecomposeReason.ROD else f"undecomposed ({reason})") or options
    return refusal.value


def test_infinite_aluminium_hydroxide_chain_is_a_rod() -> None:
    assert "1-periodic" in expect_refusal(load("cases/C000_base_pmx2.cif"), DecomposeReason.ROD).detail


def test_solvent_is_refused_with_its_formula() -> None:
    solvated = load("cases/C021_solvent_in_pores.cif")
    assert expect_refusal(solvated, DecomposeReason.FREE_FRAGMENT).detail == "3 × H2O"


def test_missing_hydrogens_are_refused(mof5: Structure) -> None:
    keep = np.ones(len(mof5), bool)
    keep[np.nonzero(mof5.numbers == 1)[0][:1]] = False
    bare = Structure(mof5.numbers[keep], mof5.positions[keep], mof5.cell)
    assert "hydrogen missing" in expect_refusal(bare, DecomposeReason.ODD_CHEMISTRY).detail


def test_two_models_on_one_site_are_an_overlap(mof5: Structure) -> None:
    numbers = np.append(mof5.numbers, mof5.numbers[-1])
    positions = np.vstack([mof5.positions, mof5.positions[-1] + 0.3])
    expect_refusal(Structure(numbers, positions, mof5.cell), DecomposeReason.OVERLAP)


def test_one_carbon_too_many_is_a_valence(mof5: Structure) -> None:
    ring = mof5.numbers == 6
    hydrogen = int(np.nonzero(mof5.numbers == 1)[0][0])
    carbon = np.nonzero(ring)[0]
    vectors = mof5.positions[carbon] - mof5.positions[hydrogen]
    vectors -= np.round(np.linalg.solve(mof5.cell.T, vectors.T).T) @ mof5.cell
    nearest = vectors[np.linalg.norm(vectors, axis=1).argmin()]
    above = np.cross(nearest, [0.3, 0.5, 0.8])
    above *= 1.05 / np.linalg.norm(above)
    extra = np.array([mof5.positions[hydrogen] + nearest + sign * above for sign in (1, -1)])
    crowded = Structure(np.append(mof5.numbers, [1, 1]), np.vstack([mof5.positions, extra]), mof5.cell)
    expect_refusal(crowded, DecomposeReason.VALENCE)


def test_structures_without_metal_or_carbon_are_refused() -> None:
    expect_refusal(Structure.from_ase(bulk("C", "diamond", a=3.57)), DecomposeReason.NO_METAL)
    expect_refusal(Structure.from_ase(bulk("ZnO", "wurtzite", a=3.25, c=5.2)), DecomposeReason.NO_CARBON)


def test_conjugated_chain_through_the_crystal_is_an_infinite_linker() -> None:
    positions = np.array([[0, 0, 0], [1.23, 0.7, 0], [0, -2.0, 0]])
    chain = Structure(np.array([6, 6, 30], np.int32), positions, np.diag([2.46, 9.0, 9.0]))
    expect_refusal(chain, DecomposeReason.INFINITE_LINKER)


def test_large_cells_are_refused_by_their_primitive_size(mof5: Structure) -> None:
    detail = expect_refusal(mof5, DecomposeReason.TOO_LARGE, max_atoms=100).detail
    assert "106 atoms" in detail


def test_metal_without_a_linker_is_a_free_fragment(mof5: Structure) -> None:
    # a sodium ion in the middle of the pore
    grid = np.stack(np.meshgrid(*[np.arange(0, 1, 0.1)] * 3, indexing="ij"), -1).reshape(-1, 3)
    delta = grid[:, None] - mof5.fractional[None]
    distance = np.linalg.norm((delta - np.round(delta)) @ mof5.cell, axis=-1).min(1)
    sodium = grid[distance.argmax()] @ mof5.cell
    with_ion = Structure(np.append(mof5.numbers, 11), np.vstack([mof5.positions, sodium]), mof5.cell)
    assert "[Na]" in expect_refusal(with_ion, DecomposeReason.FREE_FRAGMENT).detail


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("mofs/EDUSIF_clean.cif", "discrete"),
        ("cases/C000_base_pmx2.cif", "rod"),
        ("cases/C000_base_pmx3.cif", "interpenetrated"),
        ("cases/C021_solvent_in_pores.cif", "undecomposed (free_fragment)"),
    ],
)
def test_node_class_labels_every_structure(name: str, label: str) -> None:
    assert node_class(load(name)) == label


def test_node_class_of_a_layer_is_layered(mof5: Structure) -> None:
    found = decompose(mof5)
    # of the six terephthalates drop the two that run along the same direction
    node = found.blocks[0]
    towards = {c.linker: c.sites.mean(0) @ node.rotation.T for c in found.contacts if c.node == 0}
    first = next(iter(towards))
    parallel = [k for k, v in towards.items() if abs(v @ towards[first]) > 0.9 * np.linalg.norm(v) ** 2]
    assert len(parallel) == 2
    keep = np.setdiff1d(np.arange(len(mof5)), np.concatenate([found.blocks[k].atoms for k in parallel]))
    cell = found.structure
    assert node_class(Structure(cell.numbers[keep], cell.positions[keep], cell.cell)) == "layered"


def test_node_class_never_raises() -> None:
    broken = Structure(np.array([30, 6], np.int32), np.full((2, 3), np.nan), np.eye(3) * 5)
    assert node_class(broken).startswith("undecomposed")
