"""Where a run stands, folded from its directory: done and total, outcomes, rate, time left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from promof_hpc.design.judging.second_opinion import SecondOpinion
from promof_hpc.report.campaign_status import campaign_status, is_campaign, seconds_left
from promof_hpc.store.budget import Budget, fold, issued
from promof_hpc.store.claims import is_led, live_claims
from promof_hpc.store.events import Event, read_events
from promof_hpc.store.run_dir import RunDir, how_ended, is_ingested, stop_requested


@dataclass(frozen=True)
class Snapshot:
    """Progress of a run at one moment.

    Attributes:
        entries: library entries looked at so far, or proposals of a campaign.
        refused: of these, refused when read or by the gate, by reason.
        budget: the folded ledger.
        seconds_left: estimate from the cost of what is done; None before anything is.
        ranks: ranks at work.
        state: done, running, stopping, or idle.
        rounds: what is known of each round.
        campaign: whether the run is one.
        gate_pass_share: of a campaign's proposals; None for other runs and before any.
        best: of a campaign, the proposal with the highest reward so far.
        ending: how a campaign has ended; empty while it goes on.
        second_opinion: on a campaign's successes; None for other runs and where none is asked for.
    """

    entries: int
    refused: dict[str, int]
    budget: Budget
    seconds_left: float | None
    ranks: int
    state: str
    rounds: list[dict[str, Any]] = field(default_factory=list)
    campaign: bool = False
    gate_pass_share: float | None = None
    best: dict[str, Any] | None = None
    ending: str = ""
    second_opinion: SecondOpinion | None = None

    @property
    def done(self) -> int:
        """Evaluations that have ended; of a campaign those that count against its budget."""
        return self.budget.committed + (0 if self.campaign else self.budget.uncharged)

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        opinion = self.second_opinion
        return asdict(self) | {"done": self.done, "second_opinion": opinion.as_dict() if opinion else None}


def snapshot(run: RunDir, budget: int | None, claim_expiry_s: float = 300.0) -> Snapshot:
    """Fold the run directory."""
    folded = fold(run, budget, claim_expiry_s)
    entries, refused, rounds = 0, Counter[str](), []
    cost_left = cost_done = 0.0
    events = list(read_events(run))
    durations = {e["batch"]: e["end_s"] - e["start_s"] for e in events if e["event"] == "batch"}
    seconds = 0.0
    for number in run.round_numbers():
        asked = issued(run.candidates(number))
        committed = set(run.committed(number))
        entries += asked.entries
        refused.update(asked.refused)
        for plan in asked.plans:
            if plan.name not in committed:
                cost_left += plan.cost
            elif plan.name in durations:
                cost_done += plan.cost
                seconds += durations[plan.name]
        rounds.append({"round": number, "batches": len(asked.plans), "committed": len(committed)})
    ranks = _ranks_at_work(run, events, claim_expiry_s)
    left = cost_left * seconds / cost_done / max(ranks, 1) if cost_done else None
    done = folded.finished and is_ingested(run)
    state = "done" if done else "stopping" if stop_requested(run) else "running" if ranks else "idle"
    found = Snapshot(entries, dict(refused), folded, left, ranks, state, rounds)
    return _of_campaign(run, found, events, claim_expiry_s) if is_campaign(run) else found


def _of_campaign(run: RunDir, found: Snapshot, events: Sequence[Event], claim_expiry_s: float) -> Snapshot:
    """A campaign is not done when all that was issued is, and its time left is that of its budget."""
    status = campaign_status(run)
    ended = how_ended(run)
    ending = ended.why if ended else ""
    led = is_led(run, claim_expiry_s)
    opinion = status.second_opinion
    done = ending and found.budget.finished and (opinion is None or opinion.complete)
    state = "done" if done else "idle" if not led else "stopping" if stop_requested(run) else "running"
    ledger = found.budget
    left = None if ending or not led else seconds_left(events, ledger.committed, ledger.budget or 0)
    return replace(
        found, campaign=True, state=state, seconds_left=left, ending=ending,
        gate_pass_share=status.gate_pass_share, best=status.best, second_opinion=opinion,
        rounds=[{**batches, **facts} for batches, facts in zip(found.rounds, status.rounds, strict=False)],
    )  # fmt: skip


def _ranks_at_work(run: RunDir, events: Sequence[Event], expiry_s: float) -> int:
    """Ranks that have said that they are ready and have not left, in the newest farm."""
    newest: dict[str, set[int]] = {}
    began: dict[str, float] = {}
    for event in events:
        job = event["writer"].rpartition("-rank")[0]
        if event["event"] == "ready":
            newest.setdefault(job, set()).add(event["rank"])
            began[job] = max(began.get(job, 0.0), event["time_s"])
        elif event["event"] == "leave":
            newest.get(job, set()).discard(event["rank"])
    if not began or not (live_claims(run, expiry_s) or is_led(run, expiry_s)):
        return 0
    return len(newest[max(began, key=lambda job: began[job])])
