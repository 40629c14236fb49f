import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from promof_hpc.assembly.components import crystal_components
from promof_hpc.assembly.stack import stack
from promof_hpc.config.design import SdeSettings
from promof_hpc.policy import flow, sde
from promof_hpc.policy.engineer import Engineer, EngineerSettings
from promof_hpc.policy.state import ANGLES_RAD, LENGTHS_ANG, MODALITIES, Increments, State, advance, wrap
from tests.prepared import prepared

SETTINGS = SdeSettings(steps=6)
NONE = SdeSettings(steps=6, translation=0, rotation=0, torsion=0, lattice=0)


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def fixed():
    many = [crystal_components(prepared(n))[0] for n in ("FIPWUY", "FIQCEN")]
    return stack([many[0], many[0], many[1]])


@pytest.fixture(scope="module")
def engineer():
    torch.manual_seed(0)
    engineer = Engineer(EngineerSettings(width=32, layers=2, heads=4, gaussians=8))
    for parameter in engineer.parameters():
        if not parameter.abs().sum():
            torch.nn.init.normal_(parameter, std=0.05)
    return engineer


def _same(one: State, other: State, atol: float) -> None:
    torch.testing.assert_close(one.lattice, other.lattice, atol=atol, rtol=atol)
    torch.testing.assert_close(one.rotations, other.rotations, atol=atol, rtol=0)
    torch.testing.assert_close(one.centroids, other.centroids, atol=10 * atol, rtol=0)
    assert wrap(one.angles - other.angles).abs().max() < 10 * atol


@pytest.mark.parametrize("start", [0.0, 0.4])
def test_without_noise_the_sampler_is_the_solver(engineer, fixed, start):
    x0 = flow.prior(fixed, _generator())
    flight = sde.rollout(engineer, fixed, x0, start, NONE, _generator(1))
    _same(flight.final, flow.solve(engineer, fixed, x0, start, 6), 1e-6)
    assert not flight.noisy.any()
    assert not flight.log_prob.any()


def test_noise_that_goes_to_zero_leads_to_the_solver(engineer, fixed):
    exact, double = _double(engineer), stack(list(fixed.components), torch.float64)
    x0 = flow.prior(double, _generator())
    little = SdeSettings(steps=6, translation=1e-9, rotation=1e-9, torsion=1e-9, lattice=1e-9)
    flight = sde.rollout(exact, double, x0, 0.0, little, _generator(1))
    assert flight.noisy[:, :5].all()
    _same(flight.final, flow.solve(exact, double, x0, 0.0, 6), 1e-5)


def _double(engineer: Engineer) -> Engineer:
    copy = Engineer(engineer.settings).double()
    copy.load_state_dict(engineer.state_dict())
    return copy


def test_ratios_are_one_under_the_weights_that_sampled(engineer, fixed):
    flight = sde.rollout(engineer, fixed, flow.prior(fixed, _generator()), 0.0, SETTINGS, _generator(1))
    again = sde.Rollout.from_columns(flight.columns())
    for rows in ([0, 1, 2], [1], [2]):
        part, some = fixed.take(rows), again.take(rows)
        for step in range(flight.steps):
            log_prob, means = sde.replay(engineer, part, some, step)
            assert ((log_prob - some.log_prob[:, step]).sum(-1).exp() - 1).abs().max() < 1e-5 or len(rows) < 3
            assert ((log_prob - some.log_prob[:, step]).exp() - 1).abs().max() < 1e-3
            assert not sde.step_kl(means, means, some, step).any()


def test_what_is_stored_comes_back_bit_by_bit(engineer, fixed):
    flight = sde.rollout(engineer, fixed, flow.prior(fixed, _generator()), 0.0, SETTINGS, _generator(1))
    columns = flight.columns()
    assert all(isinstance(v, np.ndarray) and v.dtype == np.float32 for v in columns.values())
    for name, value in sde.Rollout.from_columns(columns).columns().items():
        np.testing.assert_array_equal(value, columns[name])
    state = State(*(getattr(flight.states, n)[:, 2] for n in sde.STATE_PARTS))
    action = Increments(*(x[:, 2] for x in flight.actions.parts()))
    for name, value in vars(advance(state, action)).items():  # the map holds no parameter
        assert torch.equal(value, getattr(flight.states, name)[:, 3])


