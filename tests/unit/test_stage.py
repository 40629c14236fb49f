"""Staging: copies that are whole or absent whatever is killed when, compared by digest, and made once a node."""

import fcntl
import hashlib
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpc.cluster.staging.environment import Interpreter
from hpc.cluster.staging.node import node_local, weights_near
from hpc.cluster.staging.record import _yaml, read_staged
from hpc.cluster.staging.stage import config_to_stage, stage, stage_config
from promof_hpc.config import DesignConfig, PotentialSettings, RunConfig, ScreenConfig, load_config
from promof_hpc.errors import PromofError, UsageError
from promof_hpc.store.run_dir import RunDir
from tests.commands import ENVIRONMENT
from tests.processes import wait_for

MEGABYTE = 1 << 20
ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts a small disk")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def flip(path: Path, at: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.fixture
def sources(tmp_path):
    """A checkpoint, a folder of weights with its training, prepared data and a reference set."""
    files = {
        "uma.pt": b"checkpoint", "set.json": b"{}",
        "weights/chemist.safetensors": b"c" * 1000, "weights/chemist.json": b"{}",
        "weights/engineer.safetensors": b"e" * 1000, "weights/training/chemist/00001.pt": b"optimiser",
        "data/nodes.h5": b"nodes", "data/train/00000.h5": b"zero", "data/train/00001.h5": b"one",
        "data/.cache/x": b"hidden", "data/train/.00002.h5.tmp": b"half",
    }  # fmt: skip
    for name, content in files.items():
        path = tmp_path / "home" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "home"


def campaign(sources: Path, *overrides: str) -> DesignConfig:
    keys = {
        "evaluation.potential.name": "uma", "evaluation.potential.weights": sources / "uma.pt",
        "policy.weights": sources / "weights", "policy.data": sources / "data", "reference": sources / "set.json",
    }  # fmt: skip
    return load_config(DesignConfig, None, [*(f"{key}={value}" for key, value in keys.items()), *overrides])


def contents(folder: Path) -> dict[str, bytes]:
    """Every file, by its path from the folder, without records."""
    found = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    return {name: content for name, content in found.items() if name not in ("staged.json", ".stage.lock")}


def test_a_campaign_uses_the_copies_by_the_options_that_are_printed(sources, tmp_path):
    target = tmp_path / "shared disk: a #1 'quote' é"
    staged = stage(campaign(sources), target)
    words = shlex.split(" ".join(staged.set_options()))
    config = load_config(DesignConfig, None, ["evaluation.potential.name=uma", *words[1::2]])
    assert Path(config.evaluation.potential.weights).read_bytes() == b"checkpoint"
    assert Path(config.reference).read_bytes() == b"{}"
    assert contents(Path(config.policy.weights)).keys() == {
        "chemist.safetensors", "chemist.json", "engineer.safetensors"
    }  # fmt: skip
    assert contents(Path(config.policy.data)) == {
        "nodes.h5": b"nodes", "train/00000.h5": b"zero", "train/00001.h5": b"one"
    }  # fmt: skip
    assert all(Path(place).is_relative_to(target) for place in (config.policy.data, config.reference))


def test_the_record_has_the_digest_of_every_file(sources, tmp_path):
    staged = stage(campaign(sources), tmp_path / "shared")
    record = json.loads((staged.target / "staged.json").read_text())
    recorded = {name: file["sha256"] for item in record["items"] for name, file in item["files"].items()}
    assert recorded == {name: hashlib.sha256(content).hexdigest() for name, content in contents(staged.target).items()}
    assert read_staged(staged.target) == staged


def test_a_second_call_copies_only_what_is_missing_or_differs(sources, tmp_path):
    target, told = tmp_path / "shared", []
    staged = stage(campaign(sources), target)
    before = {path: path.stat().st_ino for path in target.rglob("*.*")}
    broken = target / next(name for name in staged.items[2].files if "00001" in name)
    flip(broken)
    missing = target / staged.items[0].path
    missing.unlink()
    assert stage(campaign(sources), target, tell=told.append) == staged
    assert [int(re.search(r"(\d+) of", line)[1]) for line in told] == [1, 0, 1, 0]
    assert broken.read_bytes() == b"one"
    assert missing.read_bytes() == b"checkpoint"
    same = {path: path.stat().st_ino for path in before if path not in (broken, missing, target / "staged.json")}
    assert same.items() <= before.items()


