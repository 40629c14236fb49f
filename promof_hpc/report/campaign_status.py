"""Where a campaign stands: what its rounds proposed, what passed the gate, what was learned, the best so far."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from promof_hpc.config import DesignConfig, load_config
from promof_hpc.design.campaign.issuing import IssueReason
from promof_hpc.design.campaign.learned import LearnedRound, learned_rounds, read_learned
from promof_hpc.design.judging.second_opinion import SecondOpinion, read_second_opinion
from promof_hpc.store.budget import batches_of, issued
from promof_hpc.store.candidates import read_entries
from promof_hpc.store.events import Event
from promof_hpc.store.run_dir import RunDir, read_round
from promof_hpc.store.schema import from_columns
from promof_hpc.store.shard import list_names, read_shard


@dataclass(frozen=True)
class CampaignStatus:
    """What `status` says of a campaign beside what it says of every run.

    Attributes:
        rounds: of each round: `proposals`, `passed` the gate, `evaluations` issued, whether it is `learned`, and then
            rewards, successes and the strategy's `signals`.
        gate_pass_share: of all proposals; None before any.
        best: the proposal with the highest reward: `name`, `round`, `reward`, `success`, `pld_ang`; None before any.
        second_opinion: on its successes; None where none is asked for.
    """

    rounds: tuple[dict[str, Any], ...]
    gate_pass_share: float | None
    best: dict[str, Any] | None
    second_opinion: SecondOpinion | None = None


def is_campaign(run: RunDir) -> bool:
    """Whether a run is a design."""
    return run.provenance.name in list_names(run.path) and run.provenance_record().get("kind") == "design"


def campaign_status(run: RunDir) -> CampaignStatus:
    """Fold what the rounds of a campaign say."""
    learned = {number: _learned(run, number) for number in learned_rounds(run)}
    rounds = []
    for number in run.round_numbers():
        facts: dict[str, Any] = {"round": number, **_proposed(run, number), "learned": number in learned}
        if number in learned:
            facts |= {**learned[number].summary(), "signals": dict(learned[number].signals)}
        rounds.append(facts)
    proposals = sum(facts["proposals"] for facts in rounds)
    share = sum(facts["passed"] for facts in rounds) / proposals if proposals else None
    opinion = read_second_opinion(run, _second_potential(run.config))
    return CampaignStatus(tuple(rounds), share, _best(run, learned), opinion)


def seconds_left(events: Iterable[Event], committed: int, budget: int, now: float | None = None) -> float | None:
    """Time that the rest of the budget will take at the pace of the newest start; None before its first result.

    Args:
        events: of the run; the trainer writes `began` with what was committed at its start.
        committed: evaluations by now.
        now: time of day in seconds, by default the clock's.
    """
    starts = [e for e in events if e["event"] == "began"]
    if not starts:
        return None
    newest = max(starts, key=lambda e: e["time_s"])
    done = committed - newest["committed"]
    elapsed = (time.time() if now is None else now) - newest["time_s"]
    return elapsed / done * (budget - committed) if done > 0 else None


def _best(run: RunDir, learned: Mapping[int, LearnedRound]) -> dict[str, Any] | None:
    """The first of the highest rewards."""
    found = [(number, r, r.best) for number, r in learned.items() if r.best is not None]
    if not found:
        return None
    number, record, row = max(found, key=lambda f: (f[1].judged[f[2] or 0].reward, -f[0]))
    judged, name = record.judged[row or 0], record.names[row or 0]
    facts = {"name": name, "round": number, "reward": judged.reward, "success": judged.success}
    return facts | {"pld_ang": _pore(run, number, name)}


@lru_cache(maxsize=1000)
def _second_potential(config: Path) -> str | None:
    """The potential that a campaign asks for its second opinion; a configuration never changes."""
    return load_config(DesignConfig, config).second_opinion


@lru_cache(maxsize=100_000)
def _learned(run: RunDir, number: int) -> LearnedRound:
    return read_learned(run, number)


def _proposed(run: RunDir, number: int) -> dict[str, int]:
    """Counts of a round that has its candidates; what the budget cut off has passed the gate."""
    asked = issued(run.candidates(number))
    stopped = sum(count for reason, count in asked.refused.items() if reason != IssueReason.OVER_BUDGET)
    return {"proposals": asked.entries, "passed": asked.entries - stopped, "evaluations": len(asked.evaluations)}


@lru_cache(maxsize=1000)
def _pore(run: RunDir, number: int, name: str) -> float | None:
    """Pore limiting diameter in Å of a relaxed proposal; None where it was evaluated in an earlier round."""
    shard = read_round(run, number)
    key = next(entry.evaluation_id for entry in read_entries(shard) if entry.name == name)
    for plan in batches_of(shard, number):
        for place, row in enumerate(plan.members):
            if key and shard.arrays["evaluation_id"][row] == key:
                pore = from_columns(read_shard(run.result(plan.name)).arrays)[place].pld_relaxed_ang
                return pore if pore == pore else None
    return None