def test_log_densities_are_those_of_torch_distributions(engineer, fixed):
    flight = sde.rollout(engineer, fixed, flow.prior(fixed, _generator()), 0.0, SETTINGS, _generator(1))
    step, row = 1, 2
    _, means = sde.replay(engineer, fixed, flight, step)
    delta = flight.times[row, step + 1] - flight.times[row, step]
    spreads = (10.0, 1.0, 1.0, flow.prior_moments()[1])
    for m, name in enumerate(MODALITIES):
        sigma = flight.sigma[row, step, m] * spreads[m]
        action, mean = flight.actions.parts()[m][row, step], means.parts()[m][row].detach()
        if name in ("translation", "rotation"):
            action, mean = action[fixed.blocks[row]], mean[fixed.blocks[row]]
        if name == "torsion":
            action, mean = action[fixed.torsions[row]], mean[fixed.torsions[row]]
        density = torch.distributions.Normal(mean, sigma * delta.sqrt()).log_prob(action)
        unit = (
            torch.as_tensor(spreads[m]).log().expand(6).sum()
            if name == "lattice"
            else math.log(spreads[m]) * mean.numel()
        )
        expected = (density.sum() + unit).item()
        if name == "translation":  # one direction of three is fixed: the mean over the blocks
            free = 0.5 * 3 * torch.log(2 * torch.pi * (sigma / 10) ** 2 * delta)
            expected += free.item()
        assert flight.log_prob[row, step, m].item() == pytest.approx(expected, rel=1e-4, abs=1e-3), name


def test_gradient_of_the_log_density_is_that_of_finite_differences(engineer, fixed):
    engineer64 = _double(engineer)
    double = stack(list(fixed.components), torch.float64)
    flight = sde.rollout(engineer, fixed, flow.prior(fixed, _generator()), 0.0, SETTINGS, _generator(1))
    flight = sde.Rollout.from_columns({n: v.astype(np.float64) for n, v in flight.columns().items()})
    names = (
        "translation_output.trans_output.2.weight",
        "interaction_layers.0.interaction_layer.self_attn.linear_k.weight",
        "rotation_output.rot_output.0.bias",
        "torsion_output.dihedral_proj.weight",
        "vector_output.linear_q.weight",
        "lattice_output.lattice_output.2.bias",
    )
    parameters = dict(engineer64.named_parameters())

    def value() -> torch.Tensor:
        return sde.replay(engineer64, double, flight, 2)[0].sum()

    gradients = torch.autograd.grad(value(), [parameters[n] for n in names])
    for name, gradient in zip(names, gradients, strict=True):
        parameter, place = parameters[name], int(gradient.abs().argmax())
        with torch.no_grad():
            flat, step = parameter.view(-1), 1e-6
            flat[place] += step
            up = value()
            flat[place] -= 2 * step
            down = value()
            flat[place] += step
        assert gradient.reshape(-1)[place].item() == pytest.approx(((up - down) / (2 * step)).item(), rel=1e-4), name


def test_noise_levels_follow_the_formula():
    times = torch.linspace(0, 1, 13)[None]
    sigma = sde.noise_levels(times, SdeSettings(steps=12, translation=0.3, rotation=0.1, torsion=0.2, lattice=0.15))[0]
    for k in range(12):
        t = k / 12
        level = min(math.sqrt((1 - t) / max(t, 1 / 12)), 3.0) if t <= 0.9 and k < 11 else 0.0
        np.testing.assert_allclose(sigma[k], np.array([0.3, 0.1, 0.2, 0.15]) * level, rtol=1e-5)
    assert sde.noise_levels(times, SdeSettings(steps=12, window=4), first=3)[0].any(-1).nonzero()[:, 0].tolist() == [
        3,
        4,
        5,
        6,
    ]
    assert not sde.noise_levels(times, SdeSettings(steps=12, window=4), first=11).any()
    late = flow.time_grid(torch.tensor([0.0, 0.6]), 4, _states(2))
    assert not sde.noise_levels(late, SdeSettings(steps=4))[:, -1].any()


def _states(rows: int) -> State:
    return State(torch.zeros(rows, 6), torch.zeros(rows, 1, 3, 3), torch.zeros(rows, 1, 3), torch.zeros(rows, 0))


def test_translations_keep_their_mean_and_padding_stays_still(engineer, fixed):
    flight = sde.rollout(engineer, fixed, flow.prior(fixed, _generator()), 0.0, SETTINGS, _generator(1))
    assert flight.actions.translation.sum(2).abs().max() < 1e-3
    assert not flight.actions.translation[:, :, :][~fixed.blocks[:, None].expand(-1, 6, -1)].any()
    assert not flight.actions.torsion[~fixed.torsions[:, None].expand(-1, 6, -1)].any()
    blocks = fixed.blocks.sum(1)
    expected = torch.stack([3 * (blocks - 1), 3 * blocks, fixed.torsions.sum(1), torch.full_like(blocks, 6)], -1)
    torch.testing.assert_close(flight.dof, expected.float())


