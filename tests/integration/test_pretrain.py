import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from promof_hpc.config import load_config
from promof_hpc.config.pretrain import ChemistTraining, EngineerTraining
from promof_hpc.errors import PromofError, UsageError
from promof_hpc.policy.chemist_course import ChemistCourse
from promof_hpc.policy.engineer_course import EngineerCourse
from promof_hpc.policy.pretrain import Look, learning_rate, train
from promof_hpc.policy.training_data import TrainingData, energies_of, labels_of
from promof_hpc.policy.weights import load_chemist, load_engineer
from promof_hpc.store.shard import list_names
from tests.processes import wait_for

DATA = Path(str(files("promof_hpc"))) / "data" / "small_mofs"
TINY_CHEMIST = ("width=16", "depth=1", "heads=1", "validate_every=8", "random_smiles=0.3", "validation_samples=0")
TINY_ENGINEER = ("width=16", "layers=1", "heads=1", "gaussians=4", "validate_every=20", "batch_pairs=8000")


@lru_cache
def data() -> TrainingData:
    return TrainingData.read([DATA])


def chemist(*overrides: str) -> tuple[ChemistCourse, ChemistTraining]:
    settings = load_config(ChemistTraining, None, [*TINY_CHEMIST, *overrides])
    return ChemistCourse(data(), settings), settings


@lru_cache
def few() -> TrainingData:
    """The smallest MOFs, enough for an engineer to be seen learning."""
    train, val = (sorted(part, key=lambda m: len(m.decomposition.structure)) for part in (data().train, data().val))
    return replace(data(), train=tuple(train[:40]), val=tuple(val[:6]))


def engineer(*overrides: str) -> tuple[EngineerCourse, EngineerTraining]:
    settings = load_config(EngineerTraining, None, [*TINY_ENGINEER, *overrides])
    return EngineerCourse(few(), settings), settings


def after(calls: int):
    """Says stop at its `calls`-th call."""
    left = iter(range(1, calls + 1))
    return lambda: next(left, calls) == calls


def outcome(out: Path, policy: str) -> tuple[str, list[dict]]:
    """Digest of the weights and the loss curve without its clock."""
    card = json.loads((out / f"{policy}.card.json").read_text())
    lines = [json.loads(line) for line in (out / f"{policy}.losses.jsonl").read_text().splitlines()]
    return card["weights_sha256"], [{k: v for k, v in line.items() if k != "elapsed_s"} for line in lines]


def command(out: Path, *overrides: str) -> list[str]:
    flags = [x for o in (*TINY_CHEMIST, "checkpoint_s=0.2", *overrides) for x in ("--set", o)]
    main = [sys.executable, "-m", "hpc.cli", "pretrain", "chemist", "--data", str(DATA), "--out", str(out)]
    return [*main, "--steps", "60", *flags]


def run(arguments: list[str]) -> subprocess.CompletedProcess:
    return subprocess.run(arguments, capture_output=True, text=True, env=one_thread(), timeout=300)


