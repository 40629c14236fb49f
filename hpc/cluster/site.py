"""The profile of a site: what its Slurm wants to be asked and how programs start there, read from a YAML file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from promof_hpc.config import load_config
from promof_hpc.config.section import Optional_, Section, nearest
from promof_hpc.errors import UsageError

TEMPLATES = Path(__file__).parents[2] / "slurm_templates"
SITES = TEMPLATES / "sites"
SHORTEST_POLL_S = 60.0


def minutes(value: Any) -> Any:
    """Whole minutes, rounded up, of `90`, `12:30:00`, `1-12`, `1-12:30` or `1-12:30:00`.

    Raises:
        ValueError: a text that is none of these; `12:30` is not, since Slurm reads it as minutes and people as hours.
    """
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"(\d+)|(?:(\d+)-(\d+)(?::(\d\d))?(?::(\d\d))?)|(?:(\d+):(\d\d):(\d\d))", value.strip())
    if match is None:
        raise ValueError(f"'{value}' is not a time; write minutes, HH:MM:SS or D-HH:MM:SS")
    plain, days, *clock = (int(part or 0) for part in match.groups())
    hours, mins, seconds = (max(pair) for pair in zip(clock[:3], clock[3:], strict=True))
    return plain + (days * 24 + hours) * 60 + mins + (seconds > 0)


Text = Annotated[str | None, Optional_]
Minutes = Annotated[int, BeforeValidator(minutes), Field(ge=1)]
Tasks = Annotated[Annotated[int, Field(ge=1)] | None, Optional_]


class TrainSite(Section):
    """Training jobs."""

    nodes_max: int = Field(4, ge=1)
    """Nodes of a training job at most."""
    tasks_per_node: Tasks = None
    """Training processes on a node; none: one a GPU, or one where there is no GPU."""
    time_min: Minutes = 1440
    """Time limit in minutes, or as HH:MM:SS or D-HH:MM:SS."""


class EvaluateSite(Section):
    """Evaluating jobs."""

    tasks_per_node: Tasks = None
    """MPI ranks on a node; none: one a GPU, or one where there is no GPU."""
    time_min: Minutes = 1440
    """Time limit in minutes, or as HH:MM:SS or D-HH:MM:SS."""


class SerialSite(Section):
    """Jobs of one process without a GPU: preparing, merging, reference sets."""

    partition: Text = None
    """Partition of these jobs; none: the same as of the others."""
    cpus: int = Field(4, ge=1)
    """CPUs of such a job."""
    memory_gb: Annotated[float | None, Optional_] = Field(16.0, gt=0)
    """Memory of such a job in GB; none: the site's default."""
    time_min: Minutes = 240
    """Time limit in minutes, or as HH:MM:SS or D-HH:MM:SS."""


class MpiSite(Section):
    """How MPI ranks start."""

    library: Literal["mpich", "openmpi", "other"] = "mpich"
    """Library that mpi4py loads there: mpich (the wheel of 'promof-hpc[mpi-wheel]' is one), openmpi or other."""
    srun_flag: Text = "--mpi=pmi2"
    """Option of srun for this library, such as --mpi=pmi2 (mpich) or --mpi=pmix (openmpi); none: the site's default."""
    launcher: Text = None
    """Command that starts ranks where srun cannot, such as mpiexec; `-n RANKS` is added; none: srun does it."""

    @field_validator("srun_flag")
    @classmethod
    def _is_an_option(cls, flag: str | None) -> str | None:
        if flag is not None and not re.fullmatch(r"--mpi=\S+", flag):
            raise ValueError(f"'{flag}' is not like --mpi=pmi2; `srun --mpi=list` shows what the site has")
        return flag


class SignalSite(Section):
    """The signal by which Slurm says that a job is about to be ended."""

    name: Literal["USR2", "USR1"] = "USR2"
    """USR2 or USR1; another than the site's own tools use."""
    lead_s: int = Field(300, ge=1, le=65535)
    """Seconds before the time limit at which it comes (Slurm may be a minute early): half of it is for the round that
    is being learned from, half for saving."""


