"""From a run directory to the content of its report."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePath
from typing import TYPE_CHECKING

from promof_hpc.config import ScreenConfig
from promof_hpc.physics.energies import load_reference, score
from promof_hpc.report.data import BestStructure, Final, ReportData
from promof_hpc.screen.table import WITH_STRUCTURE, make_table
from promof_hpc.store.budget import fold
from promof_hpc.store.candidates import Entry, read_entries, structure_at
from promof_hpc.store.events import read_events
from promof_hpc.store.results import read_results
from promof_hpc.store.run_dir import RunDir, read_round
from promof_hpc.store.schema import Row
from promof_hpc.structure import Structure

if TYPE_CHECKING:
    from pandas import DataFrame

BEST = 12  # structures in the gallery
ATTRIBUTION = (
    "Structures of CoRE MOF 2019, where the library says so: "
    "Y. G. Chung et al., J. Chem. Eng. Data 2019, 64, 5985 (CC BY 4.0).",
    "SevenNet-0: Y. Park et al., J. Chem. Theory Comput. 2024, 20, 4857 (MIT).",
    "CHGNet: B. Deng et al., Nat. Mach. Intell. 2023, 5, 1031 (modified BSD).",
)


def collect(run: RunDir, config: ScreenConfig) -> ReportData:
    """Read everything that a report of `run` shows.

    Raises:
        UsageError: the reference set of the configuration cannot be used with the run's potential.
    """
    provenance = run.provenance_record()
    judge = provenance["potential"]
    reference = load_reference(config.reference, judge["id"], judge["weights_sha256"])
    relax = config.evaluation.relax.digest()
    rows = {e.row.evaluation_id: score(e.row, reference, relax) for e in read_results(run)}
    entries = [e for number in run.round_numbers() for e in read_entries(read_round(run, number))]
    table = make_table(entries, rows.values(), config.library)
    return ReportData(
        title=f"{run.path.name}: {PurePath(config.library).name}",
        provenance=provenance,
        entries=table,
        budget={k: v for k, v in fold(run, config.budget).as_dict().items() if k != "outcomes"},
        events=[e for e in read_events(run) if e["event"] == "batch"],
        best=_best(run, table, entries, rows),
        attribution=ATTRIBUTION,
        finals=lambda: _finals(run, entries, rows),
    )


def _finals(run: RunDir, entries: list[Entry], rows: dict[str, Row]) -> Iterator[Final]:
    """Name, row and final structure of every evaluation, under the first entry that has it."""
    names: dict[str, str] = {}
    for entry in entries:
        names.setdefault(entry.evaluation_id, entry.name)
    for evaluation in read_results(run):
        key = evaluation.row.evaluation_id
        yield names.get(key, key), rows[key], evaluation.structure


def _best(run: RunDir, table: DataFrame, entries: list[Entry], rows: dict[str, Row]) -> list[BestStructure]:
    """The first places, or where nothing has a place the first that came to an end."""
    placed = table[table["place"].notna()]
    shown = placed if len(placed) else table[table["outcome"].isin(WITH_STRUCTURE)]
    by_name = {e.name: e.evaluation_id for e in entries}
    best = {str(name): by_name[str(name)] for name in shown["name"].head(BEST)}
    wanted = set(best.values())
    finals = {e.row.evaluation_id: e.structure for e in read_results(run) if e.row.evaluation_id in wanted}
    starts = _starts(run, wanted)
    return [BestStructure(name, rows[key], starts[key], finals[key]) for name, key in best.items()]


def _starts(run: RunDir, wanted: set[str]) -> dict[str, Structure]:
    """Structures as read, by evaluation id."""
    starts = {}
    for number in run.round_numbers():
        shard = read_round(run, number)
        for k, key in enumerate(shard.arrays["evaluation_id"]):
            if str(key) in wanted:
                starts[str(key)] = structure_at(shard, k)
    return starts