def one_thread() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def kill_once_a_checkpoint_is_there(out: Path, later_than: str) -> str:
    """Start training, SIGKILL it when a checkpoint later than that is published; returns the last one's name."""
    folder = out / "training" / "chemist" / "checkpoints"
    process = subprocess.Popen(command(out), env=one_thread(), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    wait_for(lambda: [n for n in list_names(folder, ".pt") if n > later_than], 120, "a checkpoint")
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    return list_names(folder, ".pt")[-1]


def test_training_under_sigkill_and_repetition_ends_with_the_same_bits(tmp_path):
    undisturbed = run(command(tmp_path / "a"))
    assert undisturbed.returncode == 0, undisturbed.stderr
    assert "validation" in undisturbed.stderr
    last = kill_once_a_checkpoint_is_there(tmp_path / "b", "")
    last = kill_once_a_checkpoint_is_there(tmp_path / "b", last)
    assert not (tmp_path / "b" / "chemist.safetensors").exists()
    assert run(command(tmp_path / "b")).returncode == 0
    assert outcome(tmp_path / "a", "chemist") == outcome(tmp_path / "b", "chemist")
    assert not list((tmp_path / "b").rglob("*.tmp"))


def test_term_stops_with_a_checkpoint_and_the_code_for_resuming(tmp_path):
    process = subprocess.Popen(
        command(tmp_path, "checkpoint_s=1000", "width=64"), env=one_thread(), stdout=subprocess.PIPE, text=True,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr
    process.stderr.readline()  # the first line of the loss curve
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75
    assert process.stdout
    assert "the same command goes on" in process.stdout.read()
    assert len(list_names(tmp_path / "training" / "chemist" / "checkpoints", ".pt")) == 1


@pytest.mark.parametrize(("course", "policy"), [(chemist, "chemist"), (engineer, "engineer")])
@pytest.mark.parametrize("stops", [[1], [3, 9]])
def test_a_training_stopped_at_any_step_goes_on_to_the_same_bits(tmp_path, course, policy, stops):
    assert train(*course("steps=25"), tmp_path / "a")
    for calls in stops:
        assert not train(*course("steps=25"), tmp_path / "b", stop=after(calls))
    assert train(*course("steps=25"), tmp_path / "b")
    assert outcome(tmp_path / "a", policy) == outcome(tmp_path / "b", policy)


def test_sets_above_the_cap_are_left_out_and_none_left_is_an_error():
    settings = load_config(EngineerTraining, None, [*TINY_ENGINEER, "steps=1", "max_atoms=36"])
    small = sum(len(m.decomposition.structure) <= 36 for m in data().train)
    assert 0 < EngineerCourse(data(), settings).identity["mofs"] == small < len(data().train)
    with pytest.raises(UsageError, match="raise max_atoms"):
        engineer("steps=1", "max_atoms=4")


def test_another_seed_gives_other_weights(tmp_path):
    digests = []
    for seed in (0, 1):
        train(*engineer("steps=2", f"seed={seed}"), tmp_path / str(seed))
        digests.append(outcome(tmp_path / str(seed), "engineer")[0])
    assert digests[0] != digests[1]


def test_chemist_learns_and_its_best_averaged_weights_are_written(tmp_path):
    looks: list[Look] = []
    train(*chemist("steps=150", "learning_rate=1e-2", "width=32", "warmup_steps=10"), tmp_path, looks.append)
    losses = [look.losses["loss"] for look in looks if look.part == "validation"]
    assert losses[-1] < 0.75 * losses[0]
    assert looks[0].losses["loss"] < 1.5 * math.log(len(data().vocabulary))
    card = json.loads((tmp_path / "chemist.card.json").read_text())
    assert card["validation"]["loss"] == min(losses)
    overrides = [word for word in card["command"].split() if "=" in word]
    assert load_config(ChemistTraining, None, overrides).model_dump(mode="json") == card["settings"]
    assert card["data"]["mofs"] + card["data"]["validation_mofs"] <= len(data().train) + len(data().val)
    course, _ = chemist("steps=1", "width=32")
    assert course.validate(load_chemist(tmp_path).network)["loss"] == pytest.approx(min(losses), abs=1e-6)


def test_weights_can_be_kept_by_the_share_of_valid_new_and_unique_sets(tmp_path):
    course, settings = chemist("steps=8", "validation_samples=6")
    train(course, settings, tmp_path)
    card = json.loads((tmp_path / "chemist.card.json").read_text())
    assert card["validation"]["loss"] == 1.0 - card["validation"]["vnu"]
    assert card["written"]["unconditional"]["samples"] == 6
    assert sum(card["written"]["atoms_40"]["refused"].values()) == 6  # nothing is learned in eight steps


def test_engineer_learns_from_both_geometries(tmp_path):
    looks: list[Look] = []
    course, settings = engineer("steps=60", "learning_rate=5e-3", "width=32", "warmup_steps=10", "ema=0.9")
    assert 0 < course.identity["matched"] <= course.identity["mofs"]
    train(course, settings, tmp_path, looks.append)
    losses = [look.losses["loss"] for look in looks if look.part == "validation"]
    assert losses[-1] < 0.95 * losses[0]
    assert course.validate(load_engineer(tmp_path).network)["loss"] == pytest.approx(min(losses), rel=1e-5)


def test_curves_are_in_tensorboard_and_go_on_after_a_stop(tmp_path):
    train(*chemist("steps=40"), tmp_path, stop=after(25))
    train(*chemist("steps=40"), tmp_path)
    events = EventAccumulator(str(tmp_path / "training" / "chemist" / "events")).Reload()
    lines = outcome(tmp_path, "chemist")[1]
    for part in ("training", "validation"):
        shown = {e.step: e.value for e in events.Scalars(f"loss/{part}")}
        written = {line["step"]: line["loss"] for line in lines if line["part"] == part}
        assert shown.keys() == written.keys()
        assert all(math.isclose(shown[k], written[k], rel_tol=1e-6) for k in shown)


def test_minutes_end_a_training(tmp_path):
    shares: list[float] = []
    assert train(*chemist("minutes=0.05"), tmp_path, lambda look: shares.append(look.share))
    assert shares[-1] >= 1.0
    assert load_chemist(tmp_path)


def test_a_folder_with_another_training_is_refused_by_the_differing_key(tmp_path):
    train(*chemist("steps=2"), tmp_path)
    with pytest.raises(UsageError, match=r"another depth, seed;.*--out"):
        train(*chemist("steps=2", "seed=4", "depth=2"), tmp_path)


def test_a_longer_training_goes_on_from_a_finished_one(tmp_path):
    train(*chemist("steps=4"), tmp_path)
    steps: list[int] = []
    train(*chemist("steps=9"), tmp_path, lambda look: steps.append(look.step))
    assert steps == [8, 9]


def test_a_loss_that_is_not_finite_ends_training_with_a_remedy(tmp_path):
    course, settings = chemist("steps=9")
    with torch.no_grad():
        course.network.to_logits.weight.fill_(math.nan)
    with pytest.raises(PromofError, match="lower learning_rate"):
        train(course, settings, tmp_path)


def test_a_damaged_checkpoint_is_told(tmp_path):
    train(*chemist("steps=9"), tmp_path, stop=after(2))
    (checkpoint,) = (tmp_path / "training" / "chemist" / "checkpoints").glob("*.pt")
    checkpoint.write_bytes(checkpoint.read_bytes()[:500])
    with pytest.raises(PromofError, match="delete it and repeat"):
        train(*chemist("steps=9"), tmp_path)


@pytest.mark.parametrize("lengths", [[], ["steps=3", "minutes=2"]])
def test_a_length_is_needed_once(lengths):
    with pytest.raises(UsageError, match="either steps or minutes"):
        load_config(ChemistTraining, None, lengths)


def test_a_folder_without_prepared_mofs_is_refused_with_the_command_that_makes_one(tmp_path):
    with pytest.raises(UsageError, match="promof prep"):
        TrainingData.read([tmp_path])


def test_training_data_has_one_net_each_and_labels_by_the_names_of_conditions():
    assert {m.decomposition.components for m in (*data().train, *data().val)} == {1}
    energies = energies_of("shipped")
    labels = [labels_of(m, energies) for m in data().train]
    assert all(x["atoms"] == len(m.decomposition.structure) for x, m in zip(labels, data().train, strict=True))
    known = [x for x in labels if "e_rel_ev_per_atom" in x]
    assert 10 < len(known) < len(labels)
    assert energies_of("none") == {}


def test_more_folders_add_training_mofs_but_no_validation():
    once, twice = data(), TrainingData.read([DATA, DATA])
    assert len(twice.train) == 2 * len(once.train)
    assert len(twice.val) == len(once.val)
    assert twice.digest != once.digest


def test_learning_rate_rises_then_falls_to_a_hundredth():
    settings = load_config(ChemistTraining, None, ["steps=1000", "learning_rate=1e-3", "warmup_steps=100"])
    rates = [learning_rate(settings, k, k / 1000) for k in range(1001)]
    assert rates[:100] == sorted(rates[:100])
    assert rates[100:] == sorted(rates[100:], reverse=True)
    assert max(rates) == pytest.approx(1e-3, rel=0.03)
    assert rates[-1] == pytest.approx(1e-5)
