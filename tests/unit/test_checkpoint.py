"""Checkpoints: whole or not there at all, checked before they are used, and never fewer than two."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from promof_hpc.errors import PromofError
from promof_hpc.store.checkpoint import KEPT, newest_checkpoint, save_checkpoint, sweep_checkpoints, what_is_wrong
from promof_hpc.store.run_dir import RunDir

ROOT = Path(__file__).parents[2]


def _copy(text):
    def copy(folder):
        def write():
            (folder / "weights.bin").write_bytes(text.encode() * 100)
            (folder / "more").mkdir()
            (folder / "more" / "state.json").write_text(json.dumps({"text": text}))

        return write

    return copy


@pytest.fixture
def run(tmp_path):
    return RunDir.create(tmp_path / "run")


def _state(folder):
    return json.loads((folder / "more" / "state.json").read_text())["text"]


def test_without_checkpoints_there_is_none(run):
    assert newest_checkpoint(run).folder is None
    assert newest_checkpoint(run).number == 0


def test_the_newest_one_comes_back_with_all_its_files(run):
    for number in (1, 2, 10):
        assert save_checkpoint(run, number, _copy(f"state {number}"))()
    found = newest_checkpoint(run)
    assert (found.number, found.skipped) == (10, ())
    assert _state(found.folder) == "state 10"
    assert (found.folder / "weights.bin").read_bytes() == b"state 10" * 100


def test_the_last_two_are_kept_and_older_ones_go(run):
    for number in range(1, 7):
        save_checkpoint(run, number, _copy("x"))()
        names = sorted(p.name for p in run.checkpoints.iterdir())
        assert names == [f"{n:05d}" for n in range(max(1, number - KEPT + 1), number + 1)]


def test_the_first_writer_wins(run):
    assert save_checkpoint(run, 1, _copy("first"))()
    assert not save_checkpoint(run, 1, _copy("second"))()
    assert _state(newest_checkpoint(run).folder) == "first"


def _cut(folder):
    (folder / "weights.bin").write_bytes(b"state")


def _drop(folder):
    (folder / "more" / "state.json").unlink()


def _tear(folder):
    (folder / "manifest.json").write_text('{"sha256": {')


def _lose_the_manifest(folder):
    (folder / "manifest.json").unlink()


def _replace_the_manifest(folder):
    (folder / "manifest.json").write_text("[]")


@pytest.mark.parametrize(("damage", "word"), [
    (_cut, "weights.bin is damaged"), (_drop, "more/state.json is missing"), (_tear, "manifest cannot be read"),
    (_lose_the_manifest, "no manifest"), (_replace_the_manifest, "manifest cannot be read"),
])  # fmt: skip
def test_a_damaged_one_is_passed_over_named_and_can_be_written_again(run, damage, word):
    save_checkpoint(run, 1, _copy("one"))()
    save_checkpoint(run, 2, _copy("two"))()
    damage(run.checkpoints / "00002")
    found = newest_checkpoint(run)
    assert (found.number, _state(found.folder)) == (1, "one")
    assert len(found.skipped) == 1
    assert word in found.skipped[0]
    assert "00002" in found.skipped[0]
    assert save_checkpoint(run, 2, _copy("two again"))()
    assert _state(newest_checkpoint(run).folder) == "two again"


def test_a_writer_that_fails_leaves_the_earlier_one(run):
    save_checkpoint(run, 1, _copy("one"))()

    def fail():
        raise OSError(28, "No space left on device")

    def copy(folder):
        (folder / "half").write_text("x")
        return fail

    with pytest.raises(PromofError, match="disk is full"):
        save_checkpoint(run, 2, copy)()
    with pytest.raises(PromofError, match="disk is full"):
        save_checkpoint(run, 2, lambda folder: fail())
    assert newest_checkpoint(run).number == 1
    assert [p.name for p in run.checkpoints.iterdir()] == ["00001"]


def test_what_killed_writers_left_is_swept_and_foreign_folders_are_no_checkpoints(run):
    (run.checkpoints / ".00003.host-1-abc.tmp").mkdir()
    (run.checkpoints / "notes").mkdir()
    save_checkpoint(run, 1, _copy("one"))()
    sweep_checkpoints(run)
    assert sorted(p.name for p in run.checkpoints.iterdir()) == ["00001", "notes"]
    assert newest_checkpoint(run).number == 1


def test_sigkill_at_any_moment_leaves_only_whole_checkpoints(run):
    code = (
        "import os, sys; from pathlib import Path\n"
        "from promof_hpc.store.checkpoint import save_checkpoint; from promof_hpc.store.run_dir import RunDir\n"
        "run = RunDir(Path(sys.argv[1]))\n"
        "def write(folder):\n"
        "    for k in range(5): (folder / f'{k}.bin').write_bytes(os.urandom(200_000))\n"
        "for number in range(int(sys.argv[2]), 10**6):\n"
        "    save_checkpoint(run, number, lambda folder: lambda: write(folder))()\n"
    )
    rng, highest = random.Random(7), 0
    for _ in range(6):
        writer = subprocess.Popen([sys.executable, "-c", code, str(run.path), str(highest + 1)], cwd=ROOT)
        deadline = time.monotonic() + 60
        while newest_checkpoint(run).number <= highest and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(rng.random() * 0.3)
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
        found = newest_checkpoint(run)
        assert found.skipped == ()
        assert found.number > highest
        assert what_is_wrong(found.folder) is None
        highest = found.number
