import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.io.ase import AseAtomsAdaptor
from scipy.spatial.transform import Rotation
from scipy.stats import kstest

import promof_hpc
from promof_hpc.assembly.components import crystal_components
from promof_hpc.assembly.prepared_shard import read_prepared
from promof_hpc.assembly.stack import Poses, place, poses_of, stack, structure_of
from promof_hpc.policy import flow, so3
from promof_hpc.policy.coupling import couple, partners_of, stack_copies
from promof_hpc.policy.engineer import Clean, Engineer, EngineerSettings
from promof_hpc.policy.features import inputs_of, places
from promof_hpc.policy.state import State, advance, recelled, state_of, wrap
from promof_hpc.policy.symmetry import copies_of, symmetric_turns
from tests.prepared import prepared

ONE, STEPS = "UXUPEK", 450
SHIPPED = Path(promof_hpc.__file__).parent / "data" / "small_mofs"
NAMES = ("EDUSIF", "FIQCEN", "OFERUN", "FIPWUY")


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _known(*names: str):
    pairs = [crystal_components(prepared(n)) for n in names]
    fixed = stack([c for c, _ in pairs], torch.float64)
    solutions = [s for _, s in pairs]
    return fixed, flow.states_of(solutions, fixed), solutions


def _double(state: State) -> State:
    return State(*(x.double() for x in vars(state).values()))


