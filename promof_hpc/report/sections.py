"""The parts of the page as values: headline, outcomes, ranking lines, records, provenance. No markup here."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from promof_hpc.screen.table import FURTHER_OUTCOMES, OVER_BUDGET, PENDING, RANKED_BY, UNREADABLE, ranking_column
from promof_hpc.store.schema import FAILED, Outcome

if TYPE_CHECKING:
    from pandas import DataFrame

MOST_LINES = 200  # of the ranking; the rest is in table.csv
MOST_REASONS = 12
OUTCOME_WORDS = {
    Outcome.CONVERGED: "converged",
    Outcome.MEASURED: "measured as read",
    Outcome.MAX_STEPS: "out of steps",
    Outcome.EXPLODED: "exploded",
    Outcome.COLLAPSED: "collapsed",
    Outcome.DISCONNECTED: "fell apart",
    Outcome.NAN: "not a number",
    Outcome.OOM: "out of memory",
    Outcome.TIMED_OUT: "out of time",
    Outcome.CRASHED: "crashed",
    Outcome.FILTERED: "stopped by a gate",
    Outcome.REFUSED: "cannot be scored",
    UNREADABLE: "refused when read",
    OVER_BUDGET: "beyond the budget",
    PENDING: "not yet evaluated",
}
PORE_PAIRS = (("pld_relaxed_ang", "pld_ang"), ("lcd_relaxed_ang", "lcd_ang"))


@dataclass(frozen=True)
class Figure:
    """One number of the headline: `value`, what it counts, a line that qualifies it, and its unit."""

    value: str
    label: str
    note: str = ""
    unit: str = ""


@dataclass(frozen=True)
class Share:
    """One outcome: its `key`, words, how many entries, and their share in %."""

    key: str
    words: str
    count: int
    percent: float


@dataclass(frozen=True)
class Reason:
    """Why entries got no energy: outcome in words, the reason's key, how many, and one of them."""

    words: str
    reason: str
    count: int
    example: str


@dataclass(frozen=True)
class Column:
    """A column of the ranking: its name in the table, heading, unit, and format of its numbers."""

    name: str
    heading: str
    unit: str = ""
    digits: str = ".2f"
    factor: float = 1.0

    def text(self, value: Any) -> str:
        """A cell as people read it; empty where there is no value."""
        if is_missing(value):
            return ""
        if isinstance(value, str):
            return value
        return f"{float(value) * self.factor:{self.digits}}".replace("-", "−")

    def key(self, value: Any) -> str:
        """What sorting goes by; empty for no value."""
        return "" if is_missing(value) else f"{float(value):.10g}"


PLACE = Column("place", "Place", "", ".0f")


def is_missing(value: Any) -> bool:
    """Whether a cell of the table holds nothing."""
    import pandas as pd

    return value is None or value is pd.NA or value == "" or (isinstance(value, float) and math.isnan(value))


def columns_shown(table: DataFrame) -> list[Column]:
    """Numeric columns of the ranking that have any value; pores are those at the end if they were measured there."""
    pld, lcd = (next((c for c in pair if table[c].notna().any()), pair[1]) for pair in PORE_PAIRS)
    columns = [
        Column("e_rel_ev_per_atom", "E_rel", "eV/atom", "+.3f"),
        Column("e_rel_percentile", "Percentile", "%", ".0f"),
        Column("e_form_ev_per_atom", "E_form", "eV/atom", "+.3f"),
        Column(pld, "PLD", "Å"),
        Column(lcd, "LCD", "Å"),
        Column("density_g_per_cm3", "Density", "g/cm³"),
        Column("volume_change", "ΔV", "%", "+.1f", 100.0),
        Column("atoms", "Atoms", "", ".0f"),
    ]
    return [c for c in columns if table[c.name].notna().any()]


