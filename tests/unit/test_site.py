"""Profiles of sites: what is written wrong is named with line and hint, and what does not fit the site is found."""

import pytest
from pydantic import BaseModel

from hpc.cluster.site import SITES, Site, known_sites, load_site, minutes
from hpc.cluster.site_check import Check, as_text, site_check
from promof_hpc.config import commented, dump_config
from promof_hpc.errors import UsageError
from tests.slurm_commands import SlurmCommands

NAMES = ["apptainer", "generic", "local", "modules-openmpi", "test-cluster"]


def _load(tmp_path, text):
    path = tmp_path / "site.yaml"
    path.write_text(text)
    return load_site(path)


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_profile_loads_and_its_dump_is_read_back_equal(tmp_path, name):
    site = load_site(name)
    assert site.description
    assert _load(tmp_path, dump_config(site)) == site
    assert load_site(str(SITES / f"{name}.yaml")) == site


def test_the_shipped_profiles_are_known_by_name():
    assert known_sites() == NAMES


def test_generic_is_the_manual_of_every_key():
    text = (SITES / "generic.yaml").read_text()
    manual = commented(Site).replace("description: \n", "description: Every key with its default\n", 1) + "\n"
    assert text.endswith("\n" + manual), "write the header and commented(Site) into slurm_templates/sites/generic.yaml"
    assert load_site("generic") == Site(description="Every key with its default")


def _keys(model):
    for name, info in model.model_fields.items():
        if isinstance(info.default, BaseModel):
            yield from _keys(type(info.default))
        else:
            yield name, info.description


def test_every_key_says_what_it_means_and_in_which_unit():
    for name, description in _keys(Site):
        assert description, name
    units = {name.rsplit("_", 1)[-1] for name, info in _keys(Site) if "econds" in info or "inutes" in info}
    assert units <= {"s", "min"}


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(UsageError, match=r"'testcluster' \(did you mean 'test-cluster'\?\); known are apptainer, gen"):
        load_site("testcluster")


def test_all_mistakes_are_listed_with_line_and_hint(tmp_path):
    text = "partitionn: gpu\nmpi:\n  libary: mpich\n  srun_flag: pmi2\npreempts: sometimes\ntrain: {time_min: 12:30}\n"
    with pytest.raises(UsageError) as error:
        _load(tmp_path, text)
    told = str(error.value)
    assert "5 mistakes" in told
    for line in (
        "line 1: unknown key 'partitionn' (did you mean 'partition'?)",
        "line 3: unknown key 'mpi.libary' (did you mean 'library'?)",
        "line 4: mpi.srun_flag: 'pmi2' is not like --mpi=pmi2",
        "line 5: preempts: Input should be 'requeue', 'cancel' or 'none'",
        "line 6: train.time_min: '12:30' is not a time; write minutes, HH:MM:SS or D-HH:MM:SS",
    ):
        assert line in told


def test_words_of_a_profile_mean_what_slurm_takes_them_for(tmp_path):
    site = _load(
        tmp_path, "account: 0123\npartition: NO\nqos: none\ntrain: {time_min: 12:30:00}\nenvironment: {A: off}\n"
    )
    assert (site.account, site.partition, site.qos, site.train.time_min) == ("0123", "NO", None, 750)
    assert site.environment == {"A": "off"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90", 90), ("12:30:00", 750), ("00:00:01", 1), ("2-00", 2880), ("1-12:30", 2190), ("1-00:00:30", 1441)],
)
def test_times_are_slurms(text, expected):
    assert minutes(text) == expected


