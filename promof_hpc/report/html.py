"""The report: one HTML page that carries its figures, 3D viewer and styles, and asks nothing of any network."""

from __future__ import annotations

import json
import random
import re
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from promof_hpc.report import campaign_figures, sections
from promof_hpc.report.data import ReportData
from promof_hpc.report.figures import MOST_POINTS, Points, histogram, scatter
from promof_hpc.report.utilisation import fold_events, gantt, spoken
from promof_hpc.report.viewer import MOST_PICTURES, gallery
from promof_hpc.screen.table import UNREADABLE, describe_columns
from promof_hpc.store.schema import Outcome
from promof_hpc.store.shard import replace_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from markupsafe import Markup
    from pandas import DataFrame

    from promof_hpc.report.campaign import CampaignStory

ASSETS = files("promof_hpc.report") / "assets"
DISTRIBUTIONS = (
    ("pld_ang", "PLD as read (Å)"),
    ("lcd_ang", "LCD as read (Å)"),
    ("density_g_per_cm3", "Density as read (g/cm³)"),
    ("e_rel_ev_per_atom", "E_rel (eV/atom)"),
    ("e_form_ev_per_atom", "E_form (eV/atom)"),
    ("volume_change", "Relative change of the volume"),
)


def write_page(data: ReportData, path: Path) -> Path:
    """Write the page, replacing what was there; returns `path`.

    Raises:
        PromofError: the place cannot be written.
    """
    replace_text(path, render(data))
    return path


def render(data: ReportData) -> str:
    """The page as text; the same data always give the same page."""
    from jinja2 import Environment
    from markupsafe import Markup

    table = data.entries
    if data.campaign is not None:  # what never was evaluated is told by the campaign's gates
        table = table[table["outcome"] != UNREADABLE].reset_index(drop=True)
    shown = sections.columns_shown(table)
    numbers = _records(table)
    pictures = data.best[:MOST_PICTURES]
    line_of = {line["name"]: line for line in table[table["name"].isin([b.name for b in pictures])].to_dict("records")}
    lines = table.iloc[numbers].to_dict("records")
    plotted = _energy_over_pores(table, numbers)
    use = fold_events(data.events)
    # autoescape turns whatever came from outside into text; Markup marks what this package itself has made
    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(_asset("page.html.j2"))
    return page.render(
        title=data.title,
        style=Markup(_asset("report.css")),
        viewer=Markup(_script(_asset("3Dmol-min.js")) if pictures else ""),
        viewer_licence=_asset("3Dmol-LICENSE.txt"),
        script=Markup(_script(_asset("report.js"))),
        headline=sections.headline(table) if data.campaign is None else campaign_figures.headline(data.campaign),
        campaign=_campaign(data.campaign),
        budget=sections.budget_sentence(data.budget),
        shares=sections.shares(table),
        reasons=sections.reasons(table),
        distributions=[Markup(figure) for figure in _histograms(table)],
        scatter=Markup(scatter(*plotted) if plotted else ""),
        crowded=plotted is not None and len(plotted[0].x) > MOST_POINTS,
        why_no_energy=sections.why_no_energy(table),
        use=use,
        gantt=Markup(gantt(use) if use else ""),
        spoken=spoken,
        place=sections.PLACE,
        any_place=bool(table["place"].notna().any()),
        columns=shown,
        pore_note=sections.pore_note(shown),
        formula=_formula,
        ranking=list(enumerate(lines[: sections.MOST_LINES])),
        outcome_words=sections.OUTCOME_WORDS,
        rule=sections.ranking_rule(table),
        total=len(table),
        best=[(b.name, b.row.formula, sections.short_facts(line_of[b.name], shown)) for b in pictures],
        payload=Markup(
            _json({"records": [sections.record_of(line, shown) for line in lines], "gallery": gallery(pictures)})
        ),
        provenance=list(sections.flatten(data.provenance)),
        attribution=data.attribution,
        glossary=describe_columns(),
    )


def _campaign(story: CampaignStory | None) -> dict[str, Any] | None:
    """The campaign's part of the page; None for a screening."""
    if story is None:
        return None
    from markupsafe import Markup

    def marked(figures: Sequence[campaign_figures.Figure]) -> list[tuple[str, Markup, str]]:
        return [(f.title, Markup(f.svg), f.note) for f in figures]

    moved = story.displacements_ang[np.isfinite(story.displacements_ang)]
    return {
        "story": story,
        "funnel": campaign_figures.widths(story.gates),
        "second_opinion": campaign_figures.second_opinion(story),
        "progress": marked(campaign_figures.progress(story)),
        "learning": marked(campaign_figures.learning(story)),
        "energies": Markup(campaign_figures.energies(story)),
        "front": Markup(campaign_figures.front(story)),
        "moved_ang": float(np.median(moved)) if len(moved) else None,
        "dead_percent": None if story.dead_share != story.dead_share else 100.0 * story.dead_share,
    }


def _records(table: DataFrame) -> list[int]:
    """Lines of the table that can be selected: the ranking shown, and a fixed sample of the others with an energy."""
    top = min(len(table), sections.MOST_LINES)
    with_energy = np.nonzero(table["energy_ev_per_atom"].notna().to_numpy())[0].tolist()
    rest = [k for k in with_energy if k >= top]
    room = MOST_POINTS - top
    if len(rest) > room:
        rest = sorted(random.Random(0).sample(rest, room))
    return [*range(top), *rest]


def _histograms(table: DataFrame) -> list[str]:
    good = (table["outcome"].isin([Outcome.CONVERGED, Outcome.MEASURED])).to_numpy()
    figures = []
    for column, axis in DISTRIBUTIONS:
        values = table[column].to_numpy(np.float64)
        known = np.isfinite(values)
        if known.any():
            figures.append(histogram(values[known], good[known], axis))
    return figures


def _energy_over_pores(table: DataFrame, records: list[int]) -> tuple[Points, str, str] | None:
    """Points with the names of both axes; None if no structure has both values."""
    y_column, y_axis = "e_rel_ev_per_atom", "E_rel (eV/atom)"
    if not table[y_column].notna().any():
        y_column, y_axis = "e_form_ev_per_atom", "E_form (eV/atom)"
    x_column, x_axis = "pld_relaxed_ang", "pore limiting diameter at the end (Å)"
    if not (table[x_column].notna() & table[y_column].notna()).any():
        x_column, x_axis = "pld_ang", "pore limiting diameter as read (Å)"
    x, y = table[x_column].to_numpy(np.float64), table[y_column].to_numpy(np.float64)
    known = np.nonzero(np.isfinite(x) & np.isfinite(y))[0]
    if not len(known):
        return None
    record_of = np.full(len(table), -1)
    record_of[records] = np.arange(len(records))
    names = table["name"].to_numpy()
    label = [f"{names[k]}: {x[k]:.2f} Å, {y[k]:+.3f} eV/atom" for k in known.tolist()]
    good = table["place"].notna().to_numpy()[known]
    return Points(x[known], y[known], good, record_of[known], label), x_axis, y_axis


def _formula(text: str) -> Markup:
    """A formula with its numbers set low."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"(\d+)", r"<sub>\1</sub>", str(escape(text))))


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


def _script(source: str) -> str:
    """JavaScript that can stand inside a script element."""
    return source.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _json(value: Any) -> str:
    """JSON that can stand inside a script element, whatever its texts contain."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
