import time
from pathlib import Path

import numpy as np
import pytest
from ase.build import molecule
from ase.io import read

from promof_hpc.chem.validity import check
from promof_hpc.structure import Structure

DATA = Path(__file__).parents[1] / "data"


def load(name: str) -> Structure:
    return Structure.from_ase(read(DATA / name))


@pytest.fixture(scope="module")
def mof5() -> Structure:
    return load("mofs/EDUSIF_clean.cif")


def without(structure: Structure, atoms: list[int]) -> Structure:
    keep = np.setdiff1d(np.arange(len(structure)), atoms)
    return Structure(structure.numbers[keep], structure.positions[keep], structure.cell)


def with_atom(structure: Structure, number: int, position: np.ndarray) -> Structure:
    return Structure(np.append(structure.numbers, number), np.vstack([structure.positions, position]), structure.cell)


@pytest.mark.parametrize("name", ["EDUSIF_clean", "FIQCEN_clean", "RUBTAK01_SL", "OFERUN_clean"])
def test_real_frameworks_pass_every_check(name: str) -> None:
    checks = check(load(f"mofs/{name}.cif"))
    assert checks.failed == ()
    assert checks.h_complete


def test_solvent_is_a_lone_molecule_with_its_formula() -> None:
    checks = check(load("cases/C021_solvent_in_pores.cif"))
    assert checks.lone_molecule
    assert checks.lone_formula == "3 × H2O"
    assert checks.failed == ("lone_molecule (3 × H2O)",)


def test_cyanide_framework_lacks_no_hydrogen() -> None:
    checks = check(load("cases/C000_base_pmx3.cif"))
    assert checks.h_complete
    assert checks.failed == ("no_hydrogen",)


def test_aromatic_carbon_without_its_hydrogen_is_under_coordinated(mof5: Structure) -> None:
    checks = check(without(mof5, [int(np.nonzero(mof5.numbers == 1)[0][0])]))
    assert checks.failed == ("under_coordinated_c",)
    assert not checks.h_complete


def test_methyl_without_one_hydrogen_is_under_coordinated() -> None:
    zif8 = load("mofs/OFERUN_clean.cif")
    hydrogens = np.nonzero(zif8.numbers == 1)[0]
    carbons = zif8.positions[zif8.numbers == 6]
    delta = zif8.positions[hydrogens][:, None] - carbons
    delta -= np.round(np.linalg.solve(zif8.cell.T, delta.reshape(-1, 3).T).T).reshape(delta.shape) @ zif8.cell
    nearest = np.linalg.norm(delta, axis=-1).argmin(1)
    methyl = next(h for h, c in zip(hydrogens, nearest, strict=True) if (nearest == c).sum() == 3)
    assert check(without(zif8, [int(methyl)])).failed == ("under_coordinated_c",)


def test_second_atom_on_one_site_overlaps(mof5: Structure) -> None:
    assert "overlap" in check(with_atom(mof5, 6, mof5.positions[40] + [0.4, 0, 0])).failed


def test_hydrogen_between_two_carbons_is_over_coordinated() -> None:
    shared = Structure(np.array([6, 1, 6], np.int32), np.array([[0, 0, 0], [1.1, 0, 0], [2.2, 0, 0.0]]), np.eye(3) * 8)
    assert check(shared).over_coordinated_h


@pytest.mark.parametrize(("number", "field"), [(6, "over_coordinated_c"), (7, "over_coordinated_n")])
def test_five_neighbours_are_too_many_for_carbon_and_nitrogen(number: int, field: str) -> None:
    trigonal_bipyramid = np.array([[0, 0, 0], [1, 0, 0], [-0.5, 0.87, 0], [-0.5, -0.87, 0], [0, 0, 1], [0, 0, -1.0]])
    crowded = Structure(np.array([number, 6, 6, 6, 6, 6], np.int32), 1.6 * trigonal_bipyramid, np.eye(3) * 9)
    assert getattr(check(crowded), field)


@pytest.mark.parametrize(
    ("name", "partner"), [("CH3OH", 6), ("CH3OH", 8), ("CH4", 6), ("C2H4", 6), ("C6H6", 6), ("CH3CONH2", 6)]
)
def test_small_molecules_are_complete_until_a_hydrogen_goes(name: str, partner: int) -> None:
    whole = Structure.from_ase(molecule(name, vacuum=6.0, pbc=True))
    assert check(whole).h_complete
    heavy = np.nonzero(whole.numbers > 1)[0]
    for hydrogen in np.nonzero(whole.numbers == 1)[0]:
        distance = np.linalg.norm(whole.positions[heavy] - whole.positions[hydrogen], axis=1)
        if whole.numbers[heavy[distance.argmin()]] == partner:
            assert not check(without(whole, [int(hydrogen)])).h_complete


@pytest.mark.parametrize("name", ["C2H2", "HCN", "CO2", "CO"])
def test_linear_and_triple_bonded_carbon_is_complete(name: str) -> None:
    assert not check(Structure.from_ase(molecule(name, vacuum=6.0, pbc=True))).under_coordinated_c


@pytest.mark.parametrize(("distance", "complete"), [(1.67, True), (2.2, False)])
def test_bare_oxygen_on_one_metal_is_an_oxo_ligand_or_a_water_without_hydrogen(distance: float, complete: bool) -> None:
    metal_oxygen = Structure(np.array([23, 8], np.int32), np.array([[0, 0, 0], [0, 0, distance]]), np.eye(3) * 8)
    assert check(metal_oxygen).h_complete is complete


def test_hundred_atoms_take_less_than_a_tenth_of_a_second(mof5: Structure) -> None:
    check(mof5)
    begin = time.process_time()
    check(mof5)
    assert time.process_time() - begin < 0.1