def headline(table: DataFrame) -> list[Figure]:
    """What the run has come to, in five numbers at most."""
    counts = table["outcome"].value_counts().to_dict()
    read = len(table) - counts.get(UNREADABLE, 0)
    relaxed = int(table["volume_relaxed_ang3"].notna().sum())
    placed = int(table["place"].notna().sum())
    figures = [Figure(f"{len(table):,}", "library entries", f"{read:,} could be read")]
    if relaxed:
        converged = counts.get(Outcome.CONVERGED, 0)
        figures.append(Figure(f"{relaxed:,}", "relaxed", _of(relaxed, read, "of those read")))
        figures.append(Figure(f"{converged:,}", "converged", _of(converged, relaxed, "of those relaxed")))
    elif counts.get(Outcome.MEASURED):
        figures.append(Figure(f"{counts[Outcome.MEASURED]:,}", "measured as read", "nothing was relaxed"))
    figures.append(Figure(f"{placed:,}", "ranked", "finished without a flag" if placed else "see Ranking for why"))
    if placed:
        figures.append(_best(table.iloc[0].to_dict(), ranking_column(table)))
    return figures


def shares(table: DataFrame) -> list[Share]:
    """Outcomes of the entries in a fixed order, those that did not occur left out."""
    counts = table["outcome"].value_counts().to_dict()
    return [
        Share(str(key), words, int(counts[key]), 100.0 * counts[key] / len(table))
        for key, words in OUTCOME_WORDS.items()
        if counts.get(key)
    ]


def reasons(table: DataFrame) -> list[Reason]:
    """Why entries ended without a result, the most frequent first."""
    without = (*FURTHER_OUTCOMES, *FAILED, Outcome.REFUSED, Outcome.FILTERED)
    ended = table[table["outcome"].isin([str(o) for o in without if o != PENDING])]
    if ended.empty:
        return []
    keys = ended["reason"].map(_reason_key)
    found = [
        Reason(OUTCOME_WORDS[outcome], key, len(group), _example(group["name"].iloc[0], group["reason"].iloc[0]))
        for (outcome, key), group in ended.groupby([ended["outcome"], keys], sort=True)
    ]
    return sorted(found, key=lambda r: -r.count)[:MOST_REASONS]


def ranking_rule(table: DataFrame) -> str:
    """How places are given, in a sentence."""
    if table["place"].isna().all():
        return (
            "No structure has a place: that takes one which finished without a flag and has an E_rel, "
            "an E_form or a pore size."
        )
    column = ranking_column(table)
    if column == RANKED_BY[0]:
        by = "the lowest E_rel first"
    elif column == RANKED_BY[1]:
        by = "the lowest E_form first, since no E_rel is known; it favours oxygen- and fluorine-rich compositions"
    else:
        by = "the widest pores first, since without a reference set energies of different compositions don't compare"
    return f"Places go to structures that finished without a flag, {by}. The others follow without a place."


def why_no_energy(table: DataFrame) -> str:
    """How many finished structures lack E_rel and the most frequent reason, in a sentence; empty if none does."""
    notes = table.loc[table["e_rel_ev_per_atom"].isna() & (table["energy_note"] != ""), "energy_note"]
    if notes.empty:
        return ""
    often = notes.value_counts()
    who = f"{len(notes):,} structures have" if len(notes) > 1 else "1 structure has"
    return f"{who} no E_rel{'' if len(often) == 1 else ', most often'}: {often.index[0]}."


def pore_note(columns: Sequence[Column]) -> str:
    """Of which state the pores and the density in the ranking are."""
    state = "at the end" if PORE_PAIRS[0][0] in [c.name for c in columns] else "as read"
    return f"PLD and LCD are those {state}, the density is that as read."


