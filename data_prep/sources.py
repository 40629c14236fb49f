"""Where MOFs come from: CoRE MOF 2019 with its measured properties, or any library that screening reads."""

from __future__ import annotations

import csv
import importlib.util
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from promof_hpc.screen.library import Entry, scan

COREMOF = "coremof:"
# column of CoRE MOF 2019 (Chung et al., J. Chem. Eng. Data 2019, 64, 5985; Zeo++ with a 1.86 Å probe) -> name here
COREMOF_PROPERTIES = {
    "LCD": "lcd_ang",
    "PLD": "pld_ang",
    "LFPD": "lfpd_ang",
    "cm3_g": "specific_volume_cm3_per_g",
    "ASA_m2_cm3": "asa_m2_per_cm3",
    "ASA_m2_g": "asa_m2_per_g",
    "NASA_m2_cm3": "nasa_m2_per_cm3",
    "AV_VF": "void_fraction",
    "AV_cm3_g": "av_cm3_per_g",
}
DISORDER_COLUMNS = ("DISORDER", "State")


@dataclass(frozen=True)
class Source:
    """MOFs to prepare.

    Attributes:
        name: as the user gave it.
        entries: in a fixed order.
        properties: measured values of an entry by name with unit; absent where nothing was measured.
        disordered: entries that their source marks as disordered.
    """

    name: str
    entries: tuple[Entry, ...]
    properties: Mapping[str, Mapping[str, float]]
    disordered: frozenset[str]


def open_source(name: str) -> Source:
    """List a source without reading its structures.

    Args:
        name: `coremof:2019-ASR`, `coremof:2019-FSR`, or a folder or file that `screen.library.scan` takes.

    Raises:
        UsageError: there is no such source, or it is empty.
    """
    entries = scan(name).entries
    table = _coremof_table(name)
    if table is None:
        return Source(name, entries, {}, frozenset())
    with table.open(encoding="utf-8", errors="replace", newline="") as file:
        rows = {row["filename"]: row for row in csv.DictReader(file)}
    disordered = frozenset(n for n, row in rows.items() if "DISORDER" in (row.get(c) for c in DISORDER_COLUMNS))
    return Source(name, entries, {n: _measured(row) for n, row in rows.items()}, disordered)


def _coremof_table(name: str) -> Path | None:
    """The table of a CoRE MOF set; None for other sources (2014 has no properties)."""
    spec = importlib.util.find_spec("CoRE_MOF") if name.startswith(COREMOF) else None
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / "data" / f"{name.removeprefix(COREMOF)}.csv"


def _measured(row: Mapping[str, str]) -> dict[str, float]:
    """The properties of one row that are finite numbers."""
    found = {}
    for column, name in COREMOF_PROPERTIES.items():
        try:
            value = float(row.get(column) or "nan")
        except ValueError:
            continue
        if math.isfinite(value):
            found[name] = value
    return found