def test_other_weights_take_nothing_from_a_run_that_uses_the_old_ones(sources, tmp_path):
    old = stage(campaign(sources), tmp_path / "shared")
    flip(sources / "weights" / "chemist.safetensors")
    new = stage(campaign(sources), tmp_path / "shared")
    paths = [next(i.path for i in staged.items if i.key == "policy.weights") for staged in (old, new)]
    assert paths[0] != paths[1]
    assert contents(tmp_path / "shared" / paths[0])["chemist.safetensors"] == b"c" * 1000


def test_what_comes_with_the_package_needs_nothing(tmp_path):
    staged = stage(DesignConfig(), tmp_path / "shared")
    assert staged.items == ()
    assert staged.set_options() == []
    assert staged.notes == (
        "sevennet-0 comes with its package and needs nothing", "policy.weights is shipped and needs nothing",
        "policy.data is shipped and needs nothing", "reference is shipped and needs nothing",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("evaluation.potential.weights=/absent/uma.pt", "weights is /absent/uma.pt, where no file is; correct it"),
        ("evaluation.potential.weights=none", "weights is not set, and UMA needs it: accept the licence"),
        ("policy.weights=/absent", "policy.weights is /absent, which is no folder; correct it"),
        ("policy.weights={home}/data/train", "data/train, which has no files for it; correct it"),
        ("policy.data={home}/set.json", "set.json, which is no folder; correct it"),
        ("reference={home}/data", "data, where no file is; correct it"),
        ("policy.data={home}", "lies in .*home, which is to be copied .policy.data.; choose a folder outside"),
    ],
)
def test_what_is_not_there_is_named_with_its_key_and_a_remedy(sources, override, told):
    with pytest.raises(UsageError, match=told):
        stage(campaign(sources, override.format(home=sources)), sources / "shared")
    assert not (sources / "shared").exists()


def test_a_second_opinion_of_uma_needs_its_weights(sources):
    config = campaign(sources, "evaluation.potential.name=sevennet-0", "evaluation.potential.weights=none",
                      "second_opinion=uma")  # fmt: skip
    with pytest.raises(UsageError, match="weights is not set, and UMA needs it"):
        stage(config, sources / "shared")


@pytest.mark.parametrize("place", ["/proc/1/shared", "{home}/uma.pt"])
def test_a_place_that_cannot_be_written_is_named_with_a_remedy(sources, place):
    with pytest.raises(
        PromofError, match=r"Cannot write .*; free some space there, or choose another folder with --to"
    ):
        stage(campaign(sources), Path(place.format(home=sources)))


def test_two_at_a_time_are_refused(sources, tmp_path):
    stage(DesignConfig(), tmp_path / "shared")
    with (tmp_path / "shared" / ".stage.lock").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(PromofError, match=r"Another `promof stage` is at work in .*; wait for it"):
            stage(campaign(sources), tmp_path / "shared")
    stage(campaign(sources), tmp_path / "shared")


@pytest.fixture
def small_disk(tmp_path):
    """A disk of one megabyte."""
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(place)], check=True)
    yield place
    subprocess.run(["umount", str(place)], check=True)


@ROOT_ONLY
def test_a_full_disk_is_told_and_leaves_no_half_file(sources, small_disk, tmp_path):
    (sources / "uma.pt").write_bytes(os.urandom(2 * MEGABYTE))
    with pytest.raises(PromofError, match=r"Cannot write .*small.*: No space left on device; free some space there"):
        stage(campaign(sources), small_disk)
    assert contents(small_disk) == {}
    staged = stage(campaign(sources), tmp_path / "shared")
    with pytest.raises(PromofError, match=r"has 0.00 GB free, and the copy of .* needs 0.00 GB; free some space there"):
        node_local(staged, small_disk)


STAGE = """
import sys
from pathlib import Path
from hpc.cluster.staging.stage import stage
from promof_hpc.config import DesignConfig, load_config
stage(load_config(DesignConfig, None, sys.argv[2:]), Path(sys.argv[1]))
"""