def record_of(line: Mapping[str, Any], columns: Sequence[Column]) -> dict[str, Any]:
    """What the page shows of a selected structure: heading, then pairs of what and how much."""
    facts = [("Outcome", OUTCOME_WORDS.get(line["outcome"], line["outcome"])), ("Formula", line["formula"])]
    facts += [("Why", line["reason"]), ("Flags", line["flags"]), ("Framework", line["framework_class"])]
    further = [Column("fmax_ev_per_ang", "Largest force", "eV/Å", ".3f"), Column("steps", "Steps", "", ".0f")]
    for c in (*columns, *further):
        facts.append((c.heading, f"{c.text(line[c.name])} {c.unit}" if c.text(line[c.name]) else ""))
    facts += [("Energy", line["energy_note"])]
    return {"name": line["name"], "place": PLACE.text(line["place"]), "facts": [[k, v.strip()] for k, v in facts if v]}


def short_facts(line: Mapping[str, Any], columns: Sequence[Column]) -> str:
    """The caption of a picture: place, energy, pores, change of the volume, and what speaks against it."""
    wanted = ("e_rel_ev_per_atom", *PORE_PAIRS[0], "volume_change")
    facts = [f"place {PLACE.text(line['place'])}"] if PLACE.text(line["place"]) else []
    if line["outcome"] != Outcome.CONVERGED:
        facts.append(OUTCOME_WORDS[line["outcome"]])
    for c in columns:
        if c.name in wanted and c.text(line[c.name]):
            facts.append(f"{c.heading} {c.text(line[c.name])} {c.unit}")
    if line["flags"]:
        facts.append(str(line["flags"]).replace("_", " "))
    return " · ".join(facts)


def flatten(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Pairs of a readable key and a value from nested mappings; empty values are passed over."""
    for key, value in values.items():
        name = f"{above} {key}".strip().replace("_", " ")
        if key == "versions" and isinstance(value, Mapping):
            yield name, ", ".join(f"{package} {version}" for package, version in value.items())
        elif isinstance(value, Mapping):
            yield from flatten(value, name)
        elif isinstance(value, list | tuple):
            yield name, " ".join(str(v) for v in value)
        elif value not in (None, ""):
            yield name, str(value)


def budget_sentence(budget: Mapping[str, int | None]) -> str:
    """Where the budget stands, in a sentence; empty where none is given."""
    if not budget:
        return ""
    limit = budget.get("budget")
    spent = f"{budget.get('committed') or 0:,}"
    text = f"{spent} of {limit:,} evaluations of the budget are spent" if limit else f"{spent} evaluations are spent"
    text += f"; {budget.get('issued') or 0:,} were issued"
    if budget.get("uncharged"):
        text += f", of which {budget['uncharged']:,} ended before the potential and cost nothing"
    if budget.get("in_flight"):
        text += f", {budget['in_flight']:,} are being computed"
    if budget.get("wasted"):
        text += f", {budget['wasted']:,} were computed twice after a fault and count once"
    return text + "."


def _best(line: Mapping[str, Any], column: str) -> Figure:
    value = float(line[column])
    label = {"e_rel_ev_per_atom": "lowest E_rel", "e_form_ev_per_atom": "lowest E_form", "pld_ang": "widest pores"}
    if column == "pld_ang":
        return Figure(f"{value:.2f}", label[column], str(line["name"]), "Å")
    return Figure(f"{value:+.3f}".replace("-", "−"), label[column], str(line["name"]), "eV/atom")


def _of(part: int, whole: int, words: str) -> str:
    return f"{100 * part / whole:.0f} % {words}" if whole else ""


def _reason_key(reason: str) -> str:
    """What reasons of one kind share: the word before the colon, the gate, or the text without its numbers."""
    kind, colon, _ = reason.partition(": ")
    if colon and kind.isidentifier():
        return kind
    if ", asked for " in reason:
        return reason.partition(", asked for ")[2]
    return re.sub(r"[-+]?\d+(\.\d+)?(e[-+]?\d+)?", "…", reason)[:80]


def _example(name: str, reason: str) -> str:
    """Name and reason of one entry; readers put the name into the reason already."""
    kind, _, detail = reason.partition(": ")
    said = detail if kind.isidentifier() and detail else reason
    return said if said.startswith(name) else f"{name}: {said}"
