"""A training job in one process: how it leaves where nobody evaluates what it proposed."""

from types import SimpleNamespace

import pytest

from hpc.design import begin_design
from hpc.preemption import Asked, Parting
from hpc.training import waiting
from hpc.training.job import Place, train
from promof_hpc.store.claims import is_led
from promof_hpc.store.events import read_events
from promof_hpc.store.run_dir import has_ended, request_stop
from tests.campaigns import small_design


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A campaign that has not begun."""
    for name, value in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "", "MASTER_PORT": 1}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(waiting, "LOOK_S", 0.0)
    return begin_design(tmp_path / "run", small_design())[0]


REQUESTS = SimpleNamespace(asked=Asked.NOTHING, pressing=lambda patience_s: Asked.NOTHING)


def test_a_trainer_for_which_nobody_evaluates_leaves_and_says_why(run):
    asked = []

    def why_nobody(idle_s: float) -> str:
        asked.append(idle_s)
        return "no evaluate job is left" if len(asked) == 3 else ""

    parting = train(run, small_design(), REQUESTS, Place(why_nobody=why_nobody))
    assert parting == Parting(Asked.LEAVE, "no evaluate job is left")
    assert len(asked) == 3
    assert "Training stops: no evaluate job is left." in [e.get("text") for e in read_events(run)]
    assert run.round_numbers()  # what was proposed waits for the next start
    assert not has_ended(run)
    assert not is_led(run, 1e9)


def test_a_stop_file_is_told_from_a_signal(run):
    request_stop(run, "test")
    stopped = train(run, small_design(), REQUESTS, Place())
    assert stopped == Parting(Asked.LEAVE, "STOP file in the run directory")
    warned = SimpleNamespace(asked=Asked.HOLD, pressing=lambda patience_s: Asked.HOLD)
    assert train(run, small_design(), warned, Place()) == Parting(Asked.HOLD, "asked to stop")