def start(program: str, *words: object, **variables: str) -> subprocess.Popen:
    command = [sys.executable, "-c", program, *map(str, words)]
    return subprocess.Popen(command, env=ENVIRONMENT | variables, stdout=subprocess.PIPE, text=True)


def test_sigkill_in_the_middle_leaves_no_half_file_under_its_name(sources, tmp_path):
    names = [f"data/train/{number:05d}.h5" for number in range(4)]
    for name in names:
        (sources / name).write_bytes(os.urandom(24 * MEGABYTE))
    whole = {Path(name).name: sha256(sources / name) for name in names}
    target, rng, halves = tmp_path / "shared", random.Random(0), 0

    def half_written() -> list[Path]:
        return [p for p in target.rglob(".*.tmp") if p.stat().st_size > rng.random() * 24 * MEGABYTE]

    for _ in range(4):
        process = start(STAGE, target, f"policy.data={sources / 'data'}")
        while process.poll() is None and not half_written():
            time.sleep(0)
        process.send_signal(signal.SIGKILL)
        process.wait()
        halves += len(list(target.rglob(".*.tmp")))
        named = list(target.rglob("0*.h5"))
        assert {path.name: sha256(path) for path in named}.items() <= whole.items()
        assert (target / "staged.json").exists() <= (len(named) == len(names))
    assert halves > 0, "no kill came in the middle of a copy"
    stage(load_config(DesignConfig, None, [f"policy.data={sources / 'data'}"]), target)
    assert {path.name: sha256(path) for path in target.rglob("0*.h5")} == whole
    assert not list(target.rglob(".*.tmp"))


# one copy a node

ASK = """
import sys
from pathlib import Path
from hpc.cluster.staging.node import node_local
from hpc.cluster.staging.record import read_staged
copy = node_local(read_staged(Path(sys.argv[1])), Path(sys.argv[2]))
print(copy, next(copy.glob("potential-*/uma.pt")).stat().st_ino)
"""
STEP = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0"}


@pytest.fixture
def staged(sources, tmp_path):
    (sources / "uma.pt").write_bytes(os.urandom(8 * MEGABYTE))
    return stage(campaign(sources), tmp_path / "shared")


def test_of_all_tasks_of_a_step_one_a_node_copies(staged, tmp_path):
    nodes = [tmp_path / "node1", tmp_path / "node2"]
    tasks = [start(ASK, staged.target, node, **STEP) for node in nodes * 3]
    said = [task.communicate(timeout=60)[0].split() for task in tasks]
    for number, node in enumerate(nodes):
        answers = said[number::2]
        assert answers[0] == answers[1] == answers[2]  # a second copy would have had another inode
        assert Path(answers[0][0]).is_relative_to(node)
        copied = contents(Path(answers[0][0]))
        copied.pop("checked")
        assert copied == contents(staged.target)


def test_the_command_prints_the_place_and_nothing_else(staged, tmp_path):
    command = [sys.executable, "-m", "hpc.cluster.staging.node", staged.target, tmp_path / "node"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=True)
    assert (Path(done.stdout.strip()) / staged.items[0].path).is_file()
    command[3] = tmp_path / "nothing"
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert re.fullmatch(r"promof stage: Nothing is staged in .*; run `promof stage` first.\n", done.stderr)


def test_when_the_task_that_copies_is_killed_the_next_takes_over(sources, tmp_path):
    (sources / "uma.pt").write_bytes(os.urandom(MEGABYTE) * 256)  # takes longer than from one look to the next
    staged, node = stage(campaign(sources), tmp_path / "shared"), tmp_path / "node"
    first = start(ASK, staged.target, node, **STEP)
    wait_for(lambda: list(node.rglob(".*.tmp")), 30, "the copy to begin")
    first.kill()
    first.wait()
    second = start(ASK, staged.target, node, **STEP)
    copy = Path(second.communicate(timeout=60)[0].split()[0])
    assert sha256(copy / staged.items[0].path) == sha256(staged.target / staged.items[0].path)
    assert not list(node.rglob(".*.tmp"))