def _match(fixed, one: State, other: State, row: int) -> float | None:
    crystals = [AseAtomsAdaptor.get_structure(structure_of(fixed, s.poses(), row).to_ase()) for s in (one, other)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = StructureMatcher(stol=0.5, ltol=0.3, angle_tol=10).get_rms_dist(*crystals)
    return None if found is None else found[0]


def test_priors_have_the_distributions_that_they_are_said_to_have():
    components = crystal_components(prepared("FIQCEN"))[0]
    fixed = stack([components] * 400)
    state = flow.prior(fixed, _generator())
    k = len(components.blocks)
    assert kstest((state.centroids.numpy() / (10 * np.sqrt(1 - 1 / k))).ravel(), "norm").pvalue > 1e-3
    torch.testing.assert_close(state.centroids.mean(1), torch.zeros(400, 3), atol=1e-5, rtol=0)
    turns = Rotation.from_matrix(state.rotations.reshape(-1, 3, 3).numpy()).magnitude()
    assert kstest(turns, lambda x: (x - np.sin(x)) / np.pi).pvalue > 1e-3  # Haar measure
    if fixed.torsions.shape[1]:
        assert kstest(state.angles.ravel().numpy(), "uniform", args=(-np.pi, 2 * np.pi)).pvalue > 1e-3
    for axis, (loc, scale) in enumerate(zip((2.5542, 2.7547, 2.9633), (0.3739, 0.3011, 0.3126), strict=True)):
        assert kstest(np.log(state.lattice[:, axis].numpy()), "norm", args=(loc, scale)).pvalue > 1e-3
    assert kstest(np.rad2deg(state.lattice[:, 3:].numpy()).ravel(), "uniform", args=(59.9, 60.2)).pvalue > 1e-3
    mean, spread = flow.prior_moments()
    drawn = flow.prior(stack([components] * 3000), _generator(1)).lattice
    torch.testing.assert_close(drawn.mean(0), mean, rtol=0.05, atol=0)
    torch.testing.assert_close(drawn.std(0), spread, rtol=0.1, atol=0)


def test_noise_of_a_row_does_not_depend_on_the_padding():
    small, large = (crystal_components(prepared(n))[0] for n in ("FIPWUY", "RUBTAK01_SL"))
    one, two = (flow.prior(stack([small, x]), _generator(4)) for x in (small, large))
    for a, b in zip(vars(one).values(), vars(two).values(), strict=True):
        torch.testing.assert_close(a[0], b[(0, *(slice(n) for n in a.shape[1:]))])


def test_a_state_is_the_crystal_whatever_frame_its_cell_is_given_in():
    fixed, state, solutions = _known("FIPWUY", "EDUSIF")
    poses = poses_of(solutions, fixed)
    turn = torch.from_numpy(Rotation.from_rotvec([0.3, -2.0, 0.7]).as_matrix())
    turned = Poses(-poses.cells @ turn.T, turn @ poses.rotations, poses.centroids @ turn.T, poses.angles)
    other = state_of(fixed, turned)
    for row in range(2):
        assert _match(fixed, state, other, row) < 1e-4
    torch.testing.assert_close(other.lattice, state.lattice)
    assert torch.allclose(place(fixed, state.poses()), place(fixed, other.poses()), atol=1e-6)


def test_paths_begin_in_noise_end_in_data_and_move_at_the_velocity():
    fixed, x1, _ = _known("FIQCEN", "FIPWUY")
    x0 = _double(flow.prior(fixed, _generator()))
    for t, end in ((0.0, x0), (1.0, x1)):
        at = flow.interpolate(x0, x1, torch.full((2,), t, dtype=torch.float64))
        torch.testing.assert_close(at.rotations, end.rotations, atol=1e-6, rtol=0)
        torch.testing.assert_close(at.centroids, end.centroids)
        torch.testing.assert_close(at.lattice, end.lattice)
        assert wrap(at.angles - end.angles).abs().max() < 1e-6
    t, step = torch.tensor([0.3, 0.7], dtype=torch.float64), torch.tensor([1e-3, 2e-3], dtype=torch.float64)
    now, later = flow.interpolate(x0, x1, t), flow.interpolate(x0, x1, t + step)
    truth = Clean(x1.lattice, x1.rotations @ now.rotations.transpose(-1, -2),
                  recelled(x1.centroids, x1.lattice, now.lattice),
                  torch.stack([x1.angles.cos(), x1.angles.sin()], -1))  # fmt: skip
    moved = advance(now, flow.scaled(flow.velocity(truth, now, fixed, t), step))
    torch.testing.assert_close(moved.rotations, later.rotations, atol=1e-6, rtol=0)
    torch.testing.assert_close(moved.centroids, later.centroids)
    torch.testing.assert_close(moved.lattice, later.lattice)
    assert (wrap(moved.angles - later.angles) * fixed.torsions).abs().max() < 1e-6


class _Knowing(Engineer):
    """An engineer that predicts the crystal it was given."""

    def __init__(self, answer: State):
        super().__init__(EngineerSettings(width=16, layers=1, heads=2, gaussians=4))
        self.answer = answer

    def forward(self, prepared, state, t, contacts=False):
        x = self.answer
        turns = x.rotations @ state.rotations.transpose(-1, -2)
        there = recelled(x.centroids, x.lattice, state.lattice)
        return Clean(x.lattice, turns, there, torch.stack([x.angles.cos(), x.angles.sin()], -1))


@pytest.mark.parametrize("start", [0.0, 0.6, "rows"])
def test_the_solver_ends_on_what_the_engineer_predicts(start):
    fixed, x1, _ = _known("FIQCEN", "FIPWUY")
    x0 = _double(flow.prior(fixed, _generator()))
    start = torch.tensor([0.0, 0.6], dtype=torch.float64) if start == "rows" else start
    found = flow.solve(_Knowing(x1), stack(list(fixed.components)), x0, start, 5)
    torch.testing.assert_close(found.rotations, x1.rotations, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.centroids, x1.centroids, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.lattice, x1.lattice, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_every_description_that_noise_is_laid_out_for_is_the_crystal(name):
    fixed, x1, solutions = _known(name)
    copies = stack_copies([copies_of(fixed.components[0], solutions[0])], fixed)
    for seed in range(3):
        noise = _double(flow.prior(fixed, _generator(seed)))
        aim = couple(fixed, noise, x1, _generator(seed), copies)
        assert _match(fixed, x1, aim.data, 0) < 0.06  # copies are alike within a fraction of an ångström
        group = inputs_of(fixed).group[0]
        for g in group.unique():
            mine = group == g
            for part in ("centroids", "rotations"):
                before, after = (getattr(s, part)[0][mine].flatten(1).double() for s in (noise, aim.noise))
                assert torch.cdist(before, after).min(1).values.max() < 1e-9  # exchanged among equal blocks only
            assert sorted(aim.order[0][mine].tolist()) == torch.nonzero(mine)[:, 0].tolist()
        cube = torch.tensor([[1.0, 1, 1, np.pi / 2, np.pi / 2, np.pi / 2]]).to(x1.lattice)
        begin, end = (recelled(s.centroids, s.lattice, cube) for s in (aim.noise, aim.data))
        way = (end - begin)[0]
        assert (way - way.mean(0)).abs().max() < 1.0  # half a cell, and what the common origin takes


@pytest.mark.parametrize("name", NAMES)
def test_partners_of_a_copy_are_where_they_meet_in_it(name):
    fixed, x1, solutions = _known(name)
    copies = stack_copies([copies_of(fixed.components[0], solutions[0])], fixed)
    inputs, partner = inputs_of(fixed), partners_of(solutions, fixed)
    moved = 0
    for seed in range(4):
        noise = _double(flow.prior(fixed, _generator(seed)))
        aim = couple(fixed, noise, x1, _generator(seed), copies, partner)
        here = places(fixed, inputs, aim.data)
        e = partner.shape[1]
        gap = here.centres[0, e + aim.partner[0]] - here.centres[0, :e]
        cell = aim.data.poses().cells[0]
        gap = gap @ torch.linalg.inv(cell)
        assert ((gap - gap.round()) @ cell).norm(dim=-1).max() < 0.9
        assert sorted(aim.partner[0].tolist()) == list(range(e))
        moved += int((aim.partner != partner).sum())
    assert moved or all(len(b.turns) == 1 for b in copies_of(fixed.components[0], solutions[0]))


def test_point_groups_have_as_many_rotations_as_in_the_tables():
    cube = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], float)
    square = np.array([[2, 0, 0], [-2, 0, 0], [0, 2, 0], [0, -2, 0]], float)
    cases = [(cube * 2, ["O"] * 8, 24), (square, ["N"] * 4, 8), (square, ["N", "N", "O", "O"], 4),
             (np.array([[2.0, 0, 0], [-1, 1.73, 0], [-1, -1.73, 0]]), ["O"] * 3, 6),
             (np.array([[0, 0, 2.0], [1.5, 0, 0], [0, 1.5, 0]]), ["O", "N", "C"], 1),
             (np.zeros((1, 3)), ["Zn"], 0), (np.array([[0, 0, 1.0], [0, 0, -1.0]]), ["O", "O"], 24)]  # fmt: skip
    for points, symbols, count in cases:
        points = np.concatenate([np.zeros((1, 3)), points])
        turn = Rotation.from_rotvec([0.4, 1.0, -0.3]).as_matrix()
        found = symmetric_turns(points @ turn.T, [(0,), *[(ord(s[0]),) for s in symbols]])
        assert len(found) == count, symbols
        np.testing.assert_allclose(found @ np.swapaxes(found, 1, 2), np.eye(3)[None].repeat(len(found), 0), atol=1e-9)


