"""Jobs of folders that are no runs: preparing and pretraining.

What such a job needs beside its folder lies in FOLDER/jobs, laid out as in a run: site.yaml, code, submissions, logs,
events. A job is pickled with paths into it, and with its place in a list there.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from hpc.cluster.batch_script import Role
from hpc.cluster.jobs import Job
from hpc.cluster.site import Site
from hpc.preemption import Asked, Interrupted, Requests
from promof_hpc.config import load_config
from promof_hpc.store.run_dir import RunDir
from promof_hpc.store.shard import list_names

if TYPE_CHECKING:
    from data_prep.parallel import Progress

JOBS = "jobs"
ORDER = "pretrain-"  # begins the name of a training's file


class Chunked(Protocol):
    """A preparation whose chunks can be made anywhere, and which is finished when all of them are there."""

    @property
    def chunks(self) -> list[str]:
        """Names of all chunks."""

    @property
    def is_finished(self) -> bool:
        """Everything is there."""

    def missing(self) -> list[str]:
        """Chunks that have not been made."""

    def make(self, names: list[str], workers: int, report: Progress) -> Any:
        """Make those of these chunks that are missing."""

    def finish(self, workers: int, report: Progress) -> Any:
        """Do what follows from all chunks; its `lines()` say what there is."""


def jobs_folder(folder: Path) -> RunDir:
    """What the jobs of a folder keep; the same names as in a run."""
    return RunDir(folder.absolute() / JOBS)


def has_jobs(folder: Path) -> bool:
    """Whether jobs were submitted for a folder that is no run."""
    return jobs_folder(folder).site.name in list_names(folder / JOBS)


def trainings_in(jobs: RunDir) -> list[Training]:
    """What was ordered."""
    return [Training.read(jobs.path / name) for name in list_names(jobs.path, ".json") if name.startswith(ORDER)]


def preparation_in(folder: Path, data: str) -> Chunked:
    """The preparation that was begun in a folder.

    Args:
        data: training set that lends the parts of synthetic MOFs; empty for other preparations.
    """
    if data:
        from data_prep.synthetic import Synthesis

        return Synthesis.read(Path(data), folder)
    from data_prep.build import Preparation

    return Preparation.read(folder)


@dataclass(frozen=True)
class FolderJob(Job):
    """A task of a Slurm job at its work on a folder; `run` is where its jobs keep their things."""

    @classmethod
    def begin(cls, run_dir: str, role: str, threads: int = 1) -> FolderJob:
        """Note the signals from now on, and say that the job has begun.

        Args:
            threads: of numerical libraries, unless the site says otherwise.
        """
        requests = Requests()
        logging.basicConfig(format=f"%(asctime)s {role} %(levelname)s %(message)s", level=logging.INFO)
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))
        run = RunDir(Path(run_dir))
        job = cls(run, load_config(Site, run.site), requests, role, int(os.environ["SLURM_PROCID"]), _number())
        job.note("job_began", host=os.uname().nodename)
        return job

    def is_done(self) -> bool:
        """Never: one that is done leaves without having been asked to."""
        return False

    def heeding(self, tell: Progress) -> Progress:
        """A `Progress` that tells, and then raises `Interrupted` if a signal has asked for it."""

        def report(step: str, done: int, total: int) -> None:
            tell(step, done, total)
            self.requests.heed()

        return report


@dataclass(frozen=True)
class Training:
    """What a pretraining was ordered to do.

    Attributes:
        data: folders made by `promof prep`.
        overrides: key=value for the keys of `config.pretrain`.
    """

    policy: str
    data: tuple[str, ...]
    overrides: tuple[str, ...]

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{ORDER}{self.policy}.json"

    @classmethod
    def read(cls, path: Path) -> Training:
        """What `text` gave."""
        content = json.loads(path.read_text(encoding="utf-8"))
        return cls(content["policy"], tuple(content["data"]), tuple(content["overrides"]))

    def text(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self), indent=1)


@dataclass(frozen=True)
class Division:
    """How what was missing of a preparation was dealt to tasks.

    Attributes:
        parts: names of the chunks that each task makes.
        where: folder from which a relative source is meant.
        data: training set that lends the parts of synthetic MOFs; empty for other preparations.
        command: that submits what is missing.
    """

    parts: tuple[tuple[str, ...], ...]
    where: str
    data: str
    command: str

    @classmethod
    def read(cls, path: Path) -> Division:
        """What `text` gave."""
        content = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{**content, "parts": tuple(map(tuple, content["parts"]))})

    def text(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class Pretrain:
    """Train a policy until it is done; `order` is the file of a `Training`."""

    folder: str
    order: str

    def __call__(self) -> None:
        """Be its one process."""
        job = FolderJob.begin(str(jobs_folder(Path(self.folder)).path), Role.TRAIN, _cpus())
        from hpc.pretraining import course_of, train_course, training_settings

        order = Training.read(Path(self.order))
        settings = training_settings(order.policy, order.overrides)
        course = course_of(settings, [Path(folder) for folder in order.data])
        complete = train_course(course, settings, Path(self.folder), lambda: job.requests.asked is not Asked.NOTHING)
        job.leave(Asked.NOTHING if complete else job.requests.asked)


@dataclass(frozen=True)
class PreparePart:
    """Make the chunks of one task; `division` is the file of a `Division`, `part` the task's place in it."""

    ROLE: ClassVar[str] = "prepare"  # what its events and submissions are found by

    folder: str
    division: str
    part: int

    def __call__(self) -> None:
        """Be its one process."""
        job, division, whole = _begin(self.folder, self.division, self.ROLE)
        mine = list(division.parts[self.part])
        asked = _until_asked(job, lambda report: whole.make(mine, _cpus(), report))
        job.leave(asked if set(mine) & set(whole.missing()) else Asked.NOTHING)


@dataclass(frozen=True)
class Merge:
    """Make of all chunks what follows from them, or refuse where one is missing."""

    folder: str
    division: str

    def __call__(self) -> None:
        """Be its one process.

        Raises:
            PromofError: chunks are missing; the text names them and the command that goes on.
        """
        job, division, whole = _begin(self.folder, self.division, Role.SERIAL)
        if missing := whole.missing():
            job.refuse(
                f"{_those(missing, whole)} of {self.folder} are missing; `{division.command}` submits them, "
                "and nothing is made of an incomplete set."
            )
        asked = _until_asked(job, lambda report: print("\n".join(whole.finish(_cpus(), report).lines())))
        job.leave(Asked.NOTHING if whole.is_finished else asked)


def _begin(folder: str, division: str, role: str) -> tuple[FolderJob, Division, Chunked]:
    job = FolderJob.begin(str(jobs_folder(Path(folder)).path), role)
    told = Division.read(Path(division))
    os.chdir(told.where)
    return job, told, preparation_in(Path(folder), told.data)


def _until_asked(job: FolderJob, work: Callable[[Progress], object]) -> Asked:
    """Do work that reports; what was asked where that ended it."""
    from hpc.preparation import Lines

    try:
        work(job.heeding(Lines()))
    except Interrupted as interrupted:
        return interrupted.asked
    return Asked.NOTHING


def _those(missing: list[str], whole: Chunked, shown: int = 20) -> str:
    more = ", ..." if len(missing) > shown else ""
    return f"{len(missing)} of {len(whole.chunks)} chunks ({', '.join(missing[:shown])}{more})"


def _cpus() -> int:
    return int(os.environ.get("SLURM_CPUS_PER_TASK", 1))


def _number() -> str:
    """The job's id; of a task of an array both numbers, since the other id may mean the whole array."""
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ["SLURM_JOB_ID"]