def test_waiting_for_another_task_ends_with_its_name(staged, tmp_path):
    copy = node_local(staged, tmp_path / "node")
    with copy.with_name(f"{copy.name}.lock").open("r+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        begin = time.monotonic()
        with pytest.raises(PromofError, match=rf"Waited 0.3 s for process {os.getpid()} on .* to copy .*--wait-s more"):
            node_local(staged, tmp_path / "node", wait_s=0.3)
    assert time.monotonic() - begin < 5


def test_a_flipped_byte_in_what_was_staged_never_reaches_a_node(staged, tmp_path):
    flip(staged.target / staged.items[0].path, at=12345)
    with pytest.raises(PromofError, match=r"uma.pt was copied to .* and the copy differs .*run `promof stage` again"):
        node_local(staged, tmp_path / "node")
    assert not list(tmp_path.glob("node/*/*/"))


def test_a_copy_is_compared_once_a_step_and_made_anew_where_it_differs(staged, tmp_path):
    node = tmp_path / "node"
    copy = node_local(staged, node, environment=STEP) / staged.items[0].path
    flip(copy)
    node_local(staged, node, environment=STEP)
    assert sha256(copy) != sha256(staged.target / staged.items[0].path)
    node_local(staged, node, environment=STEP | {"SLURM_RESTART_COUNT": "1"})
    assert sha256(copy) == sha256(staged.target / staged.items[0].path)


def test_a_folder_of_somebody_else_is_not_used(staged, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f"promof-{os.getuid()}").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PromofError, match="belongs to somebody else; choose another scratch"):
        node_local(staged, tmp_path)
    with pytest.raises(PromofError, match=r"Cannot use /proc/1/x on .*; choose another scratch"):
        node_local(staged, Path("/proc/1/x"))
    assert (tmp_path / "node").exists() is False
    node_local(staged, tmp_path / "node")
    assert (tmp_path / "node" / f"promof-{os.getuid()}").stat().st_mode & 0o777 == 0o700


@pytest.fixture
def run(tmp_path):
    """A run of a site with a disk a node."""
    run = RunDir.create(tmp_path / "run")
    run.site.write_text("scratch: $DISK/promof\n")
    return run


def test_a_job_reads_staged_weights_from_its_node(staged, run, tmp_path, monkeypatch):
    weights = staged.target / staged.items[0].path
    monkeypatch.setenv("DISK", str(tmp_path / "node"))
    assert weights_near(run, weights) == weights  # not in a job
    for name, value in STEP.items():
        monkeypatch.setenv(name, value)
    near = weights_near(run, weights)
    assert near.is_relative_to(tmp_path / "node" / "promof")
    assert sha256(near) == sha256(weights)
    copied = [path.name for path in (tmp_path / "node").rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert sorted(copied) == ["checked", "uma.pt"]  # what a rank does not read is not copied


def test_a_job_reads_the_weights_themselves_where_there_is_no_copy(staged, run, sources, tmp_path, monkeypatch, caplog):
    weights = staged.target / staged.items[0].path
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("DISK", "/proc/1")
    assert weights_near(run, None) is None
    assert weights_near(run, sources / "uma.pt") == sources / "uma.pt"  # not staged
    assert weights_near(run, weights) == weights  # no disk
    assert re.search(r"reads .*uma.pt itself: Cannot use /proc/1/promof", caplog.text)
    run.site.write_text("partition: main\n")
    assert weights_near(run, weights) == weights  # no scratch


# the environment


@pytest.fixture
def small_environment(tmp_path, monkeypatch):
    """A virtual environment with one package and one script, in place of the one that runs the tests."""
    prefix = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", prefix], check=True)
    package = next(prefix.glob("lib/python*/site-packages")) / "tiny_package"
    package.mkdir()
    (package / "__init__.py").write_text("ANSWER = 42\n")
    script = prefix / "bin" / "answer"
    script.write_text(f"#!{prefix}/bin/python\nimport tiny_package\nprint(tiny_package.ANSWER)\n")
    script.chmod(0o755)
    here = Interpreter.here()
    small = Interpreter(prefix, here.base, here.parts)
    monkeypatch.setattr(Interpreter, "here", classmethod(lambda cls: small))
    return prefix


def test_an_environment_starts_on_a_node_where_nothing_of_it_was(small_environment, tmp_path):
    told = []
    staged = stage(RunConfig(), tmp_path / "shared", environment=True, tell=told.append)
    print(*told)
    again = stage(RunConfig(), tmp_path / "shared", environment=True, tell=told.append)
    assert again == staged
    assert told[-1].endswith("is there already")
    assert staged.set_options() == []
    began = time.monotonic()
    copy = node_local(staged, tmp_path / "node")
    print(f"unpacked in {time.monotonic() - began:.1f} s")
    small_environment.rename(tmp_path / "gone")
    program = (
        "import json, os, sys, tiny_package as tiny;"
        "print(json.dumps([sys.prefix, sys.base_prefix, os.__file__, tiny.__file__]))"
    )
    bare = {"PATH": "/usr/bin:/bin"}
    done = subprocess.run([copy / "environment" / "python", "-c", program], env=bare, capture_output=True, text=True,
                          timeout=60, check=True)  # fmt: skip
    assert all(Path(path).is_relative_to(copy / "environment") for path in json.loads(done.stdout))
    first_line = (copy / "environment" / "prefix" / "bin" / "answer").read_text().splitlines()[0]
    assert first_line == f"#!{copy}/environment/prefix/bin/python"


def test_another_package_makes_another_archive(small_environment, tmp_path):
    before = Interpreter.here().fingerprint()
    assert Interpreter.here().fingerprint() == before
    (next(small_environment.glob("lib/python*/site-packages")) / "another.py").touch()
    assert Interpreter.here().fingerprint() != before


def test_the_systems_own_python_is_not_packed(monkeypatch):
    monkeypatch.setattr(sys, "prefix", "/usr")
    monkeypatch.setattr(sys, "base_prefix", "/usr")
    with pytest.raises(UsageError, match=r"the system's own \(/usr\), which cannot be packed; install promof-hpc into"):
        Interpreter.here()


# configurations


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), min_size=1).map("/".__add__))
def test_any_path_comes_back_from_a_set_option(path):
    assert load_config(RunConfig, None, [f"reference={_yaml(path)}"]).reference == path