def test_a_start_noised_to_the_end_is_the_start_and_noised_to_0_is_the_prior():
    fixed, x1, _ = _known("FIQCEN", "FIPWUY")
    fixed, x1 = stack(list(fixed.components)), State(*(x.float() for x in vars(x1).values()))
    for row in range(2):
        assert _match(fixed, x1, flow.noised(x1, fixed, 1.0, _generator()), row) < 1e-3
    nothing = flow.noised(x1, fixed, 0.0, _generator(2))
    drawn = flow.prior(fixed, _generator(2))
    torch.testing.assert_close(nothing.lattice, drawn.lattice)
    turns = [flow.noised(x1, fixed, t, _generator(3)).rotations[0] @ x1.rotations[0].mT for t in (0.2, 0.9)]
    near = [so3.log(r).norm(dim=-1).mean().item() for r in turns]
    assert near[1] < 0.35 < near[0]


def test_the_loss_is_the_weighted_sum_of_squared_errors_and_zero_for_the_truth():
    fixed, x1, _ = _known("FIPWUY")
    losses = flow.loss(_Knowing(x1).double(), fixed, x1, _generator())
    assert losses.parts()["lattice"] == 0.0
    aim = couple(fixed, _double(flow.prior(fixed, _generator())), x1, _generator())
    now = flow.interpolate(aim.noise, aim.data, torch.tensor([0.5], dtype=torch.float64))
    turn = aim.data.rotations @ now.rotations.transpose(-1, -2)
    unit = torch.stack([aim.data.angles.cos(), aim.data.angles.sin()], -1)
    shifted = recelled(aim.data.centroids + torch.tensor([2.0, 0, 0]), aim.data.lattice, now.lattice)
    lattice = aim.data.lattice + torch.tensor([1.0, 0, 0, 0.1, 0, 0])
    off = Clean(lattice, turn + 0.1, shifted, unit + 0.3)
    one = torch.ones(1, dtype=torch.float64)
    parts = flow.losses_of(off, now, fixed, aim, one).parts()
    expected = {"translation": 0.04, "rotation": 0.09, "lattice": 0.01 + 0.01, "torsion": 0.18, "contact": 0.0}
    for name, value in expected.items():
        assert parts[name] == pytest.approx(value, abs=1e-9), name
    assert parts["total"] == pytest.approx(3 * 0.04 + 0.09 + 0.02 + 0.18)
    assert flow.losses_of(off, now, fixed, aim, 2 * one).parts()["total"] == pytest.approx(2 * parts["total"])


