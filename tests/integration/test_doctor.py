"""The doctor on sound and on deliberately broken machines: real child processes, real disks, real MPI ranks."""

import errno
import fcntl
import json
import math
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from hpc.cluster.doctor import disk as disks
from hpc.cluster.doctor import examination, mpi
from hpc.cluster.doctor import probes as children
from hpc.cluster.doctor.disk import clock, first_writers, limits, links, locks, quota, space
from hpc.cluster.doctor.examination import (
    Probe,
    doctor,
    doctor_in_allocation,
    launcher_variables,
    lines_of,
    probes,
    run_probe,
    step_texts,
)
from hpc.cluster.doctor.mpi import plugin, thread_level
from hpc.cluster.doctor.probes import gpus, policies, why_no_gpu
from hpc.cluster.doctor.probes import main as probe
from hpc.cluster.doctor.seats import Seat, clocks, evaluators_gpus, trainers_gpus, visibility
from hpc.cluster.scheduler import Scheduler
from hpc.cluster.site import load_site
from hpc.cluster.site_check import Check, as_text
from promof_hpc.config import DesignConfig, ScreenConfig, dump_config, load_config
from promof_hpc.design.inputs import inputs_of
from promof_hpc.errors import PromofError
from promof_hpc.store.run_dir import RunDir
from promof_hpc.store.shard import publish_text
from tests.commands import ENVIRONMENT, ROOT
from tests.slurm_commands import SlurmCommands

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts a disk")
LINES = {
    "PMI and Slurm variables", "packages", "they fit together", "GPUs", "DeepSpeed", "one MPI", "mpiexec",
    "MPI threads", "weights of sevennet-0", "policies", "hard links", "file locks", "space", "quota", "disk's clock",
}  # fmt: skip
POTENTIALS = """
import os, socket, time
class Potential:
    id, weights_sha256, elements, max_atoms, batched, notes = "own", "0" * 64, frozenset(), None, False, ""
    def __init__(self, device): self.load()
class Good(Potential):
    def load(self): pass
class Asking(Potential):
    def load(self):
        try: socket.create_connection(("weights.example", 443), timeout=5)
        except OSError: pass
class Hanging(Potential):
    def load(self): time.sleep(600)
class Dying(Potential):
    def load(self): os._exit(9)
"""


def ask(name: str, *arguments: str, seconds: float = 120, site=None, **variables: str) -> dict[str, Check]:
    """The lines of a probe in a child process, by name."""
    children = Scheduler(seconds, ENVIRONMENT | variables)
    return {line.name: line for line in run_probe(Probe(name, (name, *arguments), "mend it"), site, children)}


def began(path: Path, config, sha256: str = "0" * 64, **record) -> Path:
    """A run directory as `promof` leaves it, made without loading a potential."""
    run = RunDir.create(path)
    kind = "design" if isinstance(config, DesignConfig) else "screen"
    publish_text(run.provenance, json.dumps({"kind": kind, "potential": {"weights_sha256": sha256}, **record}))
    publish_text(run.config, dump_config(config))
    return run.path


def screening(*overrides: str) -> ScreenConfig:
    return load_config(ScreenConfig, None, overrides)


# the whole


def test_a_sound_machine_passes_every_line_as_a_job_of_its_site_would_start(tmp_path):
    checks = doctor(load_site("local"), tmp_path / "runs" / "not there yet")
    assert [check for check in checks if check.passed is False] == [], as_text(checks)
    assert {check.name for check in checks if check.passed is None} <= {"quota", "DeepSpeed"}
    names = [check.name for check in checks]
    assert set(names) >= LINES
    assert len(names) == len(set(names)), "a line stands twice"
    assert list(tmp_path.iterdir()) == []


