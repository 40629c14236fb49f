"""The assessment journey: held-out component sets of a prepared folder, every method, a table and its records."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpc.exit_codes import DONE
from promof_hpc.errors import PromofError, UsageError
from promof_hpc.store.shard import list_names, publish_text, replace_text

if TYPE_CHECKING:
    from promof_hpc.assembly.prepared import PreparedMof
    from promof_hpc.design.comparing.assessment import AssessSettings, Method, Tools


@dataclass(frozen=True)
class AssessJob:
    """One component set by methods that share poses; their records are published in `out` if absent."""

    out: Path
    data: str
    weights: str
    number: int
    methods: tuple[Method, ...]
    settings: AssessSettings

    @property
    def paths(self) -> list[Path]:
        """Where the records lie, a path a method."""
        return [self.out / f"{method}-{self.number:04d}.json" for method in self.methods]


def assess(data: str, weights: str, out: Path, methods: str, limit: int, workers: int, settings: AssessSettings) -> int:
    """Assess assembly on the held-out part of a prepared folder, or go on with an assessment begun in `out`.

    Raises:
        UsageError: the folder holds no held-out sets, a method is unknown, or `out` holds another assessment.
    """
    from data_prep.parallel import run_jobs
    from promof_hpc.design.comparing.assessment import TOGETHER, Method, Record, as_markdown, table

    wanted = [Method(name) for name in methods.split(",")] if methods else list(Method)
    count = len(_held_out(data, settings)[: limit or None])
    if not count:
        raise UsageError(f"{data} has no held-out component sets within the limits; prepare a larger library.")
    _fix(out, {"data": data, "weights": weights, **asdict(settings)})
    jobs = [
        AssessJob(out, data, weights, k, chosen, settings)
        for k in range(count)
        for chosen in (tuple(m for m in methods if m in wanted) for methods in TOGETHER)
        if chosen
    ]
    there = set(list_names(out, ".json"))
    left = [job for job in jobs if not {p.name for p in job.paths} <= there]
    done = len(jobs) - len(left)

    def finished(job: AssessJob, _: None) -> None:
        nonlocal done
        done += 1
        print(f"assess: {done}/{len(jobs)} ({job.paths[-1].stem})", file=sys.stderr, flush=True)

    if run_jobs(assess_job, left, workers, finished):
        raise PromofError("a process that assessed a set died (memory?); repeat the command to go on")
    records = [Record.from_json(path.read_text(encoding="utf-8")) for job in jobs for path in job.paths]
    text = as_markdown(table(records), settings)
    replace_text(out / "table.md", text)
    print(text)
    return DONE


def assess_job(job: AssessJob) -> None:
    """Assess one set and publish its records."""
    from promof_hpc.design.comparing.assessment import assess_set

    mof = _held_out(job.data, job.settings)[job.number]
    records = assess_set(mof, job.methods, job.settings, _tools(job.data, job.weights))
    for path, record in zip(job.paths, records, strict=True):
        publish_text(path, record.to_json())


@lru_cache(maxsize=1)
def _held_out(data: str, settings: AssessSettings) -> list[PreparedMof]:
    from promof_hpc.design.comparing.assessment import held_out

    return held_out(data, settings)


@lru_cache(maxsize=1)
def _tools(data: str, weights: str) -> Tools:
    import torch

    from promof_hpc.design.comparing.assessment import Tools

    torch.set_num_threads(1)
    return Tools.load(data, weights)


def _fix(out: Path, settings: dict[str, Any]) -> None:
    """Write down what is assessed, or make sure that it is what this folder was begun with."""
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(settings, indent=1, sort_keys=True) + "\n"
    path = out / "settings.txt"
    if not publish_text(path, text) and path.read_text(encoding="utf-8") != text:
        raise UsageError(f"{out} holds an assessment with other settings ({path}); choose another --out.")
