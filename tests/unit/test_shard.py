"""Write-once shards: whole or absent, first writer wins, damage is seen."""

import multiprocessing
import os
import random
import signal
import time
from itertools import pairwise

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promof_hpc.errors import PromofError
from promof_hpc.store.shard import CorruptShard, Shard, list_names, publish_text, ragged, read_shard, write_shard


def _shard(seed: int = 0, rows: int = 50) -> Shard:
    rng = np.random.default_rng(seed)
    arrays = {"x": rng.normal(size=(rows, 3)), "n": rng.integers(0, 9, rows), "t": [f"täxt {k}" for k in range(rows)]}
    return Shard(arrays, {"batch": "00000-00001", "round": 3})


def test_round_trip_keeps_everything(tmp_path):
    shard = _shard()
    assert write_shard(tmp_path / "a.h5", shard)
    back = read_shard(tmp_path / "a.h5")
    assert back.digest() == shard.digest()
    assert np.array_equal(back.arrays["x"], shard.arrays["x"])
    assert back.arrays["t"] == shard.arrays["t"]
    assert back.attrs == shard.attrs


def test_first_writer_wins_and_nothing_is_left_behind(tmp_path):
    assert write_shard(tmp_path / "a.h5", _shard(1))
    assert not write_shard(tmp_path / "a.h5", _shard(2))
    assert read_shard(tmp_path / "a.h5").digest() == _shard(1).digest()
    assert os.listdir(tmp_path) == ["a.h5"]


@pytest.mark.parametrize("where", [0.1, 0.5, 0.9, 0.999])
def test_truncation_is_seen(tmp_path, where):
    path = tmp_path / "a.h5"
    write_shard(path, _shard())
    with path.open("r+b") as file:
        file.truncate(int(path.stat().st_size * where))
    with pytest.raises(CorruptShard, match=r"a\.h5"):
        read_shard(path)


def test_a_flipped_value_is_seen(tmp_path):
    path = tmp_path / "a.h5"
    write_shard(path, _shard())
    with h5py.File(path, "r+") as file:
        file["n"][3] += 1
    with pytest.raises(CorruptShard, match="digest"):
        read_shard(path)


def _write_for_ever(folder):
    k = 0
    while True:
        write_shard(folder / f"{k:05d}.h5", _shard(k, 3000))
        k += 1


def test_a_killed_writer_leaves_only_whole_shards(tmp_path):
    rng = random.Random(4)
    for trial in range(5):
        folder = tmp_path / str(trial)
        folder.mkdir()
        writer = multiprocessing.get_context("fork").Process(target=_write_for_ever, args=(folder,))
        writer.start()
        deadline = time.monotonic() + 30
        while len(list_names(folder)) < rng.randint(1, 4) and time.monotonic() < deadline:
            time.sleep(rng.random() * 0.01)
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        names = list_names(folder)
        assert names
        for name in names:
            assert read_shard(folder / name).digest() == _shard(int(name[:5]), 3000).digest()


def _race(path, barrier, results, k):
    barrier.wait()
    results[k] = publish_text(path, str(k))


def test_of_many_writers_exactly_one_publishes(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(8), context.Array("i", 8)
    writers = [context.Process(target=_race, args=(tmp_path / "claim", barrier, results, k)) for k in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert sum(results) == 1
    assert (tmp_path / "claim").read_text() == str(list(results).index(1))


def test_missing_folder_is_one_sentence(tmp_path):
    with pytest.raises(PromofError, match="Cannot write"):
        write_shard(tmp_path / "absent" / "a.h5", _shard())


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 6), max_size=8))
def test_ragged_gives_every_item_back(lengths):
    items = [np.arange(n, dtype=float) + 10 * k for k, n in enumerate(lengths)]
    flat, ptr = ragged(items)
    assert [flat[a:b].tolist() for a, b in pairwise(ptr)] == [i.tolist() for i in items]


def test_text_that_is_not_unicode_is_kept_visibly(tmp_path):
    write_shard(tmp_path / "a.h5", Shard({"t": ["a\udcffb", "nul\0byte", "<b>"]}))
    assert read_shard(tmp_path / "a.h5").arrays["t"] == ["a\\udcffb", "nul\\0byte", "<b>"]