def test_whatever_hangs_dies_or_chatters_becomes_a_line(tmp_path):
    (tmp_path / "own.py").write_text(POTENTIALS)
    path = f"{ROOT}:{tmp_path}"
    for name, seconds, passed, detail in (
        ("Good", 60, True, "SHA-256 000000000000…, those that the run began with, loaded offline"),
        ("Asking", 60, False, "but it asked the network for weights.example"),
        ("Dying", 60, False, "exit code 9"),
        ("Hanging", 6, False, "did not answer within 6 s"),
    ):
        run = began(tmp_path / name, screening(f"evaluation.potential.name=own:{name}"))
        (line,) = ask("weights", str(run), seconds=seconds, PYTHONPATH=path).values()
        assert line.passed is passed, line
        assert detail in line.detail
        assert passed or line.remedy
    noise = f"Loading modules\n{json.dumps(asdict(Check('a', True, 'b')))}\n{{}}\n[1]\n{{'x'"
    assert lines_of(noise) == [Check("a", True, "b")]


def test_what_died_is_not_always_a_failure_and_what_hangs_is():
    children = Scheduler(20, ENVIRONMENT)
    (line,) = run_probe(Probe("MPI threads", ("no such probe",), "inside a job", None), None, children)
    assert line.passed is None
    asleep = load_site("local").model_copy(update={"setup": ("exec /bin/sleep 60",)})
    (line,) = run_probe(Probe("MPI threads", ("threads",), "inside a job", None), asleep, Scheduler(1, ENVIRONMENT))
    assert line.passed is False
    assert "did not answer" in line.detail


def test_what_a_site_sets_up_comes_before_the_probe(tmp_path):
    site = load_site("local").model_copy(update={"setup": ("echo module loaded", "export MPI4PY_MPIABI=openmpi")})
    line = ask("mpi", "mpich", "", site=site)["one MPI"]
    assert line.passed is False
    assert "MPI4PY_MPIABI=openmpi" in line.detail
    broken = site.model_copy(update={"python": "/absent/python"})
    (line,) = ask("mpi", "mpich", "", site=broken).values()
    assert line.passed is False
    assert "/absent/python" in line.detail


def test_mistakes_in_the_configuration_of_a_run_are_one_line(tmp_path):
    run = began(tmp_path / "run", screening())
    (run / "config.yaml").write_text("libary: demo\nbudget: -1\n")
    (line,) = ask("weights", str(run)).values()
    assert line.passed is False
    assert "2 mistakes in" in line.detail
    assert "\n" not in line.detail


def test_probes_know_what_the_profile_asks_for():
    words = {probe.words[0]: probe.words for probe in probes(load_site("modules-openmpi"), "/run")}
    assert words["mpi"] == ("mpi", "openmpi", "--mpi=pmix")
    assert words["gpus"] == ("gpus", "/run", "4", "no")
    assert {probe.words[0]: probe.words for probe in probes(None, "/run")}["gpus"] == ("gpus", "/run", "0", "yes")


# programs


