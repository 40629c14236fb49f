import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from promof_hpc.geometry.point_match import match_points

OCTAHEDRON = np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]], float) * 2.1
SQUARE = OCTAHEDRON[:4]


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.floats(0, 0.05))
def test_a_turned_shuffled_and_shaken_set_is_laid_back(seed, count, noise):
    generator = np.random.default_rng(seed)
    fixed = generator.normal(size=(count, 3)) * 2
    fixed -= fixed.mean(0)
    labels = [str(k) for k in generator.integers(0, 3, count)]
    order = generator.permutation(count)
    turned = (fixed @ Rotation.random(rng=generator).as_matrix().T)[order] + noise * generator.normal(size=(count, 3))
    found = match_points(turned, [labels[k] for k in order], fixed, labels)
    assert found is not None
    assert [labels[order[k]] for k in found.order] == labels
    assert found.fit.rmsd_ang <= 4 * noise + 1e-9
    assert np.linalg.det(found.fit.rotation) == pytest.approx(1.0)


@pytest.mark.parametrize("points", [OCTAHEDRON, SQUARE, SQUARE[:2], np.vstack([np.zeros(3), OCTAHEDRON])])
def test_symmetric_sets_are_laid_on_themselves_from_any_orientation(points):
    for turn in Rotation.random(20, rng=np.random.default_rng(1)).as_matrix():
        found = match_points(points @ turn.T, ["O"] * len(points), points, ["O"] * len(points))
        assert found is not None
        assert found.fit.rmsd_ang < 1e-9


def test_mirror_images_are_not_the_same():
    points = np.array([[1.0, 0, 0], [0, 2.0, 0], [0, 0, 3.0], [-1, -2, -3]])
    labels = list("abcd")
    found = match_points(points * [1, 1, -1], labels, points, labels)
    assert found is not None
    assert found.fit.rmsd_ang > 0.5


def test_labels_that_do_not_pair_up_give_no_match():
    assert match_points(SQUARE, ["O"] * 4, SQUARE, ["O", "O", "O", "N"]) is None
    assert match_points(SQUARE[:3], ["O"] * 3, SQUARE, ["O"] * 4) is None


def test_heavy_points_are_met_before_light_ones():
    fixed = np.vstack([np.zeros(3), SQUARE])
    moving = fixed.copy()
    moving[0] += 0.4
    labels = ["M", "O", "O", "O", "O"]
    misfit = []
    for weight in (1.0, 1e6):
        found = match_points(moving, labels, fixed, labels, np.array([weight, 1, 1, 1, 1]))
        assert found is not None
        misfit.append(np.linalg.norm(found.fit.apply(moving[found.order])[0] - fixed[0]))
    assert misfit[1] < 1e-3 < misfit[0]
