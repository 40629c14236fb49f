"""UMA through fairchem's real code on a tiny random checkpoint: against its own calculator and finite differences."""

import itertools
import logging
import pickle
import socket

import numpy as np
import pytest
from ase.build import bulk

from promof_hpc.errors import UsageError
from promof_hpc.physics.registry import load_potential
from promof_hpc.structure import Structure

pytest.importorskip("fairchem.core", reason="fairchem-core is not installed: pip install 'promof-hpc[uma]'")

from promof_hpc.physics.uma import UMA
from tests.tiny_uma import UNSEEN, write_tiny_uma


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_tiny_uma(tmp_path_factory.mktemp("uma") / "tiny.pt")


@pytest.fixture(scope="module")
def omat(weights):
    return load_potential("uma", weights=weights, task="omat")


def crystals():
    rng = np.random.default_rng(0)
    found = []
    for k, (name, prototype, a) in enumerate(
        [("MgO", "rocksalt", 4.2), ("ZnS", "zincblende", 5.4), ("Cu", "fcc", 3.6)]
    ):
        atoms = bulk(name, prototype, a) * (1 + k % 2, 1, 2)
        atoms.set_cell(atoms.cell[:] @ (np.eye(3) + rng.normal(0, 0.03, (3, 3))), scale_atoms=True)
        atoms.positions += rng.normal(0, 0.1, atoms.positions.shape)
        found.append(Structure.from_ase(atoms))
    return found


def test_agrees_with_fairchems_own_calculator(weights, omat):
    from fairchem.core import FAIRChemCalculator

    calculator = FAIRChemCalculator.from_model_checkpoint(
        str(weights), task_name="omat", inference_settings="batch", device="cpu"
    )
    for s in crystals():
        atoms = s.to_ase()
        atoms.calc = calculator
        ours = omat.compute([s])[0]
        assert ours.energy / len(s) == pytest.approx(atoms.get_potential_energy() / len(s), abs=1e-6)
        assert np.abs(ours.forces - atoms.get_forces()).max() < 1e-6
        assert np.abs(ours.stress - atoms.get_stress(voigt=False)).max() < 1e-7
        assert np.abs(ours.stress).max() > 1e-5


def test_forces_and_stress_are_derivatives_of_the_energy(omat):
    s, step = crystals()[1], 0.02
    prediction = omat.compute([s])[0]

    def energy(positions, cell):
        return omat.compute([Structure(s.numbers, positions, cell)])[0].energy

    k, axis = np.unravel_index(np.abs(prediction.forces).argmax(), prediction.forces.shape)
    up, down = s.positions.copy(), s.positions.copy()
    up[k, axis] += step
    down[k, axis] -= step
    slope = (energy(up, s.cell) - energy(down, s.cell)) / (2 * step)
    assert prediction.forces[k, axis] == pytest.approx(-slope, rel=0.05)
    for a, b in itertools.combinations_with_replacement(range(3), 2):
        strains = []
        for sign in (1, -1):
            strain = np.zeros((3, 3))
            strain[a, b] += sign * step / 2
            strain[b, a] += sign * step / 2
            strains.append(np.eye(3) + strain)
        slope = (energy(s.positions @ strains[0], s.cell @ strains[0])
                 - energy(s.positions @ strains[1], s.cell @ strains[1])) / (2 * step) / s.volume  # fmt: skip
        assert prediction.stress[a, b] == pytest.approx(slope, abs=0.05 * np.abs(prediction.stress).max())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_batch_mates_move_no_number(weights, omat, checkpointing):
    together = UMA(weights, activation_checkpointing=checkpointing)
    together.batched = True
    structures = crystals()
    alone = [omat.compute([s])[0] for s in structures]
    for order in [(0, 1, 2), (2, 0, 1)]:
        for k, prediction in zip(order, together.compute([structures[k] for k in order]), strict=True):
            assert prediction.energy == pytest.approx(alone[k].energy, abs=1e-5)
            assert np.abs(prediction.forces - alone[k].forces).max() < 1e-6
            assert np.abs(prediction.stress - alone[k].stress).max() < 1e-6


def test_handedness_of_the_cell_changes_nothing(omat):
    for s in crystals():
        left, right = omat.compute([Structure(s.numbers, s.positions, s.cell[[1, 0, 2]]), s])
        assert left.energy == pytest.approx(right.energy, abs=1e-5)
        assert np.abs(left.forces - right.forces).max() < 1e-6
        assert np.abs(left.stress - right.stress).max() < 1e-6


def test_says_what_it_knows_and_what_was_never_trained(weights, omat):
    assert (omat.id, omat.stress_trained) == ("uma-omat", True)
    assert not omat.elements & set(UNSEEN)
    assert {1, 6, 8, 30} <= omat.elements
    odac = load_potential("uma", weights=weights, task="odac")
    assert odac.weights_sha256 == omat.weights_sha256
    assert not odac.stress_trained
    assert "keep the cell fixed" in odac.notes


def test_missing_weights_say_how_to_get_them(tmp_path):
    for absent in (None, tmp_path / "absent.pt"):
        with pytest.raises(UsageError, match=r"accept the licence .* once on a login node .* --weights FILE"):
            load_potential("uma", weights=absent)


def test_files_that_are_no_checkpoint_and_tasks_it_lacks_are_usage_errors(weights, tmp_path):
    junk = tmp_path / "junk.pt"
    for content in (b"not a pickle", pickle.dumps({"a": 1})):
        junk.write_bytes(content)
        with pytest.raises(UsageError, match="no UMA checkpoint"):
            load_potential("uma", weights=junk)
    with pytest.raises(UsageError, match="it has oc20, odac, omat, omc, omol"):
        load_potential("uma", weights=weights, task="steel")


def test_without_fairchem_the_extra_is_named(weights, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "fairchem.core.units.mlip_unit", None)
    with pytest.raises(UsageError, match=r"promof-hpc\[uma\]"):
        load_potential("uma", weights=weights)


def test_no_network_and_no_chatter(weights, monkeypatch, caplog):
    def refuse(*_args, **_kwargs):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    with caplog.at_level(logging.INFO):
        UMA(weights).compute(crystals()[:1])
    assert not caplog.records