def test_a_package_of_another_version_is_found_by_what_the_others_ask_for(tmp_path):
    info = tmp_path / "torch-1.0.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 1.0.0\n")
    lines = ask("packages", str(tmp_path), PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert "torch 1.0.0" in lines["packages"].detail
    assert lines["they fit together"].passed is False
    assert (
        "promof-hpc 0.1.0 has requirement torch==2.13.0, but you have torch 1.0.0" in lines["they fit together"].detail
    )


def test_a_package_that_the_run_needs_is_missed(tmp_path, monkeypatch):
    real = children._version
    monkeypatch.setattr(children, "_version", lambda name: "" if name == "deepspeed" else real(name))
    alone = next(children.packages(str(began(tmp_path / "one", DesignConfig()))))
    assert alone.passed
    assert "deepspeed not installed" in alone.detail
    team = load_config(DesignConfig, None, ["training.tasks=2"])
    several = next(children.packages(str(began(tmp_path / "two", team))))
    assert several.passed is False
    assert "pip install 'promof-hpc[train]'" in several.remedy


def test_gpus_that_are_asked_for_and_not_seen_are_explained(tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has GPUs")
    place = str(tmp_path)
    assert next(gpus(place, "0", "yes")).passed
    wanted = next(gpus(place, "2", "yes"))
    assert wanted.passed is False
    assert wanted.detail.startswith("none here") or "without CUDA" in wanted.detail
    assert wanted.remedy
    run = began(tmp_path / "run", screening("evaluation.potential.device=cuda"))
    assert next(gpus(str(run), "0", "yes")).passed is False


class BuiltWithCuda:
    """What torch says on a machine without a driver."""

    version = type("version", (), {"cuda": "12.8"})

    @staticmethod
    def init():
        raise RuntimeError("Found no NVIDIA driver on your system.\nPlease check that")


BuiltWithCuda.cuda = BuiltWithCuda


def test_why_no_gpu_is_seen_is_said_in_torchs_own_words(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert why_no_gpu(BuiltWithCuda) == "Found no NVIDIA driver on your system."
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert why_no_gpu(BuiltWithCuda) == "CUDA_VISIBLE_DEVICES is ''"


def loaded_library() -> Path:
    found = list(mpi._libraries())
    if len(found) != 1:
        pytest.skip(f"not exactly one MPI here: {found}")
    return Path(found[0])


def test_a_second_mpi_is_named_with_its_place(tmp_path):
    library = loaded_library()
    shutil.copy(library, tmp_path / "libmpi.so.40")
    line = ask("mpi", "", "", LD_LIBRARY_PATH=str(tmp_path))["one MPI"]
    assert line.passed is False
    assert str(library) in line.detail
    assert str(tmp_path / "libmpi.so.40") in line.detail
    assert "unload the module" in line.remedy


def test_a_variable_that_forces_another_mpi_is_named():
    line = ask("mpi", "", "", MPI4PY_LIBMPI="/absent/libmpi.so")["one MPI"]
    assert line.passed is False
    assert "MPI4PY_LIBMPI=/absent/libmpi.so" in line.detail
    assert line.remedy.startswith("unset MPI4PY_MPIABI and MPI4PY_LIBMPI, or load")


def test_the_mpi_must_be_the_one_of_the_profile():
    library = "openmpi" if "mpich" in mpi._libraries().values() else "mpich"
    lines = ask("mpi", library, "")
    assert lines["one MPI"].passed is False
    assert f"the profile says {library}: load it in `setup`" in lines["one MPI"].remedy
    assert "MPI of srun" not in lines


def test_a_launcher_of_another_make_is_named(tmp_path, monkeypatch):
    mpiexec = tmp_path / "mpiexec"
    mpiexec.write_text("#!/bin/sh\n/bin/echo 'mpiexec (OpenRTE) 4.1.4'\n")
    mpiexec.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert mpi._launcher("openmpi").passed
    line = mpi._launcher("mpich")
    assert line.passed is False
    assert f"{mpiexec} is openmpi, mpi4py's library mpich" in line.detail


@pytest.mark.parametrize(
    ("kind", "flag", "passed"),
    [
        ("mpich", "--mpi=pmi2", True), ("mpich", "--mpi=cray_shasta", True), ("mpich", "--mpi=pmix", None),
        ("openmpi", "--mpi=pmix_v4", True), ("openmpi", "--mpi=pmi2", False), ("openmpi", "--mpi=none", None),
    ],
)  # fmt: skip
def test_srun_must_speak_to_the_mpi(kind, flag, passed):
    assert plugin(kind, flag).passed is passed


def test_threads_need_the_highest_of_four_levels():
    assert thread_level(3, 3) == Check("MPI threads", True, "MPI_THREAD_MULTIPLE", thread_level(3, 3).remedy)
    assert [thread_level(level, 3).passed for level in range(4)] == [False, False, False, True]
    assert thread_level(1, 3).detail == "MPI_THREAD_FUNNELED"


# weights


def test_weights_are_those_that_the_run_began_with(tmp_path):
    run = began(tmp_path / "run", screening("evaluation.potential.name=lennard-jones"), "1" * 64)
    line = ask("weights", str(run))["weights of lennard-jones"]
    assert line.passed is False
    assert "was begun with lennard-jones weights 111111111111…" in line.detail


def test_a_checkpoint_with_a_flipped_byte_is_not_even_loaded(tmp_path):
    weights = tmp_path / "uma.pt"
    weights.write_bytes(b"cos\nsystem\n(S'/bin/echo loaded'\ntR.")  # a pickle that runs a command
    config = screening("evaluation.potential.name=uma", f"evaluation.potential.weights={weights}")
    line = ask("weights", str(began(tmp_path / "run", config)))["weights of uma"]
    assert line.passed is False
    assert "has SHA-256" in line.detail
    assert "the run began with 000000000000…" in line.detail
    weights.unlink()
    line = ask("weights", str(began(tmp_path / "other", config)))["weights of uma"]
    assert line.passed is False
    assert "There are no UMA weights at" in line.detail


def test_tiny_uma_weights_load_with_the_network_off(tmp_path):
    pytest.importorskip("fairchem.core", reason="fairchem-core is not installed: pip install 'promof-hpc[uma]'")
    from hpc.cluster.staging.record import File
    from tests.tiny_uma import write_tiny_uma

    weights = write_tiny_uma(tmp_path / "tiny.pt")
    config = screening("evaluation.potential.name=uma", f"evaluation.potential.weights={weights}")
    run = began(tmp_path / "run", config, File.of(weights).sha256)
    line = ask("weights", str(run), **examination.OFFLINE)["weights of uma"]
    assert line.passed, line
    assert "those that the run began with" in line.detail


def test_policies_are_those_that_the_campaign_began_with(tmp_path, capsys):
    config = DesignConfig()
    record = inputs_of(config)
    good = next(policies(str(began(tmp_path / "good", config, **record))))
    assert good.passed
    assert "chemist.safetensors" in good.detail
    record["policies"]["engineer.safetensors"] = "0" * 64
    changed = next(policies(str(began(tmp_path / "changed", config, **record))))
    assert changed.passed is False
    assert changed.detail == "others than the campaign began with: engineer.safetensors"
    damaged = tmp_path / "weights"
    shutil.copytree(ROOT / "promof_hpc" / "data" / "weights", damaged)
    content = bytearray((damaged / "chemist.safetensors").read_bytes())
    content[-1] ^= 1
    (damaged / "chemist.safetensors").write_bytes(content)
    config = load_config(DesignConfig, None, [f"policy.weights={damaged}"])
    probe("policies", str(began(tmp_path / "damaged", config, **inputs_of(config))))
    (line,) = lines_of(capsys.readouterr().out)
    assert line.passed is False
    assert "is not the file that chemist.json describes (digest differs)" in line.detail
    assert list(policies(str(began(tmp_path / "screening", screening())))) == []


# environment


def test_variables_that_make_a_rank_of_a_child_are_named():
    assert launcher_variables({"PATH": "x", "SLURM_CONF": "y", "SLURM_MPI_TYPE": "pmix"}).passed
    login = launcher_variables({"SLURM_JOB_NODELIST": "n1", "PMI_FD": "3", "SLURM_CONF": "y"})
    assert login.passed is False
    assert login.detail == "children would inherit PMI_FD, SLURM_JOB_NODELIST"
    job = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}
    assert launcher_variables(job).detail == "only those of job 7"
    assert launcher_variables(job | {"PMI_RANK": "0"}).detail == "children would inherit PMI_RANK"
    assert "and 4 more" in launcher_variables({f"PMI_{k}": "" for k in range(10)}).detail


# disks


def mounted(place: Path, *options: str):
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "none", str(place)], check=True)
    return place