def test_late_times_weigh_more_up_to_a_bound():
    weight = flow.late_weight(torch.linspace(0, 1, 101))
    assert weight[0] == 1
    assert weight[-1] == flow.MOST_LATE
    assert (weight.diff() >= 0).all()


def test_training_on_one_crystal_learns_to_build_it():
    mofs = [m for f in sorted((SHIPPED / "train").glob("*.h5")) for m in read_prepared(f)]
    components, solution = crystal_components(next(m for m in mofs if m.name.startswith(ONE)))
    rows = 16
    fixed = stack([components] * rows)
    x1, partner = flow.states_of([solution] * rows, fixed), partners_of([solution] * rows, fixed)
    copies = stack_copies([copies_of(components, solution)] * rows, fixed)
    torch.manual_seed(0)
    engineer, generator = Engineer(EngineerSettings(width=64, layers=2, gaussians=16)), _generator()
    optimiser = torch.optim.AdamW(engineer.parameters(), 4e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, STEPS)
    totals = []
    for _ in range(STEPS):
        losses = flow.loss(engineer, fixed, x1, generator, partner, copies)
        optimiser.zero_grad()
        losses.total.backward()
        torch.nn.utils.clip_grad_norm_(engineer.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        totals.append(losses.parts()["total"])
    assert np.mean(totals[-20:]) < 0.5 * np.mean(totals[:10])
    noisy = flow.noised(x1, fixed, 0.7, _generator(9))
    built = flow.solve(engineer, fixed, noisy, 0.7, 8)
    before, after = ([_match(fixed, x1, s, row) for row in range(rows)] for s in (noisy, built))
    raw, found = ([m for m in some if m is not None] for some in (before, after))
    assert len(found) >= len(raw) + 3
    assert min(found) < 0.35
