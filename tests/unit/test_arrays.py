"""Chunks over job arrays: each has one task, no array is too long, and who holds what follows from the record."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpc.cluster.batch_script import Role, usual_request
from hpc.cluster.folders.arrays import (
    Array,
    array_limit,
    cut,
    divisions,
    in_hand,
    record,
    requests_for,
    spans,
    write_division,
)
from hpc.cluster.folders.jobs import Division
from hpc.cluster.job_state import JobState, Seen
from hpc.cluster.site import Site
from promof_hpc.store.run_dir import RunDir
from tests.slurm_commands import SlurmCommands

CHUNKS = st.integers(0, 300).map(lambda n: [f"{k:05d}.h5" for k in range(n)])


@given(CHUNKS, st.integers(1, 400))
def test_every_chunk_is_in_one_part_and_parts_are_even(chunks, parts):
    dealt = cut(chunks, parts)
    assert sorted(chunk for part in dealt for chunk in part) == chunks
    assert len(dealt) == min(parts, len(chunks))
    sizes = {len(part) for part in dealt}
    assert 0 not in sizes
    assert max(sizes, default=0) - min(sizes, default=0) <= 1
    assert all(list(part) == sorted(part) for part in dealt)


@given(st.integers(0, 5000), st.integers(1, 1001))
def test_tasks_are_cut_into_as_few_arrays_as_the_limit_allows(tasks, most):
    arrays = spans(tasks, most)
    assert [task for span in arrays for task in span] == list(range(tasks))
    assert all(0 < len(span) <= most for span in arrays)
    assert (len(arrays) - 1) * most < max(tasks, 1)
    assert max(map(len, arrays), default=0) - min(map(len, arrays), default=0) <= 1
    assert not arrays or len(arrays[0]) == max(map(len, arrays))


@given(st.integers(1, 200), st.integers(1, 40))
def test_every_array_has_its_own_name_and_size(tasks, most):
    request = usual_request(Role.SERIAL, Path("/a"), Site())
    asked = requests_for(tasks, most, request)
    assert len({one.name for _, one in asked}) == len(asked)
    assert all(one.array == len(span) for span, one in asked)
    assert (len(asked) == 1) == (asked[0][1].name == request.name)


@pytest.mark.parametrize(
    ("said", "limit"),
    [
        ("MaxArraySize = 1001\n", 1001),
        ("MaxArraySize = 0\n", 1),
        ("", 1001),
        ("MaxArraySize = 5\nKillWait = 30 sec\n", 5),
    ],
)
def test_the_controller_says_how_long_an_array_may_be_where_the_profile_does_not(tmp_path, said, limit):
    commands = SlurmCommands(tmp_path)
    commands.says("scontrol", said)
    assert array_limit(Site(), commands.scheduler()) == limit
    assert array_limit(Site(max_array=2), commands.scheduler()) == 2
    assert len(commands.calls("scontrol")) == 1, "the profile's word needs no question"


def test_a_controller_that_does_not_answer_leaves_slurms_own_default(tmp_path):
    assert array_limit(Site(), SlurmCommands(tmp_path).scheduler()) == 1001


@pytest.fixture
def jobs(tmp_path):
    run = RunDir(tmp_path / "out" / "jobs")
    run.path.mkdir(parents=True)
    return run


def test_divisions_come_back_as_they_were_written_and_in_order(jobs):
    written = [Division((("a", "b"), ("c",)), "/there", "", "promof x"), Division((), "/there", "/data", "promof y")]
    files = [write_division(jobs, division) for division in written]
    assert [name for name, _ in divisions(jobs)] == [file.name for file in files] == ["00000.json", "00001.json"]
    assert [division for _, division in divisions(jobs)] == written
    assert Division.read(files[0]) == written[0]


def _seen(**states: str):
    asked = []

    def states_of(tasks):
        asked.append(set(tasks))
        return {task: Seen(JobState(states.get(f"_{task}", "UNKNOWN"))) for task in tasks}

    return states_of, asked


def test_chunks_are_in_the_hands_of_tasks_that_have_not_ended_for_certain(jobs):
    file = write_division(jobs, Division((("a", "d"), ("b",), ("c",)), "/", "", ""))
    record(jobs, Array("7", file.name, 0, 2))
    record(jobs, Array("8", file.name, 2, 1))
    states, asked = _seen(_7_0="FAILED", _7_1="RUNNING", _8="UNKNOWN")
    assert in_hand(jobs, states) == {"b": "7_1", "c": "8"}
    assert asked == [{"7", "7_0", "7_1", "8"}], "in one question"


def test_tasks_of_an_array_that_has_ended_hold_nothing_though_nobody_has_asked_about_them_alone(jobs):
    file = write_division(jobs, Division((("a",), ("b",)), "/", "", ""))
    record(jobs, Array("7", file.name, 0, 2))
    states, _ = _seen(_7="FAILED", _7_0="UNKNOWN", _7_1="UNKNOWN")
    assert in_hand(jobs, states) == {}


def test_a_chunk_that_was_submitted_again_is_in_the_hands_of_the_later_task(jobs):
    first = write_division(jobs, Division((("a",), ("b",)), "/", "", ""))
    record(jobs, Array("7", first.name, 0, 2))
    again = write_division(jobs, Division((("b",),), "/", "", ""))
    record(jobs, Array("30", again.name, 0, 1))
    states, _ = _seen(_7_0="COMPLETED", _7_1="CANCELLED", _30="PENDING")
    assert in_hand(jobs, states) == {"b": "30"}


def test_nothing_is_in_hand_where_nothing_was_submitted(jobs):
    assert in_hand(jobs, lambda tasks: {}) == {}
