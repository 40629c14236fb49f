"""The potentials with shipped weights against their packages' calculators, known energies and finite differences."""

import itertools
import warnings
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk
from ase.io import read

from promof_hpc.errors import UsageError
from promof_hpc.physics.potential import Prediction, out_of_memory_as_memory_error
from promof_hpc.physics.registry import load_potential
from promof_hpc.structure import Structure

CASES = Path(__file__).parent.parent / "data" / "cases"
NAMES = ("sevennet-0", "chgnet-0.3.0", "lennard-jones")


@cache
def potential(name):
    return load_potential(name)


@cache
def sevennet_together():
    """SevenNet-0 the way it runs on a GPU: sevenn's own convolution, all structures in one graph."""
    from promof_hpc.physics.sevennet import SevenNet0

    return SevenNet0(batched=True)


@cache
def own_calculator(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if name == "sevennet-0":
            from sevenn.calculator import SevenNetCalculator

            return SevenNetCalculator("7net-0", device="cpu")
        from chgnet.model import CHGNet, CHGNetCalculator

        return CHGNetCalculator(CHGNet.load(use_device="cpu"), use_device="cpu", on_isolated_atoms="ignore")


def case(name, rattle=0.0):
    atoms = read(CASES / name)
    atoms.calc = None
    if rattle:
        atoms.rattle(rattle, seed=1)
    return Structure.from_ase(atoms)


def magnesia(a=4.2, rattle=0.05):
    atoms = bulk("MgO", "rocksalt", a)
    atoms.rattle(rattle, seed=2)
    return Structure.from_ase(atoms)


def mirrored(s):
    """The same crystal with two lattice vectors swapped: left-handed."""
    return Structure(s.numbers, s.positions, s.cell[[1, 0, 2]])


def samples():
    return [case("C000_base_pmx2.cif", 0.05), case("C000_base_pmx3.cif", 0.1), magnesia()]


def largest_differences(a: Prediction, b: Prediction):
    atoms = len(a.forces)
    return abs(a.energy - b.energy) / atoms, np.abs(a.forces - b.forces).max(), np.abs(a.stress - b.stress).max()


@pytest.mark.parametrize("name", ["sevennet-0", "chgnet-0.3.0"])
@pytest.mark.parametrize("k", range(3))
def test_agrees_with_the_calculator_of_the_package(name, k):
    s = samples()[k]
    ours = potential(name).compute([s])[0]
    atoms = s.to_ase()
    atoms.calc = own_calculator(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = Prediction(atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress(voigt=False))
    energy, force, stress = largest_differences(ours, theirs)
    assert energy < 1e-6
    assert force < 2e-5
    assert stress < 5e-6


@pytest.mark.parametrize("k", range(3))
def test_sevennet_by_pairs_agrees_with_its_own_convolution(k):
    s = samples()[k]
    energy, force, stress = largest_differences(
        potential("sevennet-0").compute([s])[0], sevennet_together().compute([s])[0]
    )
    assert energy < 1e-6
    assert force < 2e-5
    assert stress < 5e-6


@pytest.mark.parametrize(("file", "ev_per_atom"), [
    ("C000_base_pmx1.cif", -6.7917), ("C000_base_pmx2.cif", -7.0425), ("C000_base_pmx3.cif", -7.0774),
    ("C014_left_handed.extxyz", -7.042495), ("C014_right_handed.extxyz", -7.042495),
    ("C026_wrong_lattice_zero_force.extxyz", -5.9014),
])  # fmt: skip
def test_sevennet_gives_the_energies_others_got_for_the_same_files(file, ev_per_atom):
    s = case(file)
    assert potential("sevennet-0").compute([s])[0].energy / len(s) == pytest.approx(ev_per_atom, abs=6e-5)


@pytest.mark.parametrize("name", NAMES)
def test_handedness_of_the_cell_changes_nothing(name):
    for s in samples():
        left, right = (potential(name).compute([x])[0] for x in (mirrored(s), s))
        energy, force, stress = largest_differences(left, right)
        assert energy < 1e-6
        assert force < 2e-5
        assert stress < 5e-6
        assert np.abs(right.stress).max() > 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_forces_are_the_gradient_of_the_energy(name):
    s, step = case("C000_base_pmx3.cif", 0.1), 5e-3
    forces = potential(name).compute([s])[0].forces
    k, axis = np.unravel_index(np.abs(forces).argmax(), forces.shape)
    energies = []
    for sign in (1, -1):
        moved = s.positions.copy()
        moved[k, axis] += sign * step
        energies.append(potential(name).compute([Structure(s.numbers, moved, s.cell)])[0].energy)
    assert forces[k, axis] == pytest.approx(-(energies[0] - energies[1]) / (2 * step), rel=5e-3)


@pytest.mark.parametrize("name", NAMES)
def test_stress_is_the_strain_derivative_over_the_volume(name):
    s, step = case("C000_base_pmx3.cif", 0.1), 2e-3
    stress = potential(name).compute([s])[0].stress
    assert np.allclose(stress, stress.T)
    for a, b in itertools.combinations_with_replacement(range(3), 2):
        energies = []
        for sign in (1, -1):
            f = np.eye(3)
            f[a, b] += sign * step / 2
            f[b, a] += sign * step / 2
            energies.append(potential(name).compute([Structure(s.numbers, s.positions @ f, s.cell @ f)])[0].energy)
        slope = (energies[0] - energies[1]) / (2 * step) / s.volume
        assert stress[a, b] == pytest.approx(slope, abs=0.01 * np.abs(stress).max())


@pytest.mark.parametrize("name", [*NAMES, "sevennet-0 together", "chgnet-0.3.0 together"])
def test_batch_mates_and_their_order_move_no_number(name):
    chosen = sevennet_together() if name == "sevennet-0 together" else potential(name.split()[0])
    compute = chosen._compute if name == "chgnet-0.3.0 together" else chosen.compute
    structures = samples()
    alone = [compute([s])[0] for s in structures]
    for order in [(0, 1, 2), (2, 0, 1)]:
        for k, prediction in zip(order, compute([structures[k] for k in order]), strict=True):
            energy, force, stress = largest_differences(prediction, alone[k])
            assert energy < 1e-6
            assert force < 2e-5
            assert stress < 5e-6


def test_empty_batches_and_atoms_without_neighbours_are_answered():
    lone = Structure(np.array([2], np.int32), np.zeros((1, 3)), np.eye(3) * 30)
    for name in ("sevennet-0", "lennard-jones"):
        assert potential(name).compute([]) == []
        prediction = potential(name).compute([lone])[0]
        assert np.isfinite(prediction.energy)
        assert not prediction.forces.any()
        assert not prediction.stress.any()


def test_every_potential_says_which_elements_it_knows():
    for name in NAMES:
        assert {1, 6, 7, 8, 29, 30, 40} <= potential(name).elements
        assert 118 not in potential(name).elements
    assert 88 not in potential("sevennet-0").elements
    assert potential("chgnet-0.3.0").elements == potential("sevennet-0").elements  # both were trained on MPtrj


def test_every_potential_has_its_own_weights_digest():
    digests = {potential(name).weights_sha256 for name in NAMES}
    assert len(digests) == len(NAMES)
    assert all(len(digest) == 64 for digest in digests)


def test_running_out_of_memory_is_a_memory_error_whoever_says_so():
    import torch

    for error in (torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory: 9 bytes")):
        with pytest.raises(MemoryError), out_of_memory_as_memory_error():
            raise error
    with pytest.raises(RuntimeError, match="shapes"), out_of_memory_as_memory_error():
        raise RuntimeError("shapes differ")


def test_unknown_potentials_are_refused_with_the_nearest_name():
    with pytest.raises(UsageError, match="Did you mean sevennet-0"):
        load_potential("sevenet-0")
    with pytest.raises(UsageError, match="PYTHONPATH"):
        load_potential("no_such_module:Potential")


def test_a_potential_of_ones_own_is_loaded_by_module_and_class():
    assert load_potential("tests.potentials:SometimesNaN").id == "lennard-jones"


@pytest.mark.parametrize("name", NAMES)
def test_loading_and_computing_say_nothing(name, capfd):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        warnings.simplefilter("ignore", DeprecationWarning)  # not shown to users
        load_potential(name).compute([magnesia()])
    assert capfd.readouterr() == ("", "")
    assert [str(w.message) for w in caught] == []