def test_a_file_is_taken_for_a_campaign_or_a_screening_by_its_keys(tmp_path, capsys):
    file = tmp_path / "config.yaml"
    file.write_text("library: demo\n")
    assert isinstance(config_to_stage(file), ScreenConfig)
    file.write_text("strategy: random\n")
    assert isinstance(config_to_stage(file, ["seed=1"]), DesignConfig)
    file.write_text("strategy: randon\nlibary: demo\n")
    with pytest.raises(UsageError, match="2 mistakes"):
        config_to_stage(file)
    with pytest.raises(UsageError, match="Cannot read the configuration"):
        config_to_stage(tmp_path / "absent.yaml")


def test_the_command_says_what_was_copied_and_how_to_use_it(sources, tmp_path, capsys):
    file = tmp_path / "config.yaml"
    file.write_text(f"policy: {{weights: '{sources / 'weights'}'}}\n")
    assert stage_config(file, tmp_path / "shared", environment=False) == 0
    said = capsys.readouterr().out
    assert "policy.weights: 3 of 3 files copied to" in said
    assert f"--set policy.weights={tmp_path}/shared/policies-" in said


def test_tiny_uma_weights_are_staged_and_load_from_the_copy_of_a_node(tmp_path):
    pytest.importorskip("fairchem.core", reason="fairchem-core is not installed: pip install 'promof-hpc[uma]'")
    from promof_hpc.physics.registry import chosen_potential
    from tests.tiny_uma import write_tiny_uma

    weights = write_tiny_uma(tmp_path / "tiny.pt")
    settings = PotentialSettings(name="uma", weights=weights)
    config = RunConfig(evaluation=RunConfig().evaluation.model_copy(update={"potential": settings}))
    staged = stage(config, tmp_path / "shared")
    copy = node_local(staged, tmp_path / "node") / staged.items[0].path
    loaded = chosen_potential(settings.model_copy(update={"weights": copy}))
    assert loaded.weights_sha256 == sha256(weights)


def test_nothing_of_a_failed_copy_stays_on_a_node(staged, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("hpc.cluster.staging.node.put", fail)
    with pytest.raises(
        PromofError, match=r"Cannot copy .* on .*: Input/output error; free some space there, or choose"
    ):
        node_local(staged, tmp_path / "node")
    assert [path for path in (tmp_path / "node").rglob("*") if path.is_file()] == [
        tmp_path / "node" / f"promof-{os.getuid()}" / f"{staged.digest[:12]}.lock"
    ]
