"""Where a run stands, folded from its directory: done and total, outcomes, rate, time left."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from promof_hpc.store.budget import Budget, batches_of, fold
from promof_hpc.store.candidates import read_entries
from promof_hpc.store.claims import is_led, live_claims
from promof_hpc.store.events import read_events
from promof_hpc.store.run_dir import RunDir, stop_requested
from promof_hpc.store.shard import read_shard


@dataclass(frozen=True)
class Snapshot:
    """Progress of a run at one moment.

    Attributes:
        entries: library entries looked at so far.
        refused: of these, refused when read, by reason.
        budget: the folded ledger.
        seconds_left: estimate from the cost of what is done; None before anything is.
        ranks: ranks at work.
        state: done, running, stopping, or idle.
    """

    entries: int
    refused: dict[str, int]
    budget: Budget
    seconds_left: float | None
    ranks: int
    state: str
    rounds: list[dict[str, Any]] = field(default_factory=list)

    @property
    def done(self) -> int:
        """Evaluations that have ended."""
        return self.budget.committed + self.budget.uncharged

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self) | {"done": self.done}


def snapshot(run: RunDir, budget: int | None, claim_expiry_s: float = 300.0) -> Snapshot:
    """Fold the run directory."""
    folded = fold(run, budget, claim_expiry_s)
    entries, refused, rounds = 0, Counter[str](), []
    cost_left = cost_done = 0.0
    durations = {e["batch"]: e["end_s"] - e["start_s"] for e in read_events(run) if e["event"] == "batch"}
    seconds = 0.0
    for number in run.round_numbers():
        count, reasons, costs = _round_facts(run.candidates(number))
        committed = set(run.committed(number))
        entries += count
        refused.update(reasons)
        for name, cost in costs.items():
            if name not in committed:
                cost_left += cost
            elif name in durations:
                cost_done += cost
                seconds += durations[name]
        rounds.append({"round": number, "batches": len(costs), "committed": len(committed)})
    ranks = _ranks_at_work(run, claim_expiry_s)
    left = cost_left * seconds / cost_done / max(ranks, 1) if cost_done else None
    state = "done" if folded.finished else "stopping" if stop_requested(run) else "running" if ranks else "idle"
    return Snapshot(entries, dict(refused), folded, left, ranks, state, rounds)


@lru_cache(maxsize=10_000)
def _round_facts(path: Path) -> tuple[int, dict[str, int], dict[str, float]]:
    """Entries, refusals by reason and cost of each batch of a round; a round never changes."""
    shard = read_shard(path)
    entries = read_entries(shard)
    plans = batches_of(shard, int(path.parent.name))
    return len(entries), dict(Counter(e.refusal for e in entries if e.refusal)), {p.name: p.cost for p in plans}


def _ranks_at_work(run: RunDir, expiry_s: float) -> int:
    """Ranks that have said that they are ready and have not left, in the newest farm."""
    newest: dict[str, set[int]] = {}
    began: dict[str, float] = {}
    for event in read_events(run):
        job = event["writer"].rpartition("-rank")[0]
        if event["event"] == "ready":
            newest.setdefault(job, set()).add(event["rank"])
            began[job] = max(began.get(job, 0.0), event["time_s"])
        elif event["event"] == "leave":
            newest.get(job, set()).discard(event["rank"])
    if not began or not (live_claims(run, expiry_s) or is_led(run, expiry_s)):
        return 0
    return len(newest[max(began, key=lambda job: began[job])])
