"""`promof submit pretrain` and `prep`: print the plan, and hand to Slurm the jobs that are still needed.

A second call submits what is missing then: chunks that nobody has made and no living task is at, and jobs of which none
waits or works. What such jobs do lies in `hpc.cluster.folders.jobs`.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hpc.cluster.batch_script import Request, Role, allocation, check_run_path, usual_request
from hpc.cluster.folders.arrays import (
    array_limit,
    cut,
    divisions,
    in_hand,
    requests_for,
    submit_array,
    write_division,
)
from hpc.cluster.folders.jobs import (
    Chunked,
    Division,
    Merge,
    PreparePart,
    Pretrain,
    Training,
    jobs_folder,
    trainings_in,
)
from hpc.cluster.job_state import Seen
from hpc.cluster.overview import JobView, jobs_of, scheduler_cache
from hpc.cluster.scheduler import CachedScheduler, Scheduler
from hpc.cluster.site import Site, load_site
from hpc.cluster.snapshot import ROOT, snapshot_files, snapshot_place, take_snapshot
from hpc.cluster.submission import Submitted, check_rate, make_place, submit, with_code
from hpc.cluster.wanted import Wanted, outstanding, require_gpus
from hpc.exit_codes import DONE
from promof_hpc.config import load_config
from promof_hpc.errors import UsageError
from promof_hpc.store.run_dir import RunDir
from promof_hpc.store.shard import list_names, replace_text

if TYPE_CHECKING:
    from data_prep.settings import PrepSettings

NOTHING_WAS_SUBMITTED = "This was a dry run: nothing was submitted."
CHUNKS_PER_CPU = 4  # of a task, where the user does not say how many tasks: its imports take seconds, these minutes


@dataclass(frozen=True)
class Place:
    """Where a command hands over its jobs.

    Attributes:
        folder: that the jobs work on; absolute.
        site: its profile, and `name` as the user gave it.
        dry_run: print what would be submitted, and make nothing.
    """

    folder: Path
    site: Site
    name: str
    dry_run: bool

    @classmethod
    def of(cls, folder: Path, site: str, dry_run: bool) -> Place:
        """Raises: UsageError: there is no such site, or Slurm would change the path."""
        check_run_path(jobs_folder(folder).path)
        name = str(Path(site).absolute()) if "/" in site or site.endswith((".yaml", ".yml")) else site
        return cls(folder.absolute(), load_site(site), name, dry_run)

    @property
    def jobs(self) -> RunDir:
        """What the jobs keep."""
        return jobs_folder(self.folder)

    def request(self, role: Role, what: str) -> Request:
        """A job of one process."""
        request = usual_request(role, self.jobs.path, self.site)
        return replace(request, name=f"promof-{what}-{self.folder.name}", tasks_per_node=1)


def submit_pretrain(
    policy: str, data: Sequence[Path], out: Path, overrides: Sequence[str], site: str, dry_run: bool = False
) -> int:
    """Submit the training of a policy on one GPU (`device=cuda`), or on the CPUs that go with one; the exit code.

    Args:
        data, overrides: as of `hpc.pretraining.pretrain_policy`.

    Raises:
        UsageError: see there.
        PromofError: Slurm does not take the job.
    """
    from hpc.pretraining import differing_keys, is_trained, training_settings

    place = Place.of(out, site, dry_run)
    settings = training_settings(policy, overrides)
    require_gpus({"device": settings.device}, place.site)
    place = replace(place, site=for_one(place.site, settings.device))
    if differing := differing_keys(settings, policy, place.folder):
        raise UsageError(f"{out} holds a training with another {', '.join(differing)}; choose another --out.")
    for folder in data:
        if "vocabulary.json" not in list_names(folder):
            raise UsageError(f"{folder} is no training set (vocabulary.json is missing); make one with `promof prep`.")
    order = Training(policy, tuple(str(folder.absolute()) for folder in data), tuple(overrides))
    file = place.jobs.path / order.name
    job = Pretrain(str(place.folder), str(file))
    wanted = [Wanted(job, place.request(Role.TRAIN, f"pretrain-{policy}"))]
    if dry_run:
        return _show(place, wanted)
    if is_trained(policy, place.folder) and order in trainings_in(place.jobs):
        print(f"The {policy} of {out} is trained; nothing was submitted.")
        return DONE
    alive = alive_jobs(place.jobs)
    if left := outstanding(wanted, alive):
        make_place(place.jobs, place.site)
        replace_text(file, order.text())
    return _hand_over(place, left, alive)


def submit_prep(
    source: str, out: Path, settings: PrepSettings, site: str, parts: int = 0, dry_run: bool = False
) -> int:
    """Submit a preparation: tasks that make its chunks, then one that makes a training set of them; the exit code.

    Args:
        source, settings: as of `data_prep.build.prepare`.
        parts: tasks; 0: so many that each works for some minutes.

    Raises:
        UsageError: see there.
        PromofError: Slurm does not take a job.
    """
    from data_prep.build import Preparation
    from data_prep.sources import open_source

    place = Place.of(out, site, dry_run)
    if dry_run and not _is_begun(out):
        whole = Preparation(open_source(source), place.folder, settings)
    else:
        whole = Preparation.begin(source, place.folder, settings)
    words = [f"--seed={settings.seed}", f"--max-atoms={settings.max_atoms}", f"--max-blocks={settings.max_blocks}"]
    words += [] if settings.conformers else ["--no-conformers"]
    return _submit_chunks(place, whole, Division((), os.getcwd(), "", _command(place, source, words)), parts)


def submit_synthetic(
    data: Path, out: Path, count: int, seed: int, site: str, parts: int = 0, dry_run: bool = False
) -> int:
    """Submit the making of `count` synthetic MOFs from the training set `data`; see `submit_prep`."""
    from data_prep.synthetic import Synthesis, SyntheticSettings, check_data

    place, settings = Place.of(out, site, dry_run), SyntheticSettings(count=count, seed=seed)
    check_data(data, settings)
    begin = Synthesis if dry_run and not _is_begun(out) else Synthesis.begin
    whole = begin(data.absolute(), place.folder, settings)
    words = [f"--data={data.absolute()}", f"--count={count}", f"--seed={seed}"]
    division = Division((), os.getcwd(), str(data.absolute()), _command(place, "synthetic", words))
    return _submit_chunks(place, whole, division, parts)


def describe_folder(folder: Path) -> list[str]:
    """Where the jobs of a folder that is no run stand, and what to do where none is left."""
    jobs = jobs_folder(folder)
    holders = in_hand(jobs, _asking(load_config(Site, jobs.site)))  # before `jobs_of`, whose questions it asks as well
    views = jobs_of(jobs)
    lines = [_trained(folder, order) for order in trainings_in(jobs)]
    if found := [division for _, division in divisions(jobs)]:
        lines.append(_prepared(folder, found, holders, any(not view.over for view in views)))
    return [*lines, *(view.describe() for view in views)]


def for_one(site: Site, device: str) -> Site:
    """The site as a job of one process on `device` sees it: a node with one GPU and its CPUs, or without a GPU."""
    evaluate = site.evaluate.model_copy(update={"tasks_per_node": None})
    cpus = site.cpus_per_task or (site.cpus_per_gpu if site.gpus_per_node else None)
    gpus = 1 if device == "cuda" else 0
    return site.model_copy(update={"gpus_per_node": gpus, "cpus_per_task": cpus, "evaluate": evaluate})


def alive_jobs(run: RunDir) -> list[JobView]:
    """Jobs that wait or work, and those of which nobody knows for certain that they do not."""
    return [job for job in jobs_of(run) if not job.over]


def _submit_chunks(place: Place, whole: Chunked, division: Division, parts: int) -> int:
    """Submit tasks for the chunks that are missing and in nobody's hands, and a merge that comes after all tasks."""
    jobs, site, folder = place.jobs, place.site, str(place.folder)
    if whole.is_finished:
        print(f"{folder} is done; nothing was submitted.")
        return DONE
    missing, holders, alive = whole.missing(), in_hand(jobs, _asking(site)), alive_jobs(jobs)
    held = {chunk: holders[chunk] for chunk in missing if chunk in holders}
    todo = [chunk for chunk in missing if chunk not in held]
    part, merge = place.request(Role.SERIAL, "prep"), place.request(Role.SERIAL, "merge")
    usual = -(-len(todo) // (CHUNKS_PER_CPU * allocation(part, site).cpus_per_task))
    division = replace(division, parts=cut(todo, parts or usual))
    arrays = requests_for(len(division.parts), array_limit(site, Scheduler()), part)
    tasks = [Wanted(PreparePart(folder, "", span.start), request) for span, request in arrays]
    last = Wanted(Merge(folder, ""), merge, tuple(request.name for _, request in arrays))
    print(f"{len(whole.chunks)} chunks; {len(missing)} are missing, {len(held)} of them in the hands of tasks.")
    if not outstanding([last], [] if todo else alive):
        print(f"Where a task is dead and Slurm does not say so, remove its file in {jobs.path / 'arrays'}.")
        return _tell(place.folder, alive, [])
    if place.dry_run:
        return _show(place, [*tasks, last])
    print(_plan(place, [*tasks, last]))
    check_rate(jobs, site, len(arrays) + 1)
    make_place(jobs, site)
    file, code = write_division(jobs, division), take_snapshot(jobs)
    done = [submit_array(jobs, site, request, file, span, code) for span, request in arrays]
    before = (*(task.partition("_")[0] for task in held.values()), *(array.job for array in done))
    last = Wanted(Merge(folder, str(file)), replace(merge, after=tuple(dict.fromkeys(before))))
    return _tell(place.folder, alive, [*done, *submit(jobs, site, [last])])


def _hand_over(place: Place, left: Sequence[Wanted], alive: Sequence[JobView]) -> int:
    if left:
        print(_plan(place, left))
    return _tell(place.folder, alive, submit(place.jobs, place.site, left) if left else [])


def _tell(path: Path, alive: Sequence[JobView], done: Sequence[Submitted]) -> int:
    for job in alive:
        print(job.describe())
    for one in done:
        print(f"Submitted {one.name} as job {one.job}.")
    print(f"Follow it with `promof status {path}`; nothing here needs to stay open.")
    return DONE


def _show(place: Place, wanted: Sequence[Wanted]) -> int:
    print(f"{_plan(place, wanted)}\n{NOTHING_WAS_SUBMITTED}")
    return DONE


def _plan(place: Place, wanted: Sequence[Wanted]) -> str:
    """What the jobs ask for, and their scripts; those of several arrays differ only in their number of tasks."""
    site = with_code(place.site, snapshot_place(place.jobs))
    scripts = {bool(one.request.array): one for one in reversed(wanted)}
    texts = [f"\n--- {one.request.name} ---\n{one.script(site)}" for one in reversed(scripts.values())]
    return "\n".join([*_lines(wanted, place.site), *texts])


def _lines(wanted: Sequence[Wanted], site: Site) -> list[str]:
    """What the jobs ask for, a line each, and what that comes to."""
    lines, hours, gpu_hours = [], 0.0, 0.0
    for one in wanted:
        asked, tasks = allocation(one.request, site), max(1, one.request.array)
        array = f"{tasks} tasks of an array, " if tasks > 1 else ""
        gpus = f", {asked.gpu_count} GPU" if asked.gpus else ""
        after = f", after {', '.join(one.after)}" if one.after else ""
        lines.append(f"{one.request.name}: {array}{asked.cpus_per_task} CPUs{gpus}, {asked.time_min} min{after}")
        hours += tasks * asked.cpus_per_task * asked.time_min / 60
        gpu_hours += tasks * asked.gpu_count * asked.time_min / 60
    files = list(snapshot_files())
    size = sum((ROOT / file).stat().st_size for file in files) / 1e6
    on_gpus = f" and {gpu_hours:.0f} GPU-hours" if gpu_hours else ""
    return [*lines, f"The limits allow {hours:.0f} CPU-hours{on_gpus} at most; jobs that have nothing to do end.",
            f"Code copied into the folder: {len(files)} files, {size:.0f} MB."]  # fmt: skip


def _asking(site: Site) -> Callable[[Iterable[str]], Mapping[str, Seen]]:
    return CachedScheduler(Scheduler(), scheduler_cache(), site.poll_s).states


def _is_begun(out: Path) -> bool:
    return "plan.json" in list_names(out)


def _command(place: Place, source: str, words: Sequence[str]) -> str:
    """The command that goes on with a preparation."""
    command = shlex.join(["promof", "submit", "prep", source, *words, f"--out={place.folder}", f"--site={place.name}"])
    return command if Path(source).is_absolute() else f"cd {shlex.quote(os.getcwd())} && {command}"


def _trained(folder: Path, order: Training) -> str:
    from hpc.pretraining import is_trained, steps_kept

    weights = "its weights are there" if is_trained(order.policy, folder) else "no weights yet"
    return f"{order.policy}: {weights}; the newest checkpoint is of step {steps_kept(order.policy, folder)}"


def _prepared(folder: Path, found: Sequence[Division], holders: Mapping[str, str], alive: bool) -> str:
    """How far a preparation is; its source is not looked at."""
    last = found[-1]
    there = set(list_names(folder / ("train" if last.data else "chunks"), ".h5"))
    missing = {chunk for division in found for part in division.parts for chunk in part} - there
    text = f"{len(there)} of {len(there | missing)} chunks"
    if not missing if last.data else "summary.json" in list_names(folder):
        return f"{text}; done"
    if dropped := len(missing - holders.keys()):
        return f"{text}; {dropped} are missing and in the hands of no task: `{last.command}` submits them"
    return f"{text}; not finished" + ("" if alive else f", and no job is left: `{last.command}` goes on")