def test_the_lattice_is_bounded_in_the_state_and_never_in_the_action(engineer, fixed):
    wild = SdeSettings(steps=6, lattice=3.0)
    flight = sde.rollout(engineer, fixed, flow.prior(fixed, _generator()), 0.0, wild, _generator(1))
    lattice = torch.cat([flight.states.lattice[:, 1:].reshape(-1, 6), flight.final.lattice])
    assert (lattice[:, :3] >= LENGTHS_ANG[0]).all()
    assert (lattice[:, :3] <= LENGTHS_ANG[1]).all()
    assert (lattice[:, 3:] >= ANGLES_RAD[0]).all()
    assert (lattice[:, 3:] <= ANGLES_RAD[1]).all()
    free = flight.states.lattice[:, :-1] + flight.actions.lattice[:, :-1]
    assert (free - flight.states.lattice[:, 1:]).abs().max() > 1.0


def test_a_row_draws_the_same_whatever_stands_beside_it(engineer, fixed):
    alone, beside = fixed.take([0]), stack([fixed.components[0], fixed.components[2]])
    rollouts = []
    for some in (alone, beside):
        x0 = flow.prior(some, _generator(3))
        rollouts.append(sde.rollout(engineer, some, x0, 0.0, SETTINGS, _generator(4)))
    for a, b in zip(vars(rollouts[0].final).values(), vars(rollouts[1].final).values(), strict=True):
        torch.testing.assert_close(a[0], b[(0, *(slice(n) for n in a.shape[1:]))], atol=2e-3, rtol=1e-3)


def test_step_kl_is_that_of_two_gaussians(engineer, fixed):
    flight = sde.rollout(engineer, fixed, flow.prior(fixed, _generator()), 0.0, SETTINGS, _generator(1))
    _, means = sde.replay(engineer, fixed, flight, 0)
    means = Increments(*(x.detach() for x in means.parts()))
    shifted = Increments(
        means.translation, means.rotation + 0.1 * fixed.blocks[..., None], means.torsion, means.lattice
    )
    divergence = sde.step_kl(shifted, means, flight, 0)
    assert not divergence[:, [0, 2, 3]].any()
    spread = flight.sigma[:, 0, 1] * (flight.times[:, 1] - flight.times[:, 0]).sqrt()
    for row in range(3):
        one = torch.distributions.Normal(torch.tensor(0.1), spread[row])
        other = torch.distributions.Normal(torch.tensor(0.0), spread[row])
        each = torch.distributions.kl_divergence(one, other)
        assert divergence[row, 1].item() == pytest.approx(3 * int(fixed.blocks[row].sum()) * each.item(), rel=1e-4)


class _Still(Engineer):
    """An engineer for which the marginal is known: every crystal has all blocks at one point, whatever the state."""

    def forward(self, prepared, state, t, contacts=False):
        from promof_hpc.policy.engineer import Clean

        k, count = state.centroids.shape[1], state.angles.shape[1]
        mean = flow.prior_moments()[0].expand(len(state), 6)
        return Clean(mean, torch.eye(3).expand(len(state), k, 3, 3), torch.zeros_like(state.centroids),
                     torch.ones(len(state), count, 2))  # fmt: skip


def test_the_score_keeps_the_spread_of_translations_that_the_path_has():
    components = crystal_components(prepared("FIQCEN"))[0]
    fixed = stack([components] * 200)
    noisy = SdeSettings(steps=60, translation=0.5, rotation=0, torsion=0, lattice=0)
    engineer = _Still(EngineerSettings(width=16, layers=1, heads=2, gaussians=4, contact=False))
    x0 = replace(flow.prior(fixed, _generator()), lattice=flow.prior_moments()[0].expand(200, 6))  # the cell stays
    flight = sde.rollout(engineer, fixed, x0, 0.0, noisy, _generator(2))
    k = len(components.blocks)
    for step in (20, 40):
        wanted = 10.0 * (1 - step / 60) * math.sqrt(1 - 1 / k)  # x_t = (1 - t) x0 where the crystal is a point
        assert flight.states.centroids[:, step].std().item() == pytest.approx(wanted, rel=0.06)
