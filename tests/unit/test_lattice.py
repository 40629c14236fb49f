import numpy as np
import pytest
import torch
from ase.geometry import cellpar_to_cell, find_mic
from hypothesis import given
from hypothesis import strategies as st

from promof_hpc.geometry.lattice import cells_of, lattice_of, nearest_image, upright

lengths = st.lists(st.floats(4, 30), min_size=3, max_size=3)
angles = st.lists(st.floats(65, 115), min_size=3, max_size=3)


def _lattice(values: list[float]) -> torch.Tensor:
    lattice = torch.tensor([values], dtype=torch.float64)
    lattice[:, 3:] = torch.deg2rad(lattice[:, 3:])
    return lattice


@given(lengths, angles)
def test_cells_are_those_of_ase_and_give_their_six_numbers_back(abc, degrees):
    lattice = _lattice([*abc, *degrees])
    cells = cells_of(lattice)
    np.testing.assert_allclose(cells[0], cellpar_to_cell([*abc, *degrees]), atol=1e-9)
    np.testing.assert_allclose(lattice_of(cells), lattice, atol=1e-9)


@pytest.mark.parametrize("degrees", [(120, 120, 120), (140, 140, 140), (60, 60, 130), (40, 90, 140)])
def test_angles_that_no_cell_can_have_give_a_cell_with_volume(degrees):
    cell = cells_of(_lattice([10, 10, 10, *degrees]))
    assert torch.isfinite(cell).all()
    assert torch.linalg.det(cell) > 50


@given(st.integers(0, 10_000))
def test_an_upright_cell_describes_the_same_crystal(seed):
    generator = torch.Generator().manual_seed(seed)
    cells = torch.randn(5, 3, 3, generator=generator, dtype=torch.float64) * 5
    points = torch.randn(5, 7, 3, generator=generator, dtype=torch.float64) * 5
    turned, rotation = upright(cells)
    np.testing.assert_allclose(torch.linalg.det(rotation), 1, atol=1e-9)
    np.testing.assert_allclose(torch.triu(turned, 1), 0, atol=1e-9)
    assert (torch.diagonal(turned, dim1=-2, dim2=-1) > 0).all()
    old = points @ torch.linalg.inv(cells)
    new = (points @ rotation) @ torch.linalg.inv(turned)
    hand = torch.sign(torch.linalg.det(cells))[:, None, None]  # a negated lattice is the same lattice
    np.testing.assert_allclose(new, old * hand, atol=1e-7)


@given(lengths, angles, st.integers(0, 10_000))
def test_short_displacements_find_their_nearest_image(abc, degrees, seed):
    cells = cells_of(_lattice([*abc, *degrees]))
    heights = 1.0 / torch.linalg.inv(cells)[0].norm(dim=0)
    generator = torch.Generator().manual_seed(seed)
    direction = torch.nn.functional.normalize(torch.randn(20, 3, generator=generator, dtype=torch.float64), dim=-1)
    short = direction * heights.min() * 0.49 * torch.rand(20, 1, generator=generator, dtype=torch.float64)
    far = short + torch.randint(-3, 4, (20, 3), generator=generator).double() @ cells[0]
    found = nearest_image(far[None], cells)[0]
    np.testing.assert_allclose(found, short, atol=1e-9)
    np.testing.assert_allclose(found.norm(dim=-1), find_mic(far.numpy(), cells[0].numpy())[1], atol=1e-9)
