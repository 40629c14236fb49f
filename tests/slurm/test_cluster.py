"""The private cluster itself: it starts, runs steps on fake GPUs, preempts, loses nodes, and leaves nothing behind."""

import subprocess
import sys

import pytest

from tests.processes import wait_for
from tests.slurm.client import State
from tests.slurm.cluster import PrivateSlurm
from tests.slurm.configuration import Accounting, ClusterSettings, Place
from tests.slurm.daemons import ClusterError, free_ports, left_by, on_nodes

WHERE = "echo $SLURMD_NODENAME $SLURM_PROCID $CUDA_VISIBLE_DEVICES"
SLEEPER = "echo start ${SLURM_RESTART_COUNT:-0}; exec sleep 300"


def test_a_step_runs_on_two_nodes_with_two_tasks_each_and_both_gpus_visible(cluster):
    assert cluster.node_states() == dict.fromkeys(["n1", "n2", "n3", "n4"], "idle")
    job = cluster.submit(f"srun bash -c '{WHERE}'", "--nodes=2", "--ntasks-per-node=2", "--gres=gpu:2")
    done = cluster.wait_for(job, State.COMPLETED, State.FAILED)
    assert (done.state, done.nodes, done.exit_code) == (State.COMPLETED, "n[1-2]", 0)
    assert sorted(cluster.output(job).split("\n")) == ["", "n1 0 0,1", "n1 1 0,1", "n2 2 0,1", "n2 3 0,1"]


def test_each_task_can_be_given_a_gpu_of_its_own(cluster):
    job = cluster.submit(f"srun bash -c '{WHERE}'", "--ntasks-per-node=2", "--gpus-per-task=1")
    cluster.wait_for(job, State.COMPLETED)
    assert sorted(cluster.output(job).split("\n")) == ["", "n1 0 0", "n1 1 1"]


def test_sacct_knows_a_cancelled_job(cluster):
    job = cluster.submit(SLEEPER)
    cluster.wait_for(job, State.RUNNING)
    cluster.cancel(job)
    cluster.wait_for(job, State.CANCELLED)
    command = ("sacct", "-o", "JobID,State,NodeList", "--parsable2", "-j", str(job))
    wait_for(lambda: f"{job}|CANCELLED" in cluster.run(*command), 10, "the cancelled job in sacct")


def test_a_job_of_the_low_partition_is_signalled_when_one_of_the_high_wants_its_node(cluster):
    trap = "trap 'echo signalled; scontrol requeue $SLURM_JOB_ID' USR2; for _ in {1..600}; do sleep 0.1; done"
    job = cluster.submit(f"echo start ${{SLURM_RESTART_COUNT:-0}}; {trap}", "--signal=B:USR2@10", "--requeue")
    wait_for(lambda: "start 0" in cluster.output(job), 10, "the job to begin")
    high = cluster.preempt()
    assert cluster.wait_for(high, State.COMPLETED).nodes == "n[1-4]"
    assert cluster.wait_for_restart(job).restarts == 1
    wait_for(lambda: "start 1" in cluster.output(job), 10, "the second start")
    assert cluster.output(job).count("signalled") == 1


def test_without_user_signal_slurm_kills_and_requeues_a_preempted_job(cluster):
    cluster.send_user_signal_at_preemption(False)
    job = cluster.submit(f"trap 'echo signalled' USR2; {SLEEPER}", "--signal=B:USR2@10", "--requeue")
    cluster.wait_for(job, State.RUNNING)
    cluster.preempt()
    assert cluster.wait_for_restart(job).restarts == 1
    wait_for(lambda: "start 1" in cluster.output(job), 10, "the second start")
    assert "signalled" not in cluster.output(job)


def test_an_administrator_can_requeue_a_job_and_set_its_node_down(cluster):
    job = cluster.submit(SLEEPER, "--requeue")
    cluster.wait_for(job, State.RUNNING)
    cluster.requeue(job)
    node = cluster.wait_for_restart(job, 1).nodes
    cluster.set_node(node, "down")
    assert cluster.wait_for_restart(job, 2).nodes != node
    assert cluster.node_states()[node].startswith("down")


