"""What was made of a round: how each proposal was judged, and the strategy's learning signals; a JSON file a round."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any

import numpy as np

from promof_hpc.design.strategy import Judged
from promof_hpc.store.candidates import read_entries
from promof_hpc.store.run_dir import RunDir, read_round
from promof_hpc.store.shard import list_names, publish_text

COLUMNS = tuple(f.name for f in fields(Judged))


@dataclass(frozen=True)
class LearnedRound:
    """A round that has been learned from.

    Attributes:
        number: of the round.
        names: of its proposals.
        judged: what became of each, in the same order.
        used: whether it was learned from; not so in a group that the budget cut.
        signals: what the strategy reported.
    """

    number: int
    names: tuple[str, ...]
    judged: tuple[Judged, ...]
    used: tuple[bool, ...]
    signals: Mapping[str, float]

    @property
    def best(self) -> int | None:
        """Row of the highest reward; None where nothing has one."""
        rewards = np.array([j.reward for j in self.judged], np.float64)
        return int(np.nanargmax(rewards)) if np.isfinite(rewards).any() else None

    def summary(self) -> dict[str, Any]:
        """Rewards and counts of the round."""
        rewards = np.array([j.reward for j, used in zip(self.judged, self.used, strict=True) if used], np.float64)
        rewards = rewards[np.isfinite(rewards)]
        some = len(rewards) > 0
        return {
            "rewards": len(rewards),
            "reward_mean": float(rewards.mean()) if some else None,
            "reward_std": float(rewards.std()) if some else None,
            "reward_max": float(rewards.max()) if some else None,
            "stable": sum(j.stable for j in self.judged),
            "successes": sum(j.success for j in self.judged),
        }


def masked(judged: Sequence[Judged], used: Sequence[bool]) -> list[Judged]:
    """Judgements as the strategy gets them: no reward where nothing may be learned."""
    return [j if ok else replace(j, reward=math.nan) for j, ok in zip(judged, used, strict=True)]


def publish_learned(run: RunDir, learned: LearnedRound) -> bool:
    """Write a round's record, if it is not there yet."""
    table = {name: [_storable(getattr(j, name)) for j in learned.judged] for name in COLUMNS}
    signals = {name: _storable(value) for name, value in learned.signals.items()}
    content = {"round": learned.number, "signals": signals, **learned.summary()}
    proposals = {"names": learned.names, "used": learned.used, "judged": table}
    return publish_text(run.learned(learned.number), json.dumps(content | proposals))


def read_learned(run: RunDir, number: int) -> LearnedRound:
    """A round's record."""
    content = json.loads(run.learned(number).read_text(encoding="utf-8"))
    table = {name: [math.nan if cell is None else cell for cell in content["judged"][name]] for name in COLUMNS}
    judged = tuple(_judged(dict(zip(table, row, strict=True))) for row in zip(*table.values(), strict=True))
    signals = {name: math.nan if value is None else value for name, value in content["signals"].items()}
    return LearnedRound(number, tuple(content["names"]), judged, tuple(content["used"]), signals)


def learned_rounds(run: RunDir) -> list[int]:
    """Rounds that have been learned from, ascending."""
    return [n for n in run.round_numbers() if run.learned(n).name in list_names(run.round(n))]


def success_ids(run: RunDir) -> list[str]:
    """Evaluations that passed every gate in the rounds learned from, each once, in their order."""
    return list(dict.fromkeys(key for number in learned_rounds(run) for key in _success_ids(run, number)))


@lru_cache(maxsize=100_000)
def _success_ids(run: RunDir, number: int) -> tuple[str, ...]:
    """Of one round; what was learned of it never changes."""
    judged = read_learned(run, number).judged
    if not any(j.success for j in judged):
        return ()
    entries = read_entries(read_round(run, number))
    return tuple(e.evaluation_id for e, j in zip(entries, judged, strict=True) if j.success)


def _judged(cells: dict[str, Any]) -> Judged:
    return Judged(**cells)


def _storable(value: float | bool) -> float | bool | None:
    if isinstance(value, bool | np.bool_):
        return bool(value)
    return float(value) if math.isfinite(value) else None
