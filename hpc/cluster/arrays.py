"""Chunks over the tasks of job arrays: which task makes which is written down, and no array is longer than allowed.

    JOBS/ parts/00000.json   the tasks of one submission, a list of chunks each
          arrays/JOB.json    which of these tasks are in which array

A task is told its file and its place in it when it is submitted. Its index in an array says nothing: arrays are cut
where the site's limit falls, and a later submission has other tasks.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from hpc.cluster.batch_script import Request, parameters, python_command
from hpc.cluster.job_state import Seen
from hpc.cluster.scheduler import Scheduler
from hpc.cluster.site import Site
from hpc.cluster.submission import Submitted, _last_words, with_code
from promof_hpc.errors import PromofError
from promof_hpc.store.run_dir import RunDir
from promof_hpc.store.shard import list_names, publish_text

USUAL_LIMIT = 1001  # Slurm's default of MaxArraySize, where neither the profile nor the controller says
States = Callable[[Iterable[str]], Mapping[str, Seen]]


@dataclass(frozen=True)
class Division:
    """The tasks of one submission.

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
        """What `write` wrote."""
        content = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{**content, "parts": tuple(map(tuple, content["parts"]))})

    def write(self, folder: Path) -> Path:
        """Publish under the next number that is free; the path."""
        folder.mkdir(exist_ok=True)
        text = json.dumps(asdict(self))
        number = len(list_names(folder, ".json"))
        while not publish_text(path := folder / f"{number:05d}.json", text):
            number += 1
        return path


@dataclass(frozen=True)
class Array:
    """A job array, or a single job where it has one task.

    Attributes:
        job: id of the whole.
        division: name of the file with its tasks.
        first: place of its first task in that file.
    """

    job: str
    division: str
    first: int
    tasks: int

    @property
    def ids(self) -> list[str]:
        """The id of each task; submitit submits an array of one as a plain job."""
        return [self.job] if self.tasks == 1 else [f"{self.job}_{k}" for k in range(self.tasks)]


def cut(chunks: Sequence[str], parts: int) -> tuple[tuple[str, ...], ...]:
    """Deal chunks out like cards, since neighbours cost alike; no part is empty."""
    return tuple(tuple(chunks[k::parts]) for k in range(min(parts, len(chunks))))


def spans(tasks: int, most: int) -> list[range]:
    """Tasks in arrays of at most `most`, as even as they can be."""
    arrays = -(-tasks // max(1, most))
    return [range(k * tasks // arrays, (k + 1) * tasks // arrays) for k in range(arrays)]


def array_limit(site: Site, scheduler: Scheduler) -> int:
    """Tasks of an array at most; the controller's MaxArraySize is one more than its largest index, which is from 0."""
    if site.max_array is not None:
        return site.max_array
    allowed = scheduler.limits().max_array
    return USUAL_LIMIT if allowed is None else max(1, allowed)


def in_hand(jobs: RunDir, states: States) -> dict[str, str]:
    """Chunks that a task waits for or works on, with the id of that task; one in an unknown state counts as alive."""
    holders: dict[str, list[str]] = {}
    divisions: dict[str, Division] = {}
    for array in arrays_of(jobs):
        if array.division not in divisions:
            divisions[array.division] = Division.read(parts_folder(jobs) / array.division)
        mine = divisions[array.division].parts[array.first : array.first + array.tasks]
        for task, chunks in zip(array.ids, mine, strict=True):
            for chunk in chunks:
                holders.setdefault(chunk, []).append(task)
    seen = states({task for tasks in holders.values() for task in tasks})
    return {chunk: task for chunk, tasks in holders.items() for task in tasks if not seen[task].final}


def arrays_of(jobs: RunDir) -> list[Array]:
    """The arrays that were submitted."""
    folder = _arrays_folder(jobs)
    return [Array(**json.loads((folder / n).read_text(encoding="utf-8"))) for n in list_names(folder, ".json")]


def parts_folder(jobs: RunDir) -> Path:
    """Where the divisions are."""
    return jobs.path / "parts"


def submit_array(
    jobs: RunDir, site: Site, request: Request, tasks: Sequence[Callable[[], None]], place: tuple[Path, int], code: Path
) -> Submitted:
    """Submit one array, and put it on record.

    Args:
        jobs: folder of the jobs.
        tasks: what each of its tasks calls.
        place: file of the division, and the place of the first task in it.
        code: the copy of this package that the tasks run.

    Raises:
        PromofError: Slurm refuses it (with its words).
    """
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    site = with_code(site, code)
    executor = SlurmExecutor(folder=jobs.logs, python=python_command(request, site))
    executor.update_parameters(**parameters(request, site))
    try:
        job = executor.submit_array(tasks)[0].job_id.partition("_")[0]
    except (FailedSubmissionError, FailedJobError, OSError, RuntimeError) as error:
        raise PromofError(
            f"Slurm did not take the array {request.name}: {_last_words(error)}; `promof site check` says what does "
            "not fit the site, and the same command submits what is missing."
        ) from error
    folder = _arrays_folder(jobs)
    folder.mkdir(exist_ok=True)
    array = Array(job, place[0].name, place[1], len(tasks))
    publish_text(folder / f"{job}.json", json.dumps(asdict(array)))
    submitted = Submitted(job, request.name, "prepare", time.time(), request.nodes, request.tasks_per_node,
                          request.time_min, code.name)  # fmt: skip
    publish_text(jobs.submissions / f"{job}.json", json.dumps(submitted.__dict__))
    return submitted


def _arrays_folder(jobs: RunDir) -> Path:
    return jobs.path / "arrays"
