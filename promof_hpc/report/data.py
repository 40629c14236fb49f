"""What a report is made from: plain data, so that tables and page depend on no run directory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from promof_hpc.store.events import Event
from promof_hpc.store.schema import Row
from promof_hpc.structure import Structure

if TYPE_CHECKING:
    from pandas import DataFrame

    from promof_hpc.report.campaign import CampaignStory

Final = tuple[str, Row, Structure]  # name of the entry, its row, the structure that its evaluation ended with


def no_structures() -> Iterable[Final]:
    """For reports without structures."""
    return ()


@dataclass(frozen=True)
class BestStructure:
    """One structure of the gallery.

    Attributes:
        name: of its library entry.
        row: its evaluation.
        as_read: before the relaxation.
        relaxed: what it ended as, atoms in the same order.
    """

    name: str
    row: Row
    as_read: Structure
    relaxed: Structure


@dataclass(frozen=True)
class ReportData:
    """The content of a report.

    Attributes:
        title: heading of the page.
        provenance: what the numbers come from, as in `provenance.json`; values may be nested mappings.
        entries: the table that `screen.table.make_table` makes.
        budget: `budget` (None: unlimited), `issued`, `committed`, `in_flight`, `wasted`.
        events: finished batches: `rank`, `host`, `batch`, `start_s`, `end_s`, `structures`; other keys are passed over.
        best: structures to be shown in 3D, the best first.
        attribution: lines about whose data and models these are.
        campaign: what a design tells of its rounds; None for a screening.
        finals: called for the final structures of all evaluations, one at a time; every call starts anew.
    """

    title: str
    provenance: Mapping[str, Any]
    entries: DataFrame
    budget: Mapping[str, int | None] = field(default_factory=dict)
    events: Sequence[Event] = ()
    best: Sequence[BestStructure] = ()
    attribution: Sequence[str] = ()
    campaign: CampaignStory | None = None
    finals: Callable[[], Iterable[Final]] = no_structures