@pytest.mark.parametrize("text", ["", "12:30", "1-", "-5", "1 day", "1-2-3", "12:3:00"])
def test_a_time_that_could_be_two_is_refused(text):
    with pytest.raises(ValueError, match="is not a time"):
        minutes(text)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "signal: {lead_s: 3600}\ntrain: {time_min: 60}",
            r"signal.lead_s \(3600 s\) must be shorter than train.time_min",
        ),
        ("serial: {time_min: 5}", r"must be shorter than serial.time_min \(5 min\)"),
        ("gpu_request: --gres=gpu:4", "contain {count} once"),
        ("gpu_request: gpu:{count}", "must be --gres=... or --gpus-per-node=..."),
        ("gpu_request: --gres=gpu:{count},{count}", "contain {count} once"),
        (
            "gpus_per_node: 2\nevaluate: {tasks_per_node: 4}",
            r"evaluate.tasks_per_node \(4\) must not exceed gpus_per_node",
        ),
        ("preempts: requeue\nkill_wait_s: 0", "preempted jobs need time to save"),
        ("poll_s: 5", r"poll_s \(5\) must be 60 or more"),
        ("environment: {A-B: 1}", "'A-B' cannot be the name of a variable"),
        ("mpi: {srun_flag: --mpi=pmi2 --exclusive}", "is not like --mpi=pmi2"),
        ("signal: {lead_s: 0}", "greater than or equal to 1"),
        ("train: {nodes_max: 0}", "greater than or equal to 1"),
    ],
)
def test_what_does_not_fit_together_is_refused(tmp_path, text, told):
    with pytest.raises(UsageError, match=told):
        _load(tmp_path, text)


def test_only_a_cluster_of_ones_own_is_asked_more_often_than_once_a_minute(tmp_path):
    assert _load(tmp_path, "poll_s: 1\nprivate_cluster: true").poll_s == 1
    assert _load(tmp_path, "poll_s: 1\nscheduler: none").poll_s == 1
    assert all(load_site(name).poll_s >= 60 for name in NAMES if not load_site(name).private_cluster)


PARTITIONS = (
    "PartitionName=low AllowGroups=ALL Default=YES GraceTime=10 MaxTime=1-00:00:00 PriorityTier=1 PreemptMode=REQUEUE "
    "State=UP TRES=cpu=8\nPartitionName=high Default=NO GraceTime=0 MaxTime=UNLIMITED PriorityTier=9 PreemptMode=OFF "
    "State=DOWN\n"
)
CONFIG = (
    "KillWait = 30 sec\nMaxArraySize = 1001\nPreemptMode = REQUEUE\nPreemptType = preempt/partition_prio\n"
    "SlurmctldParameters = preempt_send_user_signal\n"
)
FITTING = Site(
    partition="low", account="chem", qos="normal", constraint="a100&nvme", gpus_per_node=4,
    gpu_request="--gres=gpu:a100:{count}", grace_s=10, preempts="requeue", max_array=1000, python="python",
)  # fmt: skip


@pytest.fixture
def slurm(tmp_path):
    """A site that FITTING fits, by its commands."""
    folder = tmp_path / "bin"
    folder.mkdir()
    commands = SlurmCommands(folder)
    for name in ("sbatch", "squeue", "scancel", "sacct"):
        commands.write(name, "exit 0")
    commands.write("srun", 'echo "MPI plugin types are..."; printf "\\tpmix\\n\\tpmi2\\n" >&2')
    (folder / "partitions").write_text(PARTITIONS)
    (folder / "config").write_text(CONFIG)
    commands.write(
        "scontrol",
        f'case "$*" in ping) echo "Slurmctld(primary) at a is UP" ;; *partition*) /bin/cat "{folder}/partitions" ;;\n'
        f'*config*) /bin/cat "{folder}/config" ;; *) echo "Reservation maint not found" >&2; exit 1 ;; esac',
    )
    commands.write("sinfo", 'case "$*" in *%f*) echo a100,nvme ;; *) echo "gpu:a100:4(S:0-1),shard:8" ;; esac')
    commands.write("sacctmgr", 'case "$*" in *qos*) echo normal; echo long ;; *) echo chem ;; esac')
    commands.write("python", "echo MPICH 5.0.2")
    for name in ("bash", "env", "true"):
        (folder / name).symlink_to(f"/usr/bin/{name}")
    return commands


def _by_name(site, slurm):
    return {check.name: check for check in site_check(site, slurm.scheduler())}


