"""A study as tables: Markdown for documents, HTML with a figure, JSON from which every number can be traced."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files

from promof_hpc.design.comparing.study import TESTED, Line, RunFigures, Spread
from promof_hpc.report.svg import Scale, add, bottom_axis, markup, svg_root

ASSETS = files("promof_hpc.report") / "assets"
SIGNIFICANT = 0.05
ROW_PX, LEFT_PX, WIDTH_PX = 30, 220, 640


@dataclass(frozen=True)
class Study:
    """What the tables are made from.

    Attributes:
        title: heading.
        lines: by task and strategy.
        planned: runs that the study has.
        budget: evaluations of each run.
        command: that made it.
    """

    title: str
    lines: Sequence[Line]
    planned: int
    budget: int
    command: str

    @property
    def runs(self) -> list[RunFigures]:
        """Every run that there is."""
        return [run for line in self.lines for run in line.runs]

    @property
    def tasks(self) -> list[str]:
        """In the order of the lines."""
        return list(dict.fromkeys(line.task for line in self.lines))

    @property
    def progress(self) -> str:
        """How much of the study is done."""
        done = sum(run.finished for run in self.runs)
        return f"{done} of {self.planned} runs finished, {self.budget} evaluations each"


@dataclass(frozen=True)
class Column:
    """A column of the results: heading, what stands in a line, and what the heading means."""

    heading: str
    cell: Callable[[Line], str]
    meaning: str


def interval(spread: Spread, digits: int) -> str:
    """`7.8 [5.1, 10.2]`; the mean alone where there is one seed."""
    if math.isnan(spread.mean):
        return "–"
    mean = f"{spread.mean:.{digits}f}"
    return mean if math.isnan(spread.low) else f"{mean} [{spread.low:.{digits}f}, {spread.high:.{digits}f}]"


def _figure(name: str, digits: int) -> Callable[[Line], str]:
    """Mean, interval and, where the difference from the first strategy was tested, its p-value."""

    def cell(line: Line) -> str:
        p = line.p_values.get(name, math.nan)
        tested = "" if math.isnan(p) else f"; p {'< 0.001' if p < 0.001 else f'= {p:.3f}'}"
        return interval(line.spreads[name], digits) + tested

    return cell


def _second_opinion(line: Line) -> str:
    """Mean and interval over the runs that have successes."""
    if any(run.second_opinion for run in line.runs) and not any(run.successes for run in line.runs):
        return "no successes to ask about"
    return interval(line.spreads["second_opinion_percent"], 0)


COLUMNS = (
    Column("Success, %", _figure("success_percent", 1), "evaluations of the budget that are stable and on target"),
    Column(
        "Top-1", _figure("top1", 2), "best stable structure: PLD in Å nearest the target, or lowest E_rel in eV/atom"
    ),
    Column(
        "Diversity", _figure("diversity", 3), "mean Tanimoto distance between the component sets of stable structures"
    ),
    Column("Of successes", _figure("success_diversity", 3), "the same between the successes"),
    Column("Materials", _figure("materials", 1), "different materials among the successes of a run"),
    Column("2nd opinion, %", _second_opinion, "successes that a second, different potential also calls stable"),
    Column("Gate, %", _figure("gate_pass_percent", 0), "proposals that passed the geometry gate"),
    Column("Stable, %", _figure("stable_percent", 1), "evaluations of the budget that are stable"),
    Column("Evaluations", lambda line: _total(line, "evaluations"), "charged, all seeds together"),
    Column("Force calls", _figure("force_calls", 0), "calls of the potential, a run"),
    Column("Wall-clock, s", _figure("wall_s", 0), "of the campaign, a run"),
    Column("Seeds", lambda line: str(len(line.runs)), "runs behind the line"),
)
RULES = (
    "Intervals are 95 % bootstrap intervals of the mean over seeds. p is that of the difference from the first "
    "strategy, from a two-sided permutation test of pairs of equal seed."
)


def markdown(study: Study) -> str:
    """The study as Markdown."""
    out = [f"# {study.title}", "", f"{study.progress}. {RULES}", "", f"    {study.command}", "", results(study)]
    out += [f"- {c.heading}: {c.meaning}" for c in COLUMNS]
    out += ["", "## Runs", ""]
    return "\n".join([*out, *_pipes(RUN_HEADINGS, [_run_cells(run) for run in study.runs])]).rstrip() + "\n"


def results(study: Study) -> str:
    """The tables of results and gates, task by task, as Markdown."""
    out = []
    for task in study.tasks:
        lines = [line for line in study.lines if line.task == task]
        out += [f"## {task}", ""]
        out += _pipes(["Strategy", *(c.heading for c in COLUMNS)], [[line.strategy, *_cells(line)] for line in lines])
        gates = list(lines[0].gates)
        out += ["Proposals that got past each gate, all seeds together:", ""]
        counts = [[x.strategy, _total(x, "proposals"), *(str(x.gates[g]) for g in gates)] for x in lines]
        out += _pipes(["Strategy", "proposed", *gates], counts)
    return "\n".join(out)


def html(study: Study) -> str:
    """The study as one page that asks nothing of any network."""
    from jinja2 import Environment
    from markupsafe import Markup

    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(_asset("comparison.html.j2"))
    by_task = [(task, [line for line in study.lines if line.task == task]) for task in study.tasks]
    return page.render(
        title=study.title,
        style=Markup(_asset("report.css")),
        progress=study.progress,
        rules=RULES,
        command=study.command,
        columns=COLUMNS,
        by_task=[(task, Markup(intervals(lines)), lines) for task, lines in by_task],
        cells=_cells,
        total=_total,
        run_headings=RUN_HEADINGS,
        runs=[_run_cells(run) for run in study.runs],
    )


def as_json(study: Study) -> str:
    """Every figure with the runs, digests and evaluations that it was made from; NaN becomes null."""
    content = {
        "title": study.title,
        "command": study.command,
        "budget": study.budget,
        "planned_runs": study.planned,
        "lines": [asdict(line) for line in study.lines],
        "tested_against": study.lines[0].strategy if study.lines else "",
        "tested": list(TESTED),
    }
    return json.dumps(_without_nan(content), indent=1, ensure_ascii=False)


def intervals(lines: Sequence[Line]) -> str:
    """Success of each strategy as SVG: seeds as dots, the mean and its interval as a bar."""
    spreads = [line.spreads["success_percent"] for line in lines]
    most = max((v for s in spreads for v in s.values if not math.isnan(v)), default=0.0)
    across = Scale(0.0, max(1.0, 1.05 * most), LEFT_PX, WIDTH_PX - 16)
    height = ROW_PX * len(lines) + 46
    svg = svg_root(WIDTH_PX, height, "Success in % of the budget by strategy")
    for k, (line, found) in enumerate(zip(lines, spreads, strict=True)):
        y = float(ROW_PX * k + 22)
        add(svg, "text", "label", "end", x=LEFT_PX - 12.0, y=y + 4, text=line.strategy)
        for value in found.values:
            if not math.isnan(value):
                add(svg, "circle", "seed", cx=across(value), cy=y, r=3.0)
        if not math.isnan(found.low):
            add(svg, "line", "interval", x1=across(found.low), x2=across(found.high), y1=y, y2=y)
        if not math.isnan(found.mean):
            add(svg, "line", "mean", x1=across(found.mean), x2=across(found.mean), y1=y - 9, y2=y + 9)
    bottom_axis(svg, across, height - 34, across.ticks(5))
    middle = (across.start + across.end) / 2
    add(svg, "text", "axis-name", "middle", x=middle, y=height - 4.0, text="Success, % of the budget")
    return markup(svg)


RUN_HEADINGS = ("Run", "State", "Evaluations", "Successes", "Best evaluation", "Config", "Potential", "Policies")


def _run_cells(run: RunFigures) -> list[str]:
    state = "finished" if run.finished else "unfinished"
    digests = [digest[:12] for digest in (run.config_sha256, run.weights_sha256, run.policy_sha256)]
    return [run.path, state, str(run.evaluations), str(len(run.successes)), run.best or "–", *digests]


def _cells(line: Line) -> list[str]:
    return [column.cell(line) for column in COLUMNS]


def _total(line: Line, name: str) -> str:
    return str(sum(getattr(run, name) for run in line.runs))


def _pipes(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table and an empty line."""
    lines = [headings, ["---"] * len(headings), *rows]
    return [*("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines), ""]


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


def _without_nan(value: object) -> object:
    if isinstance(value, dict):
        return {k: _without_nan(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
