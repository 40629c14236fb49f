"""`promof compare`: every run of a study, each an ordinary campaign, then the tables; run it again and it goes on."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

from hpc.exit_codes import DONE, FAILED, INCOMPLETE, STOPPED
from promof_hpc.config.reading import dump_config, load_config
from promof_hpc.config.study import StudyConfig, StudyRun
from promof_hpc.errors import PromofError, UsageError
from promof_hpc.store.run_dir import RunDir
from promof_hpc.store.shard import list_names, replace_text

if TYPE_CHECKING:
    from promof_hpc.design.comparing.study import RunFigures

TABLES = ("comparison.md", "comparison.html", "comparison.json")


@dataclass(frozen=True)
class Ending:
    """How one run of a study ended: its exit code, and what went wrong."""

    run: StudyRun
    code: int
    why: str = ""


def compare(path: Path, folder: Path | None, jobs: int, as_json: bool) -> int:
    """Do what is missing of a study and write its tables into its folder.

    Args:
        folder: of the study; `runs/NAME` of the file where None.
        jobs: runs at a time.

    Returns:
        exit code: 0 where every run is done, 1 where some could not be, 3 where some ended before their budget was
        spent, 75 where it was stopped.

    Raises:
        UsageError: the study cannot be read, or its folder holds something else.
    """
    config = load_config(StudyConfig, path)
    place = (folder or Path("runs") / path.stem).absolute()
    if "config.yaml" in list_names(place):
        raise UsageError(f"{place} is a run, not a study; choose another folder with --out.")
    place.mkdir(parents=True, exist_ok=True)
    replace_text(place / "study.yaml", dump_config(config))
    command = f"promof compare {path}" + (f" --out {folder}" if folder else "")
    tables = Tables(place, config, f"Study {path.stem}", command)
    endings: list[Ending] = []
    results = ""
    for ending in _pursue(config.runs(), place, jobs):
        endings.append(ending)
        results = tables.write()
        if not as_json:
            _say(ending, len(endings), len(config.runs()))
        if ending.code == STOPPED:
            break
    if as_json:
        print((place / "comparison.json").read_text(encoding="utf-8"))
    else:
        print(results)
        print(f"Tables: {', '.join(str(place / name) for name in TABLES)}")
    codes = {e.code for e in endings}
    return next((code for code in (STOPPED, FAILED, INCOMPLETE) if code in codes), DONE)


class Tables:
    """The tables of a study, written anew whenever a run has ended."""

    def __init__(self, place: Path, config: StudyConfig, title: str, command: str):
        self._place, self._config, self._title, self._command = place, config, title, command
        self._finished: dict[str, RunFigures] = {}

    def write(self) -> str:
        """Read the runs that there are and write the tables; returns the results as Markdown."""
        from promof_hpc.design.comparing.study import table
        from promof_hpc.report.comparison import Study, as_json, html, markdown, results

        lines = table(list(self._figures()), self._config.bootstrap)
        budget = self._config.design.budget or 0
        study = Study(self._title, lines, len(self._config.runs()), budget, self._command)
        for name, text in zip(TABLES, (markdown(study), html(study), as_json(study)), strict=True):
            replace_text(self._place / name, text)
        return results(study)

    def _figures(self) -> Iterator[RunFigures]:
        from promof_hpc.design.comparing.achieved import run_figures

        for run in self._config.runs():
            if run.name not in self._finished:
                if "config.yaml" not in list_names(self._place / run.name):
                    continue
                opened = RunDir.open(self._place / run.name)
                figures = run_figures(opened, run.config, run.strategy, run.name)
                if not figures.finished:
                    yield figures
                    continue
                self._finished[run.name] = figures
            yield self._finished[run.name]


def _pursue(runs: Iterable[StudyRun], place: Path, jobs: int) -> Iterator[Ending]:
    """Runs in their order, so many at a time."""
    if jobs <= 1:
        yield from (_run_one(run, place, False) for run in runs)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(_run_one, run, place, True) for run in runs]
        for future in as_completed(futures):
            ending = future.result()
            if ending.code == STOPPED:
                pool.shutdown(wait=False, cancel_futures=True)
            yield ending


def _run_one(run: StudyRun, place: Path, quiet: bool) -> Ending:
    """Do what is missing of one run; its failure is no failure of the others."""
    from hpc.design import begin_design, complete_design

    try:
        opened, parts = begin_design(place / run.name, run.config)
        return Ending(run, complete_design(opened, 0, quiet, parts=parts))
    except PromofError as error:
        return Ending(run, FAILED, str(error))
    except KeyboardInterrupt:
        return Ending(run, STOPPED)


def _say(ending: Ending, done: int, planned: int) -> None:
    words = {DONE: "done", INCOMPLETE: "ended before its budget was spent", STOPPED: "stopped", FAILED: "failed"}
    line = f"[{done}/{planned}] {ending.run.name}: {words.get(ending.code, str(ending.code))}"
    print(line + (f": {ending.why}" if ending.why else ""), file=sys.stderr, flush=True)
