"""The configuration of a study: one base design, several strategies, tasks and seeds; everything else is shared."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from promof_hpc.config.design import DesignConfig, TaskSettings
from promof_hpc.config.section import Section

SHARED = ("budget", "evaluation", "reference", "task", "seed", "farm", "second_opinion")
"""Keys of the design that no strategy may set for itself: with them a comparison would not be one."""


def _as_seeds(value: Any) -> Any:
    """A number of seeds, or the seeds."""
    if isinstance(value, str | int) and str(value).strip().isdigit():
        return tuple(range(int(value)))
    return value


class StrategyEntry(Section):
    """One compared system."""

    name: str
    """A registered strategy, or your own as module:Class."""
    label: str = ""
    """What the tables call it; the name where empty."""
    set: dict[str, Any] = {}
    """Settings of the design that differ for this system, for instance {learning.k: 1}; never what all must share."""

    @property
    def shown(self) -> str:
        """Label or name."""
        return self.label or self.name


@dataclass(frozen=True)
class StudyRun:
    """One run of a study.

    Attributes:
        strategy: as the tables call it.
        task: as the tables call it.
        seed: of the run.
        config: complete.
    """

    strategy: str
    task: str
    seed: int
    config: DesignConfig

    @property
    def name(self) -> str:
        """Where it lies below the study's folder: `TASK/STRATEGY/seed-0003`."""
        return f"{slug(self.task)}/{slug(self.strategy)}/seed-{self.seed:04d}"


class StudyConfig(Section):
    """A study: strategies x tasks x seeds, each a campaign with the same budget and scorer."""

    design: DesignConfig = DesignConfig(strategy="random")
    """What all runs have in common; its strategy, task and seed are those of the runs."""
    strategies: tuple[StrategyEntry, ...] = Field(min_length=1)
    """The compared systems; the first one is what the others are tested against."""
    tasks: tuple[TaskSettings, ...] = (TaskSettings(),)
    """What is looked for."""
    seeds: Annotated[tuple[int, ...], BeforeValidator(_as_seeds)] = Field((0, 1, 2), min_length=1)
    """Seeds, or how many from 0 on; runs of one seed are compared as pairs."""
    bootstrap: int = Field(10_000, ge=100)
    """Resamples of the seeds for the intervals."""

    @model_validator(mode="before")
    @classmethod
    def _design_is_of_no_strategy(cls, value: Any) -> Any:
        """What only one strategy or task asks for is checked with the runs, not with what they have in common."""
        if not isinstance(value, Mapping) or not isinstance(value.get("design"), Mapping):
            return value
        tasks = value.get("tasks")
        first = {"task": tasks[0]} if isinstance(tasks, list | tuple) and tasks else {}
        return {**value, "design": {**value["design"], **first, "strategy": "random"}}

    @field_validator("strategies")
    @classmethod
    def _nothing_shared_is_overridden(cls, entries: tuple[StrategyEntry, ...]) -> tuple[StrategyEntry, ...]:
        for entry in entries:
            for key in entry.set:
                section = str(key).partition(".")[0]
                if section == "budget":
                    raise ValueError(
                        f"strategy '{entry.shown}' asks for a budget of its own; all compared systems get the same, "
                        "set design.budget"
                    )
                if section in (*SHARED, "strategy"):
                    raise ValueError(
                        f"strategy '{entry.shown}' sets '{key}', which all compared systems share; set design.{key}"
                    )
        names = [slug(entry.shown) for entry in entries]
        doubled = sorted({entry.shown for entry in entries if names.count(slug(entry.shown)) > 1})
        if doubled:
            raise ValueError(f"several strategies are called '{doubled[0]}'; give each a label of its own")
        return entries

    @model_validator(mode="after")
    def _every_run_is_possible(self) -> StudyConfig:
        doubled = [t for t in self.task_names if self.task_names.count(t) > 1]
        if doubled:
            raise ValueError(f"the task '{doubled[0]}' stands twice in tasks")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("a seed stands twice in seeds")
        self.runs()
        return self

    @property
    def task_names(self) -> list[str]:
        """What the tables call the tasks: `pore 6 ± 0.2 Å`, `energy best 10 %`."""
        return [task_name(task) for task in self.tasks]

    def runs(self) -> list[StudyRun]:
        """Every run, all strategies of a seed before the next seed, so that a study that was cut short compares.

        Raises:
            ValueError: a strategy's settings make no valid design.
        """
        return [
            StudyRun(entry.shown, task_name(task), seed, self._config(entry, task, seed))
            for seed, task, entry in itertools.product(self.seeds, self.tasks, self.strategies)
        ]

    def _config(self, entry: StrategyEntry, task: TaskSettings, seed: int) -> DesignConfig:
        content = self.design.model_dump(mode="json")
        for key, value in entry.set.items():
            _assign(content, str(key).split("."), value)
        content |= {"strategy": entry.name, "task": task.model_dump(mode="json"), "seed": seed}
        try:
            return DesignConfig.model_validate(content)
        except ValidationError as error:
            faults = "; ".join(
                f"{'.'.join(str(part) for part in e['loc'])}: {str(e['msg']).removeprefix('Value error, ')}".lstrip(
                    ": "
                )
                for e in error.errors()
            )
            raise ValueError(f"strategy '{entry.shown}': {faults}") from None


def task_name(task: TaskSettings) -> str:
    """A task as a table calls it."""
    if task.name == "pore":
        return f"pore {task.pld_ang:g} ± {task.width_ang:g} Å"
    return f"{task.name} best {task.best_percent:g} %"


def slug(text: str) -> str:
    """A text as a folder name."""
    return re.sub(r"[^\w.]+", "-", text.lower(), flags=re.ASCII).strip("-.") or "unnamed"


def _assign(content: dict[str, Any], keys: list[str], value: Any) -> None:
    """Set one value in nested mappings; a mapping as value is merged."""
    here = content
    for key in keys[:-1]:
        nested = here.get(key)
        if not isinstance(nested, dict):
            nested = here[key] = {}
        here = nested
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _assign(content, [*keys, str(key)], inner)
    else:
        here[keys[-1]] = value