@pytest.fixture
def disk(tmp_path):
    """Mounts disks in memory, and takes them away at the end."""
    places = []

    def of(*options: str) -> Path:
        places.append(mounted(tmp_path / f"disk{len(places)}", *options))
        return places[-1]

    yield of
    for place in places:
        subprocess.run(["umount", str(place)], check=True)


def test_a_sound_disk_passes_and_nothing_is_left_on_it(tmp_path):
    checks = [check(tmp_path) for check in (links, locks, space, clock)]
    assert all(check.passed for check in checks), checks
    assert list(tmp_path.iterdir()) == []


@ROOT_ONLY
def test_a_folder_that_cannot_be_written_is_told_with_a_remedy(disk):
    for check in ("links", "locks", "clock"):
        (line,) = ask(check, str(disk("size=1m", "ro"))).values()
        assert line.passed is False
        assert "the file system is read-only; choose another run directory with --run" in line.detail


@ROOT_ONLY
def test_a_full_disk_is_told(disk):
    place = disk("size=64k")
    with pytest.raises(OSError, match="No space left"):
        (place / "filler").write_bytes(bytes(100_000))
    (line,) = ask("links", str(place)).values()
    assert line.passed is False
    assert "the disk is full; free some space" in line.detail
    line = space(place)
    assert line.passed is False
    assert line.detail.startswith("0 GB and")
    assert "1 GB and 10000 files needed" in line.detail


