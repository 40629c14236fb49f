"""How busy the ranks were: a bar a batch, a lane a rank, and the share of the working time that was spent computing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from xml.etree import ElementTree as ET

from promof_hpc.report.svg import Scale, add, add_box, markup, svg_root
from promof_hpc.store.events import Event

PAUSE_S = 120.0  # nobody at work for so long, and for a tenth of the whole, means that the run was stopped
MOST_LANES = 64
WIDTH, LEFT = 1060, 110


@dataclass(frozen=True)
class Lane:
    """What one rank did.

    Attributes:
        name: host and rank.
        spans: (start, end, batch, structures) in s of working time, in order.
        busy: share of the working time, 0 to 1.
    """

    name: str
    spans: tuple[tuple[float, float, str, int], ...]
    busy: float


@dataclass(frozen=True)
class Utilisation:
    """Everything the figure and its caption say.

    Attributes:
        lanes: sorted by host and rank.
        working_s: time with at least one rank at work, pauses left out.
        pauses: (place in working time, length), in s, of the times between jobs.
        structures: finished in all.
    """

    lanes: tuple[Lane, ...]
    working_s: float
    pauses: tuple[tuple[float, float], ...]
    structures: int

    @property
    def busy(self) -> float:
        """Mean over the ranks."""
        return sum(lane.busy for lane in self.lanes) / len(self.lanes)


def fold_events(events: Iterable[Event]) -> Utilisation | None:
    """Lanes of the ranks from finished batches, or None if none has finished; events without times are passed over."""
    batches = sorted((e for e in events if "start_s" in e and "end_s" in e), key=lambda e: float(e["start_s"]))
    if not batches:
        return None
    sessions = _sessions([(float(e["start_s"]), float(e["end_s"])) for e in batches])
    working = sum(end - begin for begin, end in sessions) or 1e-9
    spans: dict[tuple[str, int], list[tuple[float, float, str, int]]] = {}
    for event in batches:
        begin, end = (_working_time(float(event[key]), sessions) for key in ("start_s", "end_s"))
        key = (str(event.get("host", "")), int(event.get("rank", 0)))
        spans.setdefault(key, []).append((begin, end, str(event.get("batch", "")), int(event.get("structures", 0))))
    hosts = {host for host, _ in spans}
    lanes = tuple(
        Lane(f"{host} · {rank}" if len(hosts) > 1 else f"rank {rank}", tuple(found), _covered(found) / working)
        for (host, rank), found in sorted(spans.items())
    )
    pauses, gone = [], 0.0
    for (begin, end), (following, _) in pairwise(sessions):
        gone += end - begin
        pauses.append((gone, following - end))
    return Utilisation(lanes, working, tuple(pauses), sum(span[3] for lane in lanes for span in lane.spans))


def gantt(use: Utilisation) -> str:
    """The lanes as SVG; of many ranks the least busy `MOST_LANES`, which are those worth a look."""
    shown = [lane for lane in use.lanes if lane in _least_busy(use.lanes)]
    pitch = 22 if len(shown) <= 16 else 12 if len(shown) <= 32 else 8
    bottom = 8 + pitch * len(shown)
    across = Scale(0.0, use.working_s, LEFT, WIDTH - 52)
    svg = svg_root(WIDTH, bottom + 36, f"Work of {len(use.lanes)} ranks over {use.working_s:.0f} s")
    for k, lane in enumerate(shown):
        top = 8 + pitch * k
        add_box(svg, "lane", LEFT, top, across.end, top + pitch - 3)
        if pitch >= 12 or k % 4 == 0:
            add(svg, "text", "tick", "end", x=LEFT - 8, y=top + pitch / 2 + 2, text=lane.name[-18:])
            add(svg, "text", "tick", x=WIDTH - 46, y=top + pitch / 2 + 2, text=f"{lane.busy:.0%}")
        _bars(svg, lane, across, top, pitch - 3)
    for place, length in use.pauses:
        line = add(svg, "line", "pause", x1=across(place), x2=across(place), y1=2, y2=bottom + 2)
        add(line, "title", text=f"paused for {spoken(length)}")
    unit, name = _time_unit(use.working_s)
    axis = Scale(0.0, use.working_s / unit, LEFT, WIDTH - 52)
    add(svg, "line", "axis", x1=LEFT, x2=across.end, y1=bottom + 2, y2=bottom + 2)
    for tick in axis.ticks(7):
        add(svg, "text", "tick", "middle", x=axis(tick), y=bottom + 16, text=f"{tick:g}")
    add(svg, "text", "axis-name", "middle", x=(LEFT + across.end) / 2, y=bottom + 32, text=f"working time ({name})")
    return markup(svg)


def spoken(seconds: float) -> str:
    """A duration as a person says it."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _bars(svg: ET.Element, lane: Lane, across: Scale, top: float, height: float) -> None:
    """A bar a batch; batches too short to be told apart become one bar."""
    waiting: list[tuple[float, float, str, int]] = []
    for k, span in enumerate(lane.spans):
        waiting.append(span)
        left, right = across(waiting[0][0]), across(span[1])
        is_last = k + 1 == len(lane.spans)
        if not is_last and right - left < 2.0 and across(lane.spans[k + 1][0]) - right < 1.0:
            continue
        bar = add_box(svg, "batch", left, top, max(right - 0.7, left + 1), top + height)
        count = sum(s[3] for s in waiting)
        names = waiting[0][2] if len(waiting) == 1 else f"{len(waiting)} batches from {waiting[0][2]}"
        seconds = sum(s[1] - s[0] for s in waiting)
        add(bar, "title", text=f"{names}: {count} structure{'s' * (count != 1)} in {spoken(seconds)}")
        waiting = []


def _sessions(spans: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Stretches of time in which somebody was at work, from spans sorted by their start; short gaps are bridged."""
    longest = max(end for _, end in spans) - spans[0][0]
    sessions = [spans[0]]
    for begin, end in spans[1:]:
        last_begin, last_end = sessions[-1]
        if begin - last_end > max(PAUSE_S, 0.1 * longest):
            sessions.append((begin, end))
        else:
            sessions[-1] = (last_begin, max(last_end, end))
    return sessions


def _working_time(moment: float, sessions: Sequence[tuple[float, float]]) -> float:
    return sum(max(0.0, min(moment, end) - begin) for begin, end in sessions)


def _covered(spans: Sequence[tuple[float, float, str, int]]) -> float:
    """Length of the union of spans sorted by their start (two jobs may have had a rank of one name)."""
    total, reached = 0.0, 0.0
    for begin, end, *_ in spans:
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def _least_busy(lanes: Sequence[Lane]) -> set[Lane]:
    return set(sorted(lanes, key=lambda lane: lane.busy)[:MOST_LANES])


def _time_unit(seconds: float) -> tuple[float, str]:
    if seconds < 300:
        return 1.0, "s"
    return (60.0, "min") if seconds < 18_000 else (3600.0, "h")
