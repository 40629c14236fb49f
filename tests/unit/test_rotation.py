import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from promof_hpc.geometry import rotation

seeds = st.integers(0, 2**32 - 1)
angles = st.one_of(
    st.floats(0.0, np.pi),
    st.sampled_from([0.0, 1e-9, 1e-5, 1e-4, np.pi - 1e-3, np.pi - 1e-5, np.pi - 1e-9, np.pi]),
)


def _unit(seed: int) -> np.ndarray:
    v = np.random.default_rng(seed).normal(size=3)
    return v / np.linalg.norm(v)


@given(seeds, angles)
def test_vector_to_matrix_agrees_with_scipy(seed, angle):
    vector = _unit(seed) * angle
    np.testing.assert_allclose(rotation.from_vector(vector), Rotation.from_rotvec(vector).as_matrix(), atol=1e-12)


@given(seeds, angles)
def test_matrix_to_vector_returns_the_same_rotation_at_every_angle(seed, angle):
    matrix = Rotation.from_rotvec(_unit(seed) * angle).as_matrix()
    vector = rotation.to_vector(matrix)
    assert np.linalg.norm(vector) == pytest.approx(angle, abs=1e-9)
    np.testing.assert_allclose(Rotation.from_rotvec(vector).as_matrix(), matrix, atol=1e-9)


def test_maps_work_on_stacks_as_on_single_rotations():
    vectors = np.random.default_rng(1).uniform(-1.5, 1.5, size=(2, 5, 3))
    matrices = rotation.from_vector(vectors)
    assert matrices.shape == (2, 5, 3, 3)
    np.testing.assert_allclose(rotation.to_vector(matrices), vectors, atol=1e-12)
    np.testing.assert_array_equal(matrices[1, 3], rotation.from_vector(vectors[1, 3]))


@given(seeds)
def test_superposition_recovers_a_rigid_motion(seed):
    generator = np.random.default_rng(seed)
    points = generator.normal(size=(6, 3)) * 3
    turn, shift = Rotation.random(rng=generator).as_matrix(), generator.normal(size=3)
    found = rotation.superpose(points, points @ turn.T + shift)
    np.testing.assert_allclose(found.rotation, turn, atol=1e-9)
    np.testing.assert_allclose(found.apply(points), points @ turn.T + shift, atol=1e-9)
    assert found.rmsd_ang < 1e-9


@given(seeds)
def test_superposition_is_as_good_as_scipys_and_proper_even_for_mirror_images(seed):
    generator = np.random.default_rng(seed)
    moving = generator.normal(size=(7, 3))
    fixed = moving * [1, 1, -1] + 0.1 * generator.normal(size=(7, 3))
    weights = generator.uniform(0.1, 1.0, size=7)
    found = rotation.superpose(moving, fixed, weights)
    assert np.linalg.det(found.rotation) == pytest.approx(1.0)
    w = weights / weights.sum()
    _, rssd = Rotation.align_vectors(fixed - w @ fixed, moving - w @ moving, weights=w)
    assert found.rmsd_ang == pytest.approx(rssd, abs=1e-8)


@pytest.mark.parametrize("count", [1, 2])
def test_points_that_leave_the_rotation_free_are_still_superposed(count):
    fixed = np.array([[1.0, 2.0, 3.0], [1.0, 2.0, 4.5]])[:count]
    moving = np.array([[0.0, 0.0, 0.0], [1.5, 0.0, 0.0]])[:count]
    found = rotation.superpose(moving, fixed)
    assert np.linalg.det(found.rotation) == pytest.approx(1.0)
    np.testing.assert_allclose(found.apply(moving), fixed, atol=1e-12)


def test_superposition_of_unequal_sets_is_refused():
    with pytest.raises(ValueError, match="one length"):
        rotation.superpose(np.zeros((3, 3)), np.zeros((4, 3)))


def test_random_rotations_are_uniform_and_follow_the_generator():
    draws = rotation.random_rotations(np.random.default_rng(5), 20_000)
    np.testing.assert_array_equal(draws, rotation.random_rotations(np.random.default_rng(5), 20_000))
    np.testing.assert_allclose(np.linalg.det(draws), 1.0, atol=1e-12)
    # the angle of a uniform rotation has the density (1 - cos x)/pi, hence the mean pi/2 + 2/pi
    angle = rotation.angle_between(np.eye(3), draws)
    assert angle.mean() == pytest.approx(np.pi / 2 + 2 / np.pi, abs=0.02)
    assert np.abs(draws.mean(0)).max() < 0.02


@given(seeds)
def test_angle_between_is_the_geodesic_distance(seed):
    a, b = Rotation.random(2, rng=np.random.default_rng(seed))
    assert rotation.angle_between(a.as_matrix(), b.as_matrix()) == pytest.approx((b * a.inv()).magnitude(), abs=1e-9)


@pytest.mark.parametrize("second", [[0.3, 1.0, -2.0], [2.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
def test_two_vector_frame_is_right_handed_and_follows_the_first_vector(second):
    frame = rotation.two_vector_frame(np.array([1.5, 0.0, 0.0]), np.array(second))
    np.testing.assert_allclose(frame @ frame.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(frame) == pytest.approx(1.0)
    np.testing.assert_allclose(frame[0], [1.0, 0.0, 0.0])