@ROOT_ONLY
def test_few_inodes_are_told(disk):
    line = space(disk("size=2g", "nr_inodes=100"))
    assert line.passed is False
    assert "files free; 1 GB and 10000 files needed" in line.detail


def test_room_for_what_is_left_of_a_run_is_asked_for(tmp_path):
    config = load_config(DesignConfig, None, ["budget=1000000"])
    line = space(began(tmp_path / "run", config))
    assert "46.5 GB and 750000 files needed" in line.detail


def test_locks_that_do_nothing_are_told_and_harm_nobody(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    assert "locks have no effect on this disk; shards are written and read" in locks(tmp_path).detail
    monkeypatch.setattr(fcntl, "flock", refuse)
    assert locks(tmp_path).passed
    monkeypatch.setattr(disks, "write_shard", refuse)
    line = locks(tmp_path)
    assert line.passed is False
    assert "shards cannot be written" in line.detail
    assert "HDF5_USE_FILE_LOCKING: 'FALSE'" in line.remedy


def test_a_disk_that_overwrites_what_is_published_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", os.replace)  # as where hard links are emulated by renaming
    monkeypatch.setattr(Path, "unlink", lambda path, missing_ok=False: None)
    line = links(tmp_path)
    assert line.passed is False
    assert "choose another disk with --run" in line.remedy


def test_a_clock_that_differs_from_the_disks_is_told(tmp_path, monkeypatch):
    real = time.time
    for skew, words in ((100, "behind"), (-100, "ahead of")):
        monkeypatch.setattr(time, "time", lambda skew=skew: real() + skew)
        line = clock(tmp_path)
        assert line.passed is False
        assert f"a new file is {100:.0f}" in line.detail.replace("99.9", "100").replace("99.8", "100")
        assert words in line.detail


LUSTRE = """Disk quotas for usr alice (uid 1000):
     Filesystem  kbytes   quota   limit   grace   files   quota   limit   grace
       /scratch  5242880*  5000000 6291456  6d23h    1002   10000   11000       -
uid 1000 is using default block quota setting
"""
UNIX = """Disk quotas for user alice (uid 1000):
     Filesystem  blocks   quota   limit   grace   files   quota   limit   grace
      /dev/sda1  [1041408]      0       0               5       0       0
server:/home/alice  500000  1000000 1200000            160   200   0
"""


def test_limits_are_read_from_what_quota_and_lfs_print():
    shares = {words: share for share, words in limits(LUSTRE)}
    assert shares == {"5.369 of 5.12 GB": pytest.approx(1.048576), "1002 of 1e+04 files": pytest.approx(0.1002)}
    assert limits(UNIX, "/dev/sda1") == []
    assert max(limits(UNIX, "server:/home/alice")) == (0.8, "160 of 200 files")
    wrapped = "a-very-long-name-of-a-file-system\n    900  0 1000  -  5 0 0 -\n"
    assert limits(wrapped) == [(0.9, "0.0009216 of 0.001024 GB")]
    assert limits("Disk quotas for user root (uid 0): none") == []


def test_a_quota_that_is_nearly_used_up_is_told(tmp_path, monkeypatch):
    commands = SlurmCommands(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    source, _ = disks._mount(tmp_path)
    assert quota(tmp_path).detail == "quota is not in PATH"
    assert quota(tmp_path).passed is None
    for used, passed in ((500, True), (960, False)):
        commands.says("quota", f"   {source}  {used}  1000 1000   5  0  0\n")
        assert quota(tmp_path).passed is passed
    assert commands.calls("quota")[0] == "-w -u"


def test_of_several_nodes_one_may_win():
    assert first_writers([False, True]).passed
    assert first_writers([True, True]).passed is False
    assert first_writers([False, False]).passed is False


# ranks


def run_ranks(program: list[str], **variables: str) -> subprocess.CompletedProcess:
    """Two real MPI ranks on each of two nodes, which are this machine by two names."""
    mpiexec = Path(sys.executable).parent / "mpiexec"
    if not mpiexec.exists():
        pytest.skip("no mpiexec beside Python: pip install 'promof-hpc[mpi-wheel]'")
    parts = [["-n", "2", "-env", "SLURMD_NODENAME", node, sys.executable, *program] for node in ("n1", "n2")]
    environment = ENVIRONMENT | {"SLURM_NTASKS": "4", **variables}
    return subprocess.run([mpiexec, *parts[0], ":", *parts[1]], env=environment, capture_output=True, text=True,
                          timeout=120, check=False)  # fmt: skip


def rank_lines(folder: Path, disturb: str = "", **variables: str) -> dict[str, Check]:
    """The lines of real ranks, each of which has run `disturb` first."""
    program = (
        f"import os, sys, time\nimport hpc.cluster.doctor.ranks as ranks\nnode = os.environ['SLURMD_NODENAME']\n"
        f"{disturb}\nsys.exit(ranks.main([{str(folder)!r}, '--json', '--gpus=2', '--named-gpus']))"
    )
    done = run_ranks(["-c", program], **variables)
    found = {line.name: line for line in lines_of(done.stdout)}
    assert found, done.stderr
    return found


def test_ranks_of_two_nodes_pass_every_line(tmp_path):
    lines = rank_lines(tmp_path, "os.environ['CUDA_VISIBLE_DEVICES'] = os.environ['PMI_RANK'][-1]")
    assert [line for line in lines.values() if not line.passed] == []
    assert lines["MPI world"].detail == "4 ranks, as many as tasks"
    assert lines["GPUs of ranks"].detail == "n1: 0->0 1->1; n2: 2->2 3->3"
    assert lines["hard links"].detail.startswith("on 2 nodes:")
    assert lines["locks between nodes"].detail == "they keep other nodes out"
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_shows_files_late_a_skewed_clock_and_a_leak_are_measured(tmp_path):
    disturb = (
        "if node == 'n2':\n"
        "    begin, listdir, clock = time.time(), os.listdir, time.time\n"
        "    late = lambda path: [n for n in listdir(path) if clock() - os.stat(f'{path}/{n}').st_mtime > 1.2]\n"
        "    ranks.os = type('os', (), {'listdir': staticmethod(late), 'environ': os.environ})\n"
        "    ranks.time = type('time', (), {\n"
        "        'time': staticmethod(lambda: clock() - 7), 'monotonic': time.monotonic, 'sleep': time.sleep,\n"
        "        'time_ns': time.time_ns})\n"
        "    os.environ['MV2_COMM_WORLD_RANK'] = '0'"
    )
    lines = rank_lines(tmp_path, disturb, CUDA_VISIBLE_DEVICES="0")
    assert 1.1 < float(lines["file visibility"].detail.split(" after ")[1].split()[0]) < 10
    assert lines["file visibility"].passed
    assert lines["nodes' clocks"].passed is False
    assert abs(float(lines["nodes' clocks"].detail.split()[0]) + 7000) < 50
    assert lines["PMI variables"].passed is False
    assert "MV2_COMM_WORLD_RANK" in lines["PMI variables"].detail
    assert lines["GPUs of ranks"].passed is False
    assert lines["GPUs of ranks"].detail == "used twice: 0 of n1 by ranks 0, 1; 0 of n2 by ranks 2, 3"


def test_a_rank_that_fails_ends_all_and_says_where(tmp_path):
    disturb = "if os.environ['PMI_RANK'] == '3':\n    ranks.Seat.here = lambda *_: 1 / 0"
    done = run_ranks(
        [
            "-c",
            f"import os, sys\nfrom hpc.cluster.doctor import ranks\n{disturb}\nranks.main([{str(tmp_path)!r}])",
        ]
    )
    assert done.returncode
    assert "rank 3 on" in done.stderr
    assert "ZeroDivisionError" in done.stderr


def test_tasks_that_are_each_a_world_of_their_own_are_told_once():
    command = [sys.executable, "-m", "hpc.cluster.doctor.ranks", "/"]
    said = []
    for task in ("0", "1"):
        variables = {"SLURM_NTASKS": "2", "SLURM_PROCID": task}
        done = subprocess.run(command, env=ENVIRONMENT | variables, capture_output=True, text=True, timeout=60)
        said.append((done.returncode, done.stdout))
    assert said[1] == (0, "")
    assert said[0][0] == 1
    assert said[0][1].startswith("FAIL    MPI world  2 tasks, but each is a world of its own; start them as")
    assert "--mpi=pmi2 for mpich, --mpi=pmix for Open MPI" in said[0][1]


def trainers(*tasks: dict[str, str]) -> list[list[Check]]:
    command = [
        sys.executable,
        "-m",
        "hpc.cluster.doctor.ranks",
        "/",
        "--trainers",
        "--json",
        "--gpus=2",
        "--named-gpus",
    ]
    place = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "CUDA_VISIBLE_DEVICES": "0,1"}
    started = [
        subprocess.Popen(command, env=ENVIRONMENT | place | task, stdout=subprocess.PIPE, text=True) for task in tasks
    ]
    return [lines_of(process.communicate(timeout=100)[0]) for process in started]


def free_port() -> str:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def test_trainers_meet_and_each_sees_all_gpus_of_its_node():
    port = free_port()
    tasks = [{"RANK": str(rank), "SLURMD_NODENAME": f"n{rank}", "MASTER_PORT": port} for rank in (0, 1)]
    first, second = trainers(*tasks)
    assert second == []
    assert [line.name for line in first] == ["torch.distributed", "GPUs of trainers"]
    assert all(line.passed for line in first)
    assert "2 processes met by gloo" in first[0].detail
    tasks[1] |= {"CUDA_VISIBLE_DEVICES": "1", "MASTER_PORT": (port := free_port())}
    tasks[0] |= {"MASTER_PORT": port}
    line = trainers(*tasks)[0][1]
    assert line.passed is False
    assert line.detail == "too few for ranks 1 (1 of 2); n0: 0->0,1; n1: 1->1"


def test_trainers_that_do_not_find_the_first_say_so_with_a_remedy():
    (lines,) = trainers({"RANK": "1", "MASTER_ADDR": "no-such-node.invalid", "MASTER_PORT": free_port()})
    assert [line.passed for line in lines] == [False]
    assert "rank 1 on" in lines[0].detail
    assert "no-such-node.invalid port" in lines[0].detail
    assert "GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME, MASTER_ADDR" in lines[0].remedy


def seat(rank: int, node: str, *gpus: str, why: str = "") -> Seat:
    return Seat(rank, rank % 2, node, gpus, why, ())


def test_what_is_said_of_gpus():
    good = [seat(0, "a", "u0", "u1"), seat(1, "a", "u0", "u1")]
    assert evaluators_gpus(good, 2).passed
    assert trainers_gpus(good, 2).passed
    assert evaluators_gpus([seat(0, "a", "u0"), seat(1, "a", "u0")], 2).passed is False
    assert trainers_gpus([seat(0, "a", "u0"), seat(1, "a", "u1")], 2).passed is False
    none = [seat(k, "a", why="no driver") for k in range(12)]
    assert evaluators_gpus(none, 0).passed
    assert "ranks 0, 1, 2, 3, 4, 5, 6, 7 and 4 more (no driver)" in evaluators_gpus(none, 2).detail


def test_what_is_said_of_lags_and_clocks():
    assert visibility({}).passed is None
    assert visibility({"a": 0.5, "b": 12.0}).detail == "a new file is seen by other nodes after 12.000 s at most (b)"
    assert visibility({"a": 31.0}).passed is False
    assert visibility({"a": math.inf}).detail == "a did not see a new file within 60 s"
    assert clocks({}).passed is None
    assert clocks({"a": 0.001, "b": -0.25}).detail == "-250.00 ms at most (b)"
    assert clocks({"a": -6}).passed is False


# inside an allocation


def test_steps_start_ranks_as_jobs_do():
    texts = step_texts(load_site("modules-openmpi"), Path("/a run"), 2, 64)
    assert texts.keys() == {"evaluators", "trainers"}
    python = "env --block-signal=USR2 --block-signal=TERM python -m hpc.cluster.doctor.ranks '/a run' --json --gpus=4"
    setup, _, evaluators = texts["evaluators"].partition("\nexport PYTHONPATH")
    assert setup.startswith("module purge\nmodule load gcc openmpi python/3.11\n")
    assert evaluators.splitlines()[-1] == (
        "srun --overlap --nodes=2 --ntasks=8 --ntasks-per-node=4 --unbuffered --cpus-per-task=16 --kill-on-bad-exit=1 "
        f"--mpi=pmix --gpus-per-task=1 {python}"
    )
    assert texts["trainers"].splitlines()[-1] == (
        "srun --overlap --nodes=2 --ntasks=8 --ntasks-per-node=4 --unbuffered --cpus-per-task=16 --kill-on-bad-exit=1 "
        f"{python} --trainers"
    )


def test_steps_have_no_more_tasks_than_the_allocation():
    texts = step_texts(load_site("modules-openmpi"), Path("/run"), 1, 2)
    assert all("--nodes=1 --ntasks=2 --ntasks-per-node=2" in text for text in texts.values())


def test_ranks_of_the_sites_launcher_are_started_by_it():
    site = load_site("modules-openmpi")
    site = site.model_copy(update={"mpi": site.mpi.model_copy(update={"launcher": "mpiexec --bind-to core"})})
    last = step_texts(site, Path("/run"), 2, 4)["evaluators"].splitlines()[-1]
    assert last.startswith("PROMOF_RANKS=8 mpiexec --bind-to core -n 8 env --block-signal=USR2")


@pytest.fixture
def allocation(tmp_path):
    """The commands of a job of one task."""
    commands = SlurmCommands(tmp_path)
    (tmp_path / "bash").symlink_to("/bin/bash")
    return commands, {"PATH": str(tmp_path), "SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "1"}


def test_lines_of_both_steps_are_merged(allocation):
    commands, environment = allocation
    line = Check("MPI world", True, "1 rank")
    commands.says("srun", f"module loaded\n{json.dumps(asdict(line))}\n")
    assert doctor_in_allocation(load_site("test-cluster"), Path("/"), environment) == [line, line]
    assert ["--trainers" in call for call in commands.calls("srun")] == [False, True]
    assert all("--named-gpus" in call for call in commands.calls("srun"))


def test_a_step_that_fails_says_nothing_or_hangs_is_a_line(allocation, monkeypatch):
    commands, environment = allocation
    site = load_site("test-cluster")
    monkeypatch.setattr(examination, "STEP_S", 1.0)
    for body, detail in (
        (
            "echo 'srun: error: Unable to create step: More processors requested than permitted' >&2; exit 1",
            "More proc",
        ),
        ("exit 0", "it said nothing"),
        ("exec /bin/sleep 60", "did not answer within 1 s"),
    ):
        commands.write("srun", body)
        lines = doctor_in_allocation(site, Path("/"), environment)
        assert [line.name for line in lines] == ["step of evaluators", "step of trainers"]
        assert all(line.passed is False and detail in line.detail and line.remedy for line in lines), lines


def test_outside_of_a_job_it_is_told_how_to_get_one():
    (line,) = doctor_in_allocation(load_site("test-cluster"), Path("/"), {})
    assert line.passed is None
    assert "salloc --nodes=2" in line.remedy
    (line,) = doctor_in_allocation(load_site("local"), Path("/"), {"SLURM_JOB_ID": "7"})
    assert line.passed is False
    assert "this site has no scheduler" in line.detail


def test_an_own_folder_is_refused_where_none_can_be():
    with pytest.raises(PromofError, match="Cannot write"), disks.own_folder(Path("/proc")):
        pass
