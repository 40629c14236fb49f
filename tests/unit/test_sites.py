from pathlib import Path

import numpy as np
import pytest
from ase.io import read
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from promof_hpc.assembly.sites import FITTING_BITE_ANG, Site, bite, bite_mismatch, directions, unit, worst_bite
from promof_hpc.chem.blocks import Decomposition
from promof_hpc.chem.decompose import decompose
from promof_hpc.structure import Structure

MOFS = Path(__file__).parents[1] / "data" / "mofs"


def taken_apart(name: str) -> Decomposition:
    return decompose(Structure.from_ase(read(MOFS / f"{name}.cif")))


def ends(found: Decomposition) -> tuple[list[Site], list[Site]]:
    node = [Site(c.sites, c.behind, c.elements) for c in found.contacts]
    linker = [Site(found.blocks[c.linker].local[c.donors], c.linker_behind, c.elements) for c in found.contacts]
    return node, linker


def random_site(rng: np.random.Generator, donors: int) -> Site:
    return Site(rng.normal(size=(donors, 3)), rng.normal(size=(donors, 3)), rng.choice([7, 8], donors))


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), donors=st.integers(1, 5))
def test_bite_does_not_change_with_place_orientation_or_donor_order(seed: int, donors: int) -> None:
    rng = np.random.default_rng(seed)
    site = random_site(rng, donors)
    turn, move, order = Rotation.random(random_state=seed).as_matrix(), rng.normal(size=3), rng.permutation(donors)
    moved = Site((site.positions @ turn.T + move)[order], (site.behind @ turn.T + move)[order], site.elements[order])
    assert bite_mismatch(site, moved) == pytest.approx(0.0, abs=1e-9)


def test_bite_mismatch_of_stretched_carboxylate_is_its_closed_form() -> None:
    def carboxylate(half_width: float) -> Site:
        oxygens = np.array([[half_width, 0, 0], [-half_width, 0, 0.0]])
        return Site(oxygens, np.array([[0, 0.6, 0], [0, 0.6, 0.0]]), np.array([8, 8]))

    # six distances: O-O, C-C (0) and four equal C-O
    narrow, wide = 1.1, 1.4
    d_co = np.hypot(wide, 0.6) - np.hypot(narrow, 0.6)
    expected = np.sqrt(((2 * (wide - narrow)) ** 2 + 4 * d_co**2) / 6)
    assert bite_mismatch(carboxylate(narrow), carboxylate(wide)) == pytest.approx(expected)


def test_different_elements_or_counts_never_fit() -> None:
    rng = np.random.default_rng(0)
    one, two = random_site(rng, 1), random_site(rng, 2)
    other = Site(one.positions, one.behind, 15 - one.elements)
    assert bite_mismatch(one, two) == float("inf")
    assert bite_mismatch(one, other) == float("inf")


def test_more_donors_than_can_be_permuted_give_a_lower_bound() -> None:
    rng = np.random.default_rng(1)
    large = Site(rng.normal(size=(8, 3)), rng.normal(size=(8, 3)), np.full(8, 8))
    order = rng.permutation(8)
    assert bite_mismatch(large, Site(large.positions[order], large.behind[order], large.elements)) < 1e-9


@pytest.mark.parametrize("name", ["EDUSIF_clean", "FIQCEN_clean", "RUBTAK01_SL", "OFERUN_clean"])
def test_linkers_of_a_crystal_fit_its_own_nodes(name: str) -> None:
    assert worst_bite(*ends(taken_apart(name))) < 1e-6


def test_terephthalate_fits_the_zirconium_node_and_imidazolate_does_not() -> None:
    zirconium, _ = ends(taken_apart("RUBTAK01_SL"))
    _, terephthalate = ends(taken_apart("EDUSIF_clean"))
    _, imidazolate = ends(taken_apart("OFERUN_clean"))
    assert worst_bite(zirconium, terephthalate) < FITTING_BITE_ANG
    assert worst_bite(zirconium, imidazolate) == float("inf")


def test_directions_of_a_straight_contact_are_parallel() -> None:
    sites, behind = np.array([[2.0, 0, 0]]), np.array([[3.2, 0, 0]])
    assert directions(sites, behind, np.zeros(3)) == pytest.approx(np.array([[1, 0, 0], [1, 0, 0.0]]))


def test_monatomic_linker_points_from_the_centre() -> None:
    site = np.array([[0, 0, 2.5]])
    assert directions(site, site, np.array([0, 0, 0.5])) == pytest.approx(np.array([[0, 0, 1], [0, 0, 1.0]]))


def test_both_ends_of_a_bdc_contact_point_at_each_other() -> None:
    found = taken_apart("EDUSIF_clean")
    contact = found.contacts[0]
    node, linker = found.blocks[contact.node], found.blocks[contact.linker]
    from_node = directions(contact.sites, contact.behind, np.zeros(3)) @ node.rotation.T
    donors = linker.local[contact.donors]
    from_linker = directions(donors, contact.linker_behind, np.zeros(3)) @ linker.rotation.T
    assert from_node[0] @ from_linker[0] == pytest.approx(-1.0, abs=1e-3)
    assert from_node[0] @ from_node[1] == pytest.approx(1.0, abs=1e-3)


def test_bite_is_a_distance_matrix() -> None:
    site = random_site(np.random.default_rng(2), 3)
    table = bite(site.positions, site.behind)
    assert table == pytest.approx(table.T)
    assert table[0, 4] == pytest.approx(np.linalg.norm(site.positions[0] - site.behind[1]))


def test_unit_vectors_have_length_one_and_zero_stays_zero() -> None:
    assert np.linalg.norm(unit(np.array([[3.0, 4, 0], [0, 0, 0]])), axis=1) == pytest.approx([1.0, 0.0])
