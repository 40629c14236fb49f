"""The relaxer against ASE's own optimisers, and every way in which a relaxation can end."""

import itertools

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.filters import FrechetCellFilter
from ase.optimize import FIRE, LBFGS

from promof_hpc.config import RelaxSettings
from promof_hpc.physics.potential import Prediction
from promof_hpc.physics.relax import compute_or_halve, largest_force, relax
from promof_hpc.store.schema import Outcome
from promof_hpc.structure import Structure


class Emt:
    """ASE's effective medium theory as a `Potential`."""

    id, weights_sha256, elements, max_atoms, notes = "emt", "", frozenset({13, 28, 29}), None, ""

    def __init__(self, batched=False):
        self.batched = batched
        self.sizes = []

    def compute(self, structures):
        self.sizes.append(len(structures))
        out = []
        for s in structures:
            atoms = s.to_ase()
            atoms.calc = EMT()
            out.append(Prediction(atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress(voigt=False)))
        return out


def _start(seed=0, symbol="Cu", repeat=(2, 1, 1)):
    atoms = bulk(symbol, cubic=True) * repeat
    rng = np.random.default_rng(seed)
    atoms.set_cell(atoms.cell[:] @ (np.eye(3) + rng.normal(0, 0.03, (3, 3))), scale_atoms=True)
    atoms.positions += rng.normal(0, 0.1, atoms.positions.shape)
    return atoms


@pytest.mark.parametrize(("name", "optimizer"), [("lbfgs", LBFGS), ("fire", FIRE)])
@pytest.mark.parametrize("seed", range(3))
def test_same_optimiser_and_start_give_the_energy_of_ase(name, optimizer, seed):
    settings = RelaxSettings(optimizer=name, fmax_ev_per_ang=0.005, stress_gpa=0.02)
    ours = relax([Structure.from_ase(_start(seed))], Emt(), settings)[0]
    atoms = _start(seed)
    atoms.calc = EMT()
    optimizer(FrechetCellFilter(atoms), logfile=None, maxstep=0.2).run(fmax=0.005, steps=500)
    assert ours.outcome is Outcome.CONVERGED
    assert ours.last.energy / 8 == pytest.approx(atoms.get_potential_energy() / 8, abs=1e-3)
    assert ours.structure.volume == pytest.approx(atoms.get_volume(), rel=2e-3)


@pytest.mark.parametrize("seed", range(3))
def test_the_cell_gradient_is_the_derivative_of_the_energy(seed):
    from promof_hpc.physics.relax import _Coordinates

    potential, structure = Emt(), Structure.from_ase(_start(seed))
    coordinates = _Coordinates(structure, relaxed_cell=True)
    rng = np.random.default_rng(seed)
    x = coordinates.get_x()
    x[-9:] = rng.normal(0, 0.02, 9) * len(structure)  # an unsymmetric deformation too
    coordinates.set_x(x)
    coordinates.take(potential.compute([coordinates.structure()])[0])
    gradient = coordinates.get_gradient()
    for k in [0, 7, *range(len(x) - 9, len(x))]:
        energies = []
        for step in (1e-4, -1e-4):
            moved = x.copy()
            moved[k] += step
            coordinates.set_x(moved)
            energies.append(potential.compute([coordinates.structure()])[0].energy)
        assert gradient[k] == pytest.approx((energies[0] - energies[1]) / 2e-4, abs=2e-4)


def test_batch_mates_and_their_order_change_nothing():
    starts = [Structure.from_ase(_start(k, s)) for k, s in enumerate(["Cu", "Ni", "Al"])]
    solo = [relax([s], Emt(), RelaxSettings())[0] for s in starts]
    for order in itertools.permutations(range(3)):
        together = relax([starts[k] for k in order], Emt(batched=True), RelaxSettings())
        for k, result in zip(order, together, strict=True):
            assert result.last.energy == pytest.approx(solo[k].last.energy, abs=1e-9)
            assert result.steps == solo[k].steps


def test_finished_structures_leave_the_batch():
    still = Structure.from_ase(bulk("Cu", cubic=True))
    potential = Emt(batched=True)
    relax([Structure.from_ase(_start(1)), still], potential, RelaxSettings(cell="fixed"))
    assert potential.sizes[0] == 2
    assert potential.sizes[-1] == 1


