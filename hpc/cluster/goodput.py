"""Which share of what was allocated has left results: evaluation in committed shards, training in checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from promof_hpc.design.campaign.loop import Phase
from promof_hpc.store.events import Event

TRAIN, EVALUATE = "train", "evaluate"


@dataclass(frozen=True)
class Session:
    """A job from one start to its end or death.

    Attributes:
        job: its id; `role` train or evaluate; `tasks` processes.
        begin_s: of the allocation; `end_s` the last that was heard of it.
    """

    job: str
    role: str
    tasks: int
    begin_s: float
    end_s: float


@dataclass(frozen=True)
class Goodput:
    """Share of the allocated task-seconds that left results, 0 to 1; the rest was starting and deaths, and of ranks
    also waiting for work.
    """

    share: float
    allocated_s: float


def goodput(events: Iterable[Event]) -> dict[str, Goodput]:
    """By role, of a run's events; empty before any job has worked."""
    known = sorted(events, key=lambda e: float(e["time_s"]))
    found = {}
    for role, useful in ((TRAIN, _trained_s), (EVALUATE, _evaluated_s)):
        mine = [s for s in sessions(known) if s.role == role]
        allocated = sum(s.tasks * (s.end_s - s.begin_s) for s in mine)
        if allocated > 0:
            found[role] = Goodput(sum(useful(s, known) for s in mine) / allocated, allocated)
    return found


def sessions(events: Iterable[Event]) -> list[Session]:
    """Every start of every job; a session ends with the last event of its job before the next start."""
    found: list[Session] = []
    for event in events:
        job = str(event.get("job", str(event["writer"]).partition("-")[0]))
        if event["event"] == "job_began":
            begin = float(event["allocated_s"])
            found.append(Session(job, str(event["role"]), int(event["tasks"]), begin, float(event["time_s"])))
            continue
        for k in range(len(found) - 1, -1, -1):
            if found[k].job == job:
                s = found[k]
                found[k] = Session(s.job, s.role, s.tasks, s.begin_s, max(s.end_s, float(event["time_s"])))
                break
    return found


def _trained_s(session: Session, events: Iterable[Event]) -> float:
    """Task-seconds from the first phase to the last checkpoint, or to the last candidates that were published after it:
    from these the next start goes on. Waiting for evaluations in between is part of training.
    """
    mine = [
        e for e in events if e["writer"] == f"{session.job}-trainer" and session.begin_s <= e["time_s"] <= session.end_s
    ]
    begins = [float(e["time_s"]) for e in mine if e["event"] == "phase"]
    ends = [float(e["time_s"]) for e in mine if e["event"] == "checkpoint" or e.get("phase") == Phase.EVALUATE]
    return session.tasks * max(0.0, max(ends) - min(begins)) if begins and ends else 0.0


def _evaluated_s(session: Session, events: Iterable[Event]) -> float:
    """Rank-seconds in batches that were committed first by this session."""
    prefix = f"{session.job}-rank"
    return sum(
        float(e["end_s"]) - float(e["start_s"])
        for e in events
        if e["event"] == "batch" and e["committed"] and str(e["writer"]).startswith(prefix)
        and session.begin_s <= float(e["start_s"]) <= session.end_s
    )  # fmt: skip


def describe(found: Mapping[str, Goodput]) -> list[str]:
    """A line a role."""
    return [
        f"{role}: {g.share:.0%} of {g.allocated_s / 3600:.2g} task-hours left results"
        for role, g in sorted(found.items())
    ]
