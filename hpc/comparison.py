"""`promof compare`: every run of a study, each an ordinary campaign, then the tables; run it again and it goes on."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpc.exit_codes import DONE, FAILED, INCOMPLETE, STOPPED
from promof_hpc.config import DesignConfig
from promof_hpc.config.reading import dump_config, load_config
from promof_hpc.config.study import StudyConfig, StudyRun
from promof_hpc.errors import PromofError, UsageError
from promof_hpc.store.run_dir import RunDir
from promof_hpc.store.shard import list_names, publish_text, replace_text

if TYPE_CHECKING:
    from promof_hpc.design.comparing.study import RunFigures

FIGURES = "figures"
INDECISIVE: Any = {
    "policy": {"weights", "data"}, "reference": True, "external": True, "farm": {"ranks"}, "training": True
}  # fmt: skip
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
    results, missing = tables.write(), tables.missing()
    there = len(config.runs()) - len(missing)
    for ending in _pursue(missing, place, jobs):
        endings.append(ending)
        results = tables.write()
        if not as_json:
            _say(ending, there + len(endings), len(config.runs()))
        if ending.code == STOPPED:
            break
    if as_json:
        print((place / "comparison.json").read_text(encoding="utf-8"))
    else:
        print(results)
        print(f"Tables: {', '.join(str(place / name) for name in TABLES)}")
    codes = {e.code for e in endings} | ({INCOMPLETE} if tables.unspent() else set())
    return next((code for code in (STOPPED, FAILED, INCOMPLETE) if code in codes), DONE)


class Tables:
    """The tables of a study, written anew whenever a run has ended.

    The figures of every finished run lie in the study's folder by themselves, so that its tables need no run
    directories, and a study goes on where these were archived or left on another machine.
    """

    def __init__(self, place: Path, config: StudyConfig, title: str, command: str):
        self._place, self._config, self._title, self._command = place, config, title, command
        self._finished: dict[str, RunFigures] = {}
        for run in config.runs():
            if (kept := _kept_figures(place, run)) is not None:
                self._finished[run.name] = kept

    def missing(self) -> list[StudyRun]:
        """Runs of which there are no figures yet."""
        return [run for run in self._config.runs() if run.name not in self._finished]

    def unspent(self) -> bool:
        """Whether a finished run ended before its budget was spent."""
        return any(f.evaluations < (self._config.design.budget or 0) for f in self._finished.values())

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
                _keep_figures(self._place, run, figures)
            yield self._finished[run.name]


def _figures_file(place: Path, run: StudyRun) -> Path:
    return place / FIGURES / f"{run.name.replace('/', '--')}.json"


def _keep_figures(place: Path, run: StudyRun, figures: RunFigures) -> None:
    """Write down what a finished run reached, and with which configuration."""
    (place / FIGURES).mkdir(exist_ok=True)
    publish_text(_figures_file(place, run), json.dumps({"config": _decisive(run.config), **asdict(figures)}, indent=1))


def _kept_figures(place: Path, run: StudyRun) -> RunFigures | None:
    """What a run of this configuration has reached; None if that is not known.

    Raises:
        UsageError: the figures are of a run with another configuration.
    """
    from promof_hpc.design.comparing.study import RunFigures

    path = _figures_file(place, run)
    if path.name not in list_names(place / FIGURES):
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    begun = DesignConfig.model_validate(content.pop("config"))
    if _decisive(begun) != _decisive(run.config):
        raise UsageError(f"{path} is of a run with another configuration; choose another --out, or remove it.")
    return RunFigures(**{**content, "successes": tuple(content["successes"])})


def _decisive(config: DesignConfig) -> dict[str, Any]:
    """What of a configuration figures depend on: not where its files lie, nor how many processes work."""
    return config.model_dump(mode="json", exclude=INDECISIVE)


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
    from hpc.design import begin_design, complete_design, local_team

    try:
        opened, parts = begin_design(place / run.name, run.config, local_team(run.config))
        return Ending(run, complete_design(opened, 0, quiet, parts=parts))
    except PromofError as error:
        return Ending(run, FAILED, str(error))
    except KeyboardInterrupt:
        return Ending(run, STOPPED)


def _say(ending: Ending, done: int, planned: int) -> None:
    words = {DONE: "done", INCOMPLETE: "ended before its budget was spent", STOPPED: "stopped", FAILED: "failed"}
    line = f"[{done}/{planned}] {ending.run.name}: {words.get(ending.code, str(ending.code))}"
    print(line + (f": {ending.why}" if ending.why else ""), file=sys.stderr, flush=True)
