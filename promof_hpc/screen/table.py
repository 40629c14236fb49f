"""The table of a screening, a line a library entry, the best first; and the files made from it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promof_hpc.errors import PromofError, UsageError
from promof_hpc.report.data import Final, ReportData
from promof_hpc.screen.structure_text import cif_text, extxyz_frame, safe_stems
from promof_hpc.store.candidates import Entry
from promof_hpc.store.schema import FIELDS, TEXT_COLUMNS, UNKNOWN, Outcome, Row
from promof_hpc.store.shard import replace, replace_text

if TYPE_CHECKING:
    from pandas import DataFrame, Series

UNREADABLE = "unreadable"  # refused when it was read
PENDING = "pending"  # issued, and its batch is not committed yet
OVER_BUDGET = "over_budget"  # never issued
HARMLESS_CHECKS = frozenset({"no_hydrogen"})  # true of good MOFs too
WITH_STRUCTURE = (Outcome.CONVERGED, Outcome.MAX_STEPS, Outcome.MEASURED)
RANKED_BY = ("e_rel_ev_per_atom", "e_form_ev_per_atom", "pld_ang")
FRAME_COLUMNS = ("e_form_ev_per_atom", "e_rel_ev_per_atom", "volume_change", "lcd_relaxed_ang", "pld_relaxed_ang")
FORMATS = ("cif", "extxyz", "csv", "parquet")

ADDED: dict[str, dict[str, Any]] = {
    "place": {"meaning": "position among the unflagged structures that converged (or were only measured)", "unit": ""},
    "name": {"meaning": "of the library entry, unique", "unit": ""},
    "source": {"meaning": "library that the entry comes from", "unit": ""},
    "flags": {
        "meaning": "what speaks against trusting the structure: failed checks, missing hydrogen, broken bonds",
        "unit": "",
    },
}
FURTHER_OUTCOMES = {
    UNREADABLE: "refused when it was read, with the reason",
    PENDING: "not evaluated yet",
    OVER_BUDGET: "the budget was used up before this entry",
}


def make_table(entries: Sequence[Entry], rows: Iterable[Row], source: str = "") -> DataFrame:
    """One line a library entry: `place`, `name`, `source`, `flags` and the columns of its row, the best first.

    What was not computed is missing (NaN, NA or empty text), never a number that means so. Entries that share an
    evaluation (exact duplicates) have a line each. Entries without a row have one of `FURTHER_OUTCOMES`.

    Args:
        entries: in the order of the library.
        rows: evaluations, scored; those of no entry are passed over.
        source: name of the library.
    """
    import pandas as pd

    by_id = {row.evaluation_id: row for row in rows}
    found = [by_id.get(entry.evaluation_id) if entry.evaluation_id else None for entry in entries]
    columns: dict[str, Any] = {"name": _text([e.name for e in entries]), "source": _text([source] * len(entries))}
    columns["flags"] = _text(["" if row is None else "; ".join(flags_of(row)) for row in found])
    for f in FIELDS:
        if f.name in TEXT_COLUMNS:
            values = ["" if row is None else str(getattr(row, f.name)) for row in found]
            columns[f.name] = _text(values)
        else:
            raw = [None if row is None else getattr(row, f.name) for row in found]
            columns[f.name] = _numbers(raw, str(f.type))
    table = pd.DataFrame(columns)
    unread = [k for k, row in enumerate(found) if row is None]
    table.loc[unread, "outcome"] = [_outcome_without_row(entries[k]) for k in unread]
    table.loc[unread, "reason"] = [_reason_without_row(entries[k]) for k in unread]
    table.loc[unread, "evaluation_id"] = [entries[k].evaluation_id for k in unread]
    return rank_table(table)


def flags_of(row: Row) -> list[str]:
    """What speaks against trusting a structure; a flagged one gets no place."""
    flags = [check for check in row.checks_failed.split("; ") if check and check not in HARMLESS_CHECKS]
    if row.h_complete == 0:
        flags.append("hydrogen_missing")
    if row.bonds_broken > 0:
        flags.append("bonds_broken")
    return flags


def rank_table(table: DataFrame) -> DataFrame:
    """Lines sorted, with `place` in front: unflagged finished structures, then flagged ones, then all others.

    Inside each group the column named by `ranking_column` decides, then the order of the library.
    """
    import pandas as pd

    column = ranking_column(table)
    finished = table["outcome"].isin([Outcome.CONVERGED, Outcome.MEASURED])
    unflagged = table["flags"] == ""
    tier = (~finished).astype(int) * 2 + (finished & ~unflagged).astype(int)
    sign = -1.0 if column == "pld_ang" else 1.0
    order = pd.DataFrame({"tier": tier, "value": sign * table[column]})
    order = order.sort_values(["tier", "value"], kind="stable", na_position="last")
    ranked = table.loc[order.index].reset_index(drop=True)
    placed = (finished & unflagged & table[column].notna()).loc[order.index].to_numpy()
    place = pd.array([pd.NA] * len(ranked), dtype="Int64")
    place[placed] = range(1, int(placed.sum()) + 1)
    ranked.insert(0, "place", place)
    return ranked


def ranking_column(table: DataFrame) -> str:
    """What places are given by: e_rel (lowest first); without it e_form; without both pld (largest first).

    Energies per atom as such are never compared: they follow the composition.
    """
    placeable = table[table["outcome"].isin([Outcome.CONVERGED, Outcome.MEASURED]) & (table["flags"] == "")]
    return next((column for column in RANKED_BY if placeable[column].notna().any()), RANKED_BY[0])


def describe_columns() -> list[dict[str, str]]:
    """Name, unit and meaning of every column, in order."""
    described = [{"name": name, "unit": str(c["unit"]), "meaning": str(c["meaning"])} for name, c in ADDED.items()]
    for f in FIELDS:
        described.append({"name": f.name, "unit": f.metadata["unit"], "meaning": f.metadata["meaning"]})
    return described


def write_tables(data: ReportData, folder: Path) -> None:
    """Write `table.parquet`, `table.csv`, `columns.json` and `relaxed.extxyz`, replacing what was there.

    Raises:
        PromofError: the folder cannot be written.
    """
    write_parquet(data.entries, folder / "table.parquet")
    write_csv(data.entries, folder / "table.csv")
    replace_text(folder / "columns.json", json.dumps(describe_columns(), indent=1, ensure_ascii=False) + "\n")
    write_extxyz(finished_structures(data), folder / "relaxed.extxyz")


def write_csv(table: DataFrame, path: Path) -> None:
    """The table as UTF-8 CSV; missing values are empty."""
    replace(path, lambda temporary: table.to_csv(temporary, index=False, float_format="%.8g", lineterminator="\n"))


def write_parquet(table: DataFrame, path: Path) -> None:
    """The table as Parquet; each column carries `unit` and `meaning` as field metadata."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    plain = pa.Table.from_pandas(table, preserve_index=False)
    described = {c["name"]: {"unit": c["unit"], "meaning": c["meaning"]} for c in describe_columns()}
    schema = pa.schema([f.with_metadata(described.get(f.name)) for f in plain.schema], plain.schema.metadata)
    replace(path, lambda temporary: pq.write_table(plain.cast(schema), temporary))