def test_zero_forces_in_a_wrong_cell_are_not_convergence():
    wrong = Structure.from_ase(bulk("Cu", cubic=True, a=3.85))
    result = relax([wrong], Emt(), RelaxSettings(fmax_ev_per_ang=0.01))[0]
    assert largest_force(result.start) < 1e-9
    assert result.steps >= 2
    assert result.structure.volume ** (1 / 3) == pytest.approx(3.5896, abs=5e-3)  # EMT's own lattice constant


def test_a_fixed_cell_stays(tmp_path):
    start = Structure.from_ase(_start(2))
    result = relax([start], Emt(), RelaxSettings(cell="fixed"))[0]
    assert np.array_equal(result.structure.cell, start.cell)
    assert result.outcome is Outcome.CONVERGED


def test_step_cap_is_its_own_outcome_and_keeps_the_last_structure():
    result = relax([Structure.from_ase(_start(3))], Emt(), RelaxSettings(max_steps=2))[0]
    assert (result.outcome, result.steps, result.force_calls) == (Outcome.MAX_STEPS, 2, 3)
    assert result.last.energy < result.start.energy


def test_wall_cap_is_its_own_outcome():
    ticks = itertools.count(0, 10)
    result = relax([Structure.from_ase(_start(3))], Emt(), RelaxSettings(wall_s=25), clock=lambda: next(ticks))[0]
    assert result.outcome is Outcome.TIMED_OUT


class _Scripted(Emt):
    """EMT whose answers are bent."""

    def __init__(self, bend, batched=False):
        super().__init__(batched)
        self.bend = bend

    def compute(self, structures):
        return [self.bend(p, s) for p, s in zip(super().compute(structures), structures, strict=True)]


@pytest.mark.parametrize(("bend", "outcome"), [
    (lambda p, s: Prediction(float("nan"), p.forces, p.stress), Outcome.NAN),
    (lambda p, s: Prediction(p.energy, p.forces * np.inf, p.stress), Outcome.NAN),
    (lambda p, s: Prediction(p.energy, p.forces * 1e9, p.stress), Outcome.EXPLODED),
    (lambda p, s: Prediction(p.energy, p.forces, np.eye(3) * 50), Outcome.COLLAPSED),
    (lambda p, s: Prediction(p.energy, p.forces, -np.eye(3) * 50), Outcome.EXPLODED),
])  # fmt: skip
def test_bad_predictions_have_typed_ends(bend, outcome):
    result = relax([Structure.from_ase(_start(4))], _Scripted(bend), RelaxSettings(optimizer="fire"))[0]
    assert result.outcome is outcome
    assert result.reason


def test_one_bad_member_does_not_disturb_the_others():
    bad = Structure.from_ase(_start(5, "Ni"))
    good = Structure.from_ase(_start(6))
    potential = _Scripted(
        lambda p, s: Prediction(np.nan, p.forces, p.stress) if s.numbers[0] == 28 else p, batched=True
    )
    results = relax([good, bad, good], potential, RelaxSettings())
    assert [r.outcome for r in results] == [Outcome.CONVERGED, Outcome.NAN, Outcome.CONVERGED]


class _SmallMemory(Emt):
    refusals = 0

    def compute(self, structures):
        if sum(map(len, structures)) > 16:
            self.refusals += 1
            raise MemoryError
        return super().compute(structures)


def test_out_of_memory_halves_the_batch_and_only_the_too_large_end_as_oom():
    sizes = [(2, 1, 1), (1, 1, 1), (3, 1, 1), (1, 1, 2)]
    starts = [Structure.from_ase(bulk("Cu", cubic=True) * s) for s in [*sizes, (3, 2, 1)]]
    predictions = compute_or_halve(starts, _SmallMemory(batched=True))
    assert [p is None for p in predictions] == [False, False, False, False, True]
    alone = Emt().compute(starts[:4])
    assert [p.energy for p in predictions[:4]] == [p.energy for p in alone]
    small = _SmallMemory(batched=True)
    results = relax(starts, small, RelaxSettings())
    assert small.refusals <= 4  # it is remembered what fits; only the one that never does is tried alone
    assert results[-1].outcome is Outcome.OOM
    assert all(r.outcome is Outcome.CONVERGED for r in results[:-1])


def test_the_heartbeat_can_end_the_work():
    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        relax([Structure.from_ase(_start(0))], Emt(), RelaxSettings(), heartbeat=stop)
