"""DeepSpeed's engines against torch's Adam in one process: equal steps, states that any number can read."""

import shutil

import numpy as np
import pytest

from hpc.training.world import World
from promof_hpc.design.learning.team import ALONE
from promof_hpc.errors import PromofError
from tests.integration.training_ranks import STEPS, in_processes, start, train

HALF = STEPS // 2


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return train(ALONE, tmp_path_factory.mktemp("alone"), 0, STEPS, at_once=None)


def equal(said: dict, expected: dict, begin: int = 0) -> None:
    np.testing.assert_allclose(said["weights"], expected["weights"], atol=1e-6)
    np.testing.assert_allclose(said["norms"], expected["norms"][begin:], rtol=1e-5)


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_processes_take_the_steps_of_one_and_go_on_bit_by_bit(tmp_path, alone, stage):
    folder = tmp_path / "run [1] ü's"
    whole = in_processes(2, folder, stage, 0, STEPS)
    equal(whole, alone)
    again = in_processes(2, folder, stage, HALF, STEPS)
    assert again["weights"] == whole["weights"]
    assert again["norms"] == whole["norms"][HALF:]


@pytest.mark.parametrize(("stage", "size"), [(0, 1), (1, 3), (2, 1)])
def test_another_number_of_processes_goes_on_with_the_same_optimiser(tmp_path, alone, stage, size):
    folder = tmp_path / "run [1]"
    in_processes(2, folder, stage, 0, HALF)
    equal(in_processes(size, folder, stage, HALF, STEPS), alone, HALF)
    assert not list(folder.glob(".*"))


def test_another_stage_goes_on_with_the_weights_and_says_so(tmp_path, alone):
    in_processes(2, tmp_path / "run", 1, 0, HALF)
    said = in_processes(2, tmp_path / "run", 2, HALF, STEPS)
    assert "Adam begins anew" in said["log"]
    assert "ZeRO stage 1 was used before" in said["log"]
    assert said["norms"][0] == pytest.approx(alone["norms"][HALF], rel=1e-5)  # the weights are those that were saved
    shutil.rmtree(tmp_path / "run" / str(HALF) / "toy" / "state")
    (tmp_path / "run" / str(HALF) / "toy" / "world.json").unlink()
    with pytest.raises(AssertionError, match="goes on with the engine that it was begun with"):
        in_processes(1, tmp_path / "run", 1, HALF, STEPS)


def test_what_one_process_saved_goes_on_in_several_with_the_weights_and_says_so(tmp_path, alone):
    train(ALONE, tmp_path / "run", 0, HALF, at_once=None)
    said = in_processes(2, tmp_path / "run", 1, HALF, STEPS)
    assert "Adam begins anew with the saved weights, because torch's own Adam was used before" in said["log"]
    assert said["norms"][0] == pytest.approx(alone["norms"][HALF], rel=1e-5)


def test_what_presses_one_process_stops_all_after_the_same_step(tmp_path):
    start(2, tmp_path, 1, HALF)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {
        f"stopped-{rank}": f"REQUEUE after {HALF}" for rank in (0, 1)
    }


def test_a_process_that_no_scheduler_started_is_told_so():
    with pytest.raises(PromofError, match=r"no task of a training job.*promof submit"):
        World.here({})
    slurm = {"SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NTASKS": "4", "SLURM_JOB_ID": "812345"}
    assert World.here({**slurm, "SLURM_JOB_NODELIST": "gpu07"}) == World(3, 1, 4, "gpu07", 12_000 + 812345 % 8_000)
    assert World.here({**slurm, "SLURM_JOB_NODELIST": "n[1-2]", "MASTER_ADDR": "10.0.0.7"}).address == "10.0.0.7"