def write_extxyz(structures: Iterable[Final], path: Path) -> int:
    """Structures as frames of one file, with name, outcome and the main results in each comment line.

    Returns:
        how many were written.
    """
    count = 0

    def write(temporary: Path) -> None:
        nonlocal count
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            for name, row, structure in structures:
                file.write(extxyz_frame(structure, _frame_info(name, row)))
                count += 1

    replace(path, write)
    return count


def export(data: ReportData, folder: Path, format_: str, top: int = 0) -> str:
    """Write final structures (`cif`: a file each; `extxyz`: one file) or the table (`csv`, `parquet`) to a folder.

    Args:
        top: only the first so many places, the best first; 0 takes every finished structure, or the whole table.

    Returns:
        what was written, in words.

    Raises:
        UsageError: unknown format, or `folder` is a file.
        PromofError: the folder cannot be written.
    """
    if format_ not in FORMATS:
        raise UsageError(f"Unknown format '{format_}'; known: {', '.join(FORMATS)}.")
    _make_folder(folder)
    if format_ in ("csv", "parquet"):
        table = data.entries.head(top) if top else data.entries
        (write_csv if format_ == "csv" else write_parquet)(table, folder / f"table.{format_}")
        return f"table.{format_} with {_counted(len(table), 'line')}"
    chosen = _best_first(data, top) if top else finished_structures(data)
    if format_ == "extxyz":
        count = write_extxyz(chosen, folder / "relaxed.extxyz")
        return f"relaxed.extxyz with {_counted(count, 'structure')}"
    stems = safe_stems(data.entries["name"])
    count = 0
    for name, row, structure in chosen:
        text = cif_text(structure, name, [f"promof: {row.outcome}, evaluation {row.evaluation_id}"])
        replace_text(folder / f"{stems[name]}.cif", text)
        count += 1
    return _counted(count, "CIF file")


def finished_structures(data: ReportData) -> Iterator[Final]:
    """Final structures that mean something: of evaluations that converged, ran out of steps, or did not relax."""
    return (final for final in data.finals() if final[1].outcome in WITH_STRUCTURE)


def _best_first(data: ReportData, top: int) -> list[Final]:
    """The structures of the first places; duplicates share an evaluation and count once."""
    placed = data.entries[data.entries["place"].notna()].drop_duplicates("evaluation_id").head(top)
    order = {str(key): place for place, key in enumerate(placed["evaluation_id"])}
    chosen = (final for final in finished_structures(data) if final[1].evaluation_id in order)
    return sorted(chosen, key=lambda final: order[final[1].evaluation_id])


def _frame_info(name: str, row: Row) -> dict[str, str | int | float]:
    info: dict[str, str | int | float] = {"name": name, "outcome": str(row.outcome), "evaluation_id": row.evaluation_id}
    if row.energy_ev_per_atom == row.energy_ev_per_atom:
        info["energy"] = row.energy_ev_per_atom * row.atoms
    values = {column: getattr(row, column) for column in FRAME_COLUMNS}
    return info | {column: value for column, value in values.items() if value == value}


def _outcome_without_row(entry: Entry) -> str:
    if entry.evaluation_id:
        return PENDING
    return OVER_BUDGET if entry.refusal == OVER_BUDGET else UNREADABLE


def _reason_without_row(entry: Entry) -> str:
    return f"{entry.refusal}: {entry.detail}" if entry.refusal else ""


def _text(values: list[str]) -> Series[str]:
    import pandas as pd

    return pd.Series(values, dtype="str")


def _numbers(values: list[Any], kind: str) -> Series[Any]:
    """Numbers with the sign of what was not computed taken out."""
    import pandas as pd

    if kind == "float":
        return pd.Series(values, dtype="float64")
    if kind == "bool":
        return pd.Series([bool(value) for value in values], dtype="bool")
    return pd.Series([None if value == UNKNOWN else value for value in values], dtype="Int64")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise UsageError(f"{folder} is a file; give another folder with --out.") from error
    except OSError as error:
        raise PromofError(f"Cannot make the folder {folder}: {error.strerror}; give another with --out.") from error


def _counted(count: int, thing: str) -> str:
    return f"{count} {thing}{'s' * (count != 1)}"