class Site(Section):
    """A site; `slurm_templates/sites/generic.yaml` lists every key."""

    description: str = ""
    """What this profile is for, in one line."""
    scheduler: Literal["slurm", "none"] = "slurm"
    """slurm, or none: jobs run on this machine."""
    private_cluster: bool = False
    """True only for a Slurm of one's own, as in the tests, which may be asked more often than once a minute."""
    layout: Literal["split", "one_job"] = "split"
    """split: training and evaluating are two jobs; one_job: two steps side by side in one allocation."""
    partition: Text = None
    """Partition (sbatch --partition); none: the site's default."""
    account: Text = None
    """Account or project to be charged (--account)."""
    qos: Text = None
    """Quality of service (--qos)."""
    constraint: Text = None
    """Features that nodes must have, such as a100 (--constraint)."""
    reservation: Text = None
    """Reservation to run in (--reservation)."""
    exclusive: bool = False
    """Ask for whole nodes (--exclusive)."""
    gpus_per_node: int = Field(0, ge=0)
    """GPUs of a node; 0: none. A job asks for one a process, or for all with `exclusive`."""
    gpu_request: str = "--gres=gpu:{count}"
    """How they are asked for: --gres=gpu:{count}, --gres=gpu:a100:{count} or --gpus-per-node={count}."""
    cpus_per_gpu: int = Field(8, ge=1)
    """CPUs for every GPU, shared by the tasks of a node; counts where cpus_per_task is none."""
    cpus_per_task: Tasks = None
    """CPUs of every training process and MPI rank; none: from cpus_per_gpu, or one where there is no GPU."""
    memory_gb_per_task: Annotated[float | None, Optional_] = Field(None, gt=0)
    """Memory of every training process and MPI rank in GB; none: the site's default."""
    train: TrainSite = TrainSite()
    evaluate: EvaluateSite = EvaluateSite()
    serial: SerialSite = SerialSite()
    setup: tuple[str, ...] = ()
    """Shell lines at the start of every job: module load, activating an environment."""
    python: Text = None
    """Command that is Python there, such as `apptainer exec --nv image.sif python`; none: the one that runs promof."""
    environment: dict[str, str] = {}
    """Variables of every job, such as NCCL_SOCKET_IFNAME; taken literally (what needs a shell goes into setup)."""
    mpi: MpiSite = MpiSite()
    signal: SignalSite = SignalSite()
    grace_s: int = Field(0, ge=0)
    """Seconds that a preempted job gets before it is ended (GraceTime of the partition)."""
    kill_wait_s: int = Field(30, ge=0)
    """Seconds from SIGTERM to SIGKILL when Slurm ends a job (KillWait)."""
    preempts: Literal["requeue", "cancel", "none"] = "none"
    """What preemption does to a job of this partition: requeue, cancel, or none where nothing is preempted."""
    mean_time_between_preemptions_min: Annotated[float | None, Optional_] = Field(None, gt=0)
    """Minutes that a job runs between two preemptions on average, for the checkpoint interval; none: not known."""
    idle_min: float = Field(30.0, gt=0)
    """Minutes without work after which MPI ranks leave, and a trainer for which nobody evaluates any more."""
    scratch: Text = None
    """Folder on the node's own disk, such as $TMPDIR, where jobs read staged weights; none: where they lie."""
    max_array: Annotated[int | None, Optional_] = Field(None, ge=1)
    """Tasks of a job array at most; none: what the controller says (MaxArraySize)."""
    max_submissions_per_hour: int = Field(30, ge=1)
    """Jobs that may be submitted in an hour; more than these are refused, whatever asks for them."""
    poll_s: float = Field(SHORTEST_POLL_S, gt=0)
    """Seconds between two questions to the scheduler by all promof commands of a user together; 60 at least. What a
    person orders (resume, retry, stop) asks anew, at most once in 10 s."""

    @property
    def notice_s(self) -> float:
        """Seconds from the signal that warns to the end of the job, as far as is known: a preemption may be shorter."""
        preempted = self.preempts != "none" and self.grace_s > 0
        return min(self.signal.lead_s, self.grace_s) if preempted else self.signal.lead_s

    @field_validator("gpu_request")
    @classmethod
    def _counts_gpus(cls, request: str) -> str:
        if not re.fullmatch(r"--(gres|gpus-per-node)=[^\s{}]*\{count\}[^\s{}]*", request):
            raise ValueError(f"'{request}' must be --gres=... or --gpus-per-node=... and contain {{count}} once")
        return request

    @field_validator("environment")
    @classmethod
    def _are_variables(cls, environment: dict[str, str]) -> dict[str, str]:
        for name in environment:
            if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
                raise ValueError(f"'{name}' cannot be the name of a variable")
        return environment

    @model_validator(mode="after")
    def _fits_together(self) -> Site:
        problems = [*self._too_short(), *self._too_many(), *self._too_often()]
        if self.preempts != "none" and self.grace_s + self.kill_wait_s == 0:
            problems.append("preempted jobs need time to save: give the site's grace_s or kill_wait_s")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _too_short(self) -> list[str]:
        limits = {"train": self.train.time_min, "evaluate": self.evaluate.time_min, "serial": self.serial.time_min}
        return [
            f"signal.lead_s ({self.signal.lead_s} s) must be shorter than {role}.time_min ({time_min} min)"
            for role, time_min in limits.items()
            if self.signal.lead_s >= 60 * time_min
        ]

    def _too_many(self) -> list[str]:
        ranks = self.evaluate.tasks_per_node or 0
        if not 0 < self.gpus_per_node < ranks:
            return []
        return [f"evaluate.tasks_per_node ({ranks}) must not exceed gpus_per_node ({self.gpus_per_node}): one GPU each"]

    def _too_often(self) -> list[str]:
        if self.poll_s >= SHORTEST_POLL_S or self.private_cluster or self.scheduler == "none":
            return []
        return [f"poll_s ({self.poll_s:g}) must be 60 or more on a cluster that is shared with others"]


def known_sites() -> list[str]:
    """Names of the profiles that come with the package."""
    return sorted(path.stem for path in SITES.glob("*.yaml"))


def load_site(name_or_path: str | Path) -> Site:
    """A profile that comes with the package, by its name, or one's own, by the path of its YAML file.

    Raises:
        UsageError: there is none of this name, or the file has mistakes (all are listed).
    """
    text = str(name_or_path)
    if "/" in text or text.endswith((".yaml", ".yml")):
        return load_config(Site, Path(text))
    known = known_sites()
    if text not in known:
        raise UsageError(
            f"There is no site profile '{text}'{nearest(text, known)}; known are {', '.join(known)}, "
            "or give the path of your own YAML file."
        )
    return load_config(Site, SITES / f"{text}.yaml")