def test_a_profile_that_fits_passes_every_check(slurm):
    site = FITTING.model_copy(update={"python": None})  # the one that runs these tests, and its MPI
    checks = site_check(site, slurm.scheduler())
    assert [check.name for check in checks if check.passed is not True] == [], as_text(checks)
    assert {check.name for check in checks} == {
        "commands", "controller", "accounting", "partition", "time of train", "time of evaluate", "time of serial",
        "account", "qos", "constraint", "GPUs", "array", "preemption", "KillWait", "GraceTime", "srun --mpi", "env",
        "python", "MPI library",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "name", "detail"),
    [
        ({"partition": "lowest"}, "partition", "lowest: unknown to Slurm; it has low, high"),
        ({"partition": "high"}, "partition", "high: DOWN"),
        ({"train": {"time_min": 1441}}, "time of train", "1441 min; allowed: 1440 min"),
        ({"account": "physics"}, "account", "physics is not among chem"),
        ({"qos": "short"}, "qos", "short is not among long, normal"),
        ({"reservation": "maint"}, "reservation", "Reservation maint not found"),
        ({"constraint": "h100"}, "constraint", "h100; sinfo says a100, nvme"),
        ({"gpus_per_node": 8}, "GPUs", "8 a node asked for; sinfo says gpu:a100:4"),
        ({"gpu_request": "--gres=gpu:h100:{count}"}, "GPUs", "sinfo says gpu:a100:4"),
        ({"max_array": 1002}, "array", "1002; allowed: 1001"),
        ({"preempts": "none"}, "preemption", "none; the site says preempt/partition_prio, PreemptMode REQUEUE"),
        ({"partition": "high"}, "preemption", "PreemptMode OFF"),
        ({"kill_wait_s": 31}, "KillWait", "31 s; the site's: 30 s"),
        ({"grace_s": 11}, "GraceTime", "11 s; the site's: 10 s"),
        ({"mpi": {"srun_flag": "--mpi=pmi1"}}, "srun --mpi", "pmi1; srun knows pmix, pmi2"),
        ({"mpi": {"launcher": "mpiexec.absent -f hosts"}}, "launcher", "bash: exit code 1"),
        ({"python": "/absent/python"}, "python", "/absent/python"),
        ({"mpi": {"library": "openmpi"}}, "MPI library", "openmpi; found: MPICH"),
    ],
)
def test_what_does_not_fit_the_site_fails_with_a_remedy(slurm, changes, name, detail):
    site = Site.model_validate(FITTING.model_dump() | changes)
    check = _by_name(site, slurm)[name]
    assert check.passed is False
    assert detail in check.detail
    assert check.remedy


def test_what_slurm_does_not_say_is_not_known(slurm):
    for name in ("sinfo", "sacctmgr", "sacct"):
        slurm.write(name, "echo broken >&2; exit 1")
    (slurm.folder / "config").write_text("")
    (slurm.folder / "partitions").write_text("PartitionName=low\n\x00garbage = =\n")
    slurm.write("srun", "exit 1")
    checks = _by_name(FITTING, slurm)
    unknown = {name for name, check in checks.items() if check.passed is None}
    assert unknown == {
        "accounting", "time of train", "time of evaluate", "time of serial", "account", "qos", "constraint", "GPUs",
        "array", "preemption", "KillWait", "GraceTime", "srun --mpi",
    }  # fmt: skip


def test_without_a_controller_only_programs_are_checked(slurm):
    slurm.write("scontrol", "echo 'slurm_load_ctl_conf error: Unable to contact slurm controller' >&2; exit 1")
    (slurm.folder / "scancel").unlink()
    checks = _by_name(FITTING, slurm)
    assert list(checks) == ["commands", "controller", "env", "python", "MPI library"]
    assert checks["commands"].detail == "scancel not in PATH"
    assert "Unable to contact" in checks["controller"].detail
    assert not checks["controller"].passed


def test_a_machine_without_slurm_needs_none():
    names = [check.name for check in site_check(load_site("local"))]
    assert names == ["env", "python", "MPI library"]


def test_checks_are_one_line_each_with_a_remedy_where_they_did_not_pass():
    checks = [Check("a", True, "fine", "nothing"), Check("bcd", False, "bad", "mend it"), Check("e", None, "who knows")]
    assert as_text(checks).splitlines() == ["pass    a    fine", "FAIL    bcd  bad; mend it", "unknown e    who knows"]
