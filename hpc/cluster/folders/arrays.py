"""Chunks over the tasks of job arrays: none longer than the site allows, and on record which task makes which chunks.

    JOBS/ parts/00000.json   a `Division`: the tasks of one submission
          arrays/JOB.json    which of these tasks are in which array

A task is told its division and its place in it when it is submitted. Its index in an array says nothing: arrays are cut
where the site's limit falls, and a later submission has other tasks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path

from hpc.cluster.batch_script import Request
from hpc.cluster.folders.jobs import Division, PreparePart
from hpc.cluster.job_state import Seen
from hpc.cluster.scheduler import Scheduler
from hpc.cluster.site import Site
from hpc.cluster.submission import Submitted, put_on_record, submissions, submitting, with_code, without_slurm
from promof_hpc.store.run_dir import RunDir
from promof_hpc.store.shard import list_names, publish_text

USUAL_LIMIT = 1001  # Slurm's default of MaxArraySize, where neither the profile nor the controller says
States = Callable[[Iterable[str]], Mapping[str, Seen]]


@dataclass(frozen=True)
class Array:
    """A job array that was submitted, or a plain job where it has one task.

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
    """Tasks in as few arrays of at most `most` as there can be, as even as they can be, none larger than the first."""
    arrays = -(-tasks // most)
    borders = [-(-k * tasks // arrays) for k in range(arrays + 1)] if arrays else []
    return [range(begin, end) for begin, end in pairwise(borders)]


def array_limit(site: Site, scheduler: Scheduler) -> int:
    """Tasks of an array at most: indices are below MaxArraySize, from 0; where that is 0 there are no arrays."""
    if site.max_array is not None:
        return site.max_array
    allowed = scheduler.limits().max_array
    return USUAL_LIMIT if allowed is None else max(1, allowed)


def requests_for(tasks: int, most: int, request: Request) -> list[tuple[range, Request]]:
    """A request for each array that these tasks need, with the tasks in it."""
    parts = spans(tasks, most)
    names = [request.name] if len(parts) == 1 else [f"{request.name}-{k}" for k in range(len(parts))]
    return [(span, replace(request, name=name, array=len(span))) for span, name in zip(parts, names, strict=True)]


def in_hand(jobs: RunDir, states: States) -> dict[str, str]:
    """Chunks that a task waits for or works on, with its id; a task in an unknown state counts as alive.

    Args:
        jobs: folder of the jobs.
        states: what the scheduler says of tasks.
    """
    found, arrays = dict(divisions(jobs)), arrays_of(jobs)
    held = [
        (chunk, task, array.job)
        for array in arrays
        for task, chunks in zip(array.ids, found[array.division].parts[array.first :], strict=False)
        for chunk in chunks
    ]
    # whole jobs as well: the scheduler is asked once in a while only, and a status may have asked about these before
    ids = [array.job for array in arrays] + [task for array in arrays for task in array.ids]
    seen = states([*(job.job for job in submissions(jobs)), *ids])
    return {chunk: task for chunk, task, job in held if not (seen[task].final or seen[job].final)}


def divisions(jobs: RunDir) -> list[tuple[str, Division]]:
    """Names and contents of the divisions, oldest first."""
    folder = _parts_folder(jobs)
    return [(name, Division.read(folder / name)) for name in list_names(folder, ".json")]


def write_division(jobs: RunDir, division: Division) -> Path:
    """Publish a division under the next number that is free; its path."""
    folder, text = _parts_folder(jobs), division.text()
    folder.mkdir(exist_ok=True)
    number = len(list_names(folder, ".json"))
    while not publish_text(path := folder / f"{number:05d}.json", text):
        number += 1
    return path


def arrays_of(jobs: RunDir) -> list[Array]:
    """The arrays that were submitted."""
    folder = _arrays_folder(jobs)
    return [Array(**json.loads((folder / n).read_text(encoding="utf-8"))) for n in list_names(folder, ".json")]


def record(jobs: RunDir, array: Array) -> None:
    """Remember an array that was submitted."""
    folder = _arrays_folder(jobs)
    folder.mkdir(exist_ok=True)
    publish_text(folder / f"{array.job}.json", json.dumps(asdict(array)))


def submit_array(jobs: RunDir, site: Site, request: Request, division: Path, span: range, code: Path) -> Submitted:
    """Submit an array of tasks of a division, and put it on record.

    Args:
        jobs: folder of the jobs, which are those of the folder around it.
        span: places of the tasks in the division.
        code: the copy of this package that they run.

    Raises:
        PromofError: Slurm refuses it (with its words).
    """
    tasks = [PreparePart(str(jobs.path.parent), str(division), part) for part in span]
    with without_slurm(), submitting(jobs, with_code(site, code), request) as executor:
        job = executor.submit_array(tasks)[0].job_id.partition("_")[0]
    record(jobs, Array(job, division.name, span.start, len(span)))
    return put_on_record(jobs, job, request, PreparePart.ROLE, code.name)


def _parts_folder(jobs: RunDir) -> Path:
    return jobs.path / "parts"


def _arrays_folder(jobs: RunDir) -> Path:
    return jobs.path / "arrays"