def test_a_job_outlives_its_slurmd(cluster):
    job = cluster.submit(SLEEPER)
    node = cluster.wait_for(job, State.RUNNING).nodes
    cluster.kill_slurmd(node)
    cluster.start_slurmd(node)
    cluster.wait_for_nodes("mix", nodes=[node])
    assert cluster.job(job).state == State.RUNNING
    assert any(process.name() == "sleep" for process in on_nodes(cluster.place, node))


@pytest.mark.full
def test_a_job_on_a_node_without_power_is_requeued_elsewhere(cluster):
    job = cluster.submit(SLEEPER, "--requeue")
    node = cluster.wait_for(job, State.RUNNING).nodes
    cluster.kill_node(node)
    assert not on_nodes(cluster.place, node)
    assert cluster.wait_for_restart(job, seconds=120).nodes != node


@pytest.mark.usefixtures("installed")
def test_stopping_leaves_nothing_even_with_a_dead_controller_and_a_job_that_hides(tmp_path):
    with PrivateSlurm(tmp_path, ClusterSettings(nodes=2, accounting=Accounting.STAND_IN)) as cluster:
        hidden = "setsid sleep 47114711 & trap '' TERM; echo here; sleep 47114711"
        job = cluster.submit(f'srun bash -c "{hidden}"', "--nodes=2")
        wait_for(lambda: cluster.output(job).count("here") == 2, 30, "both tasks")
        names = {process.name() for process in left_by(cluster.place)}
        assert names >= {"munged", "slurmctld", "slurmd", "slurmstepd", "srun", "sleep"}
        cluster.kill_controller()
        bystander = subprocess.Popen(["sleep", "60"], env=cluster.environment)
    assert not left_by(cluster.place)
    assert (
        "47114711" not in subprocess.run(["ps", "-eo", "stat,args"], capture_output=True, text=True, check=True).stdout
    )
    assert bystander.poll() is None  # it only had the cluster's environment
    bystander.kill()
    bystander.wait()


@pytest.mark.usefixtures("installed")
def test_without_a_database_a_stand_in_answers_for_sacct(tmp_path):
    with PrivateSlurm(tmp_path, ClusterSettings(nodes=1, accounting=Accounting.STAND_IN)) as cluster:
        array, other = cluster.submit("exit 3", "--array=0-1"), cluster.submit(SLEEPER)
        cluster.wait_for(array, State.FAILED)
        asked = (word for job in (999, array, other) for word in ("-j", str(job)))
        command = ("sacct", "-o", "JobID,State,NodeList", "--parsable2", *asked)
        told = {f"{array}_0|FAILED|n1", f"{array}_1|FAILED|n1", f"{other}|RUNNING|n1", "JobID|State|NodeList"}
        wait_for(lambda: set(cluster.run(*command).splitlines()) == told, 20, "all three jobs")


@pytest.mark.usefixtures("installed")
def test_a_cluster_ends_with_its_owner(tmp_path):
    code = (
        "import sys, pathlib; from tests.slurm.cluster import *; from tests.slurm.configuration import *; "
        "PrivateSlurm(pathlib.Path(sys.argv[1]), ClusterSettings(nodes=1, accounting=Accounting.STAND_IN)).start(); "
        "print('up', flush=True); sys.stdin.read()"
    )
    owner = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    place = Place(tmp_path, ())
    assert owner.stdout.readline() == b"up\n"
    assert left_by(place)
    owner.kill()
    owner.communicate()
    wait_for(lambda: not left_by(place), 20, "the daemons to end")


def test_absent_packages_and_odd_folders_are_named_with_a_remedy(tmp_path, monkeypatch):
    odd = Place(tmp_path / "my runs", free_ports(3))
    assert "slurm.conf cannot hold" in odd.problem()
    assert "longer than 107" in Place(tmp_path / ("x" * 107), ()).problem()
    monkeypatch.setattr("tests.slurm.daemons.SYSTEM_PATH", str(tmp_path))
    with pytest.raises(ClusterError, match="apt-get install -y --no-install-recommends munge slurm-client"):
        PrivateSlurm(tmp_path / "cluster").start()
    assert not (tmp_path / "cluster").exists()
