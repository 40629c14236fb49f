"""The second opinion: successes relaxed again with another potential and judged by the same gates.

A policy that is rewarded by one potential may learn that potential's faults. The share of its successes that a second,
different potential also calls stable says how far they are more than that. Asking costs nothing of the budget.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from promof_hpc.config import EvaluationSettings
from promof_hpc.design.campaign.evaluated import Evaluated
from promof_hpc.design.campaign.learned import success_ids
from promof_hpc.errors import PromofError, UsageError
from promof_hpc.physics.energies import ReferenceSet, load_reference, score
from promof_hpc.physics.potential import Potential
from promof_hpc.store.results import result_shard
from promof_hpc.store.run_dir import RunDir, read_round
from promof_hpc.store.schema import Candidate, Evaluation, Outcome, Row, from_columns
from promof_hpc.store.shard import Shard, read_shard


@dataclass(frozen=True)
class SecondOpinion:
    """What a second potential says of a campaign's successes.

    Attributes:
        potential: its name, or its id once it was asked.
        weights_sha256: of its weights; empty before it was asked.
        successes: distinct evaluations that passed every gate of the campaign.
        asked: of these, how many it was asked about.
        stable: of these, how many it also calls stable.
        unscorable: of those asked about, how many it cannot score (an element, the size); they are not called stable.
        energy_judged: whether there is a reference set for it, so that energies were judged too.
    """

    potential: str
    weights_sha256: str = ""
    successes: int = 0
    asked: int = 0
    stable: int = 0
    unscorable: int = 0
    energy_judged: bool = False

    @property
    def complete(self) -> bool:
        """Whether it was asked about every success that there is."""
        return self.asked == self.successes

    @property
    def percent(self) -> float:
        """Share of the successes asked about that are stable to it as well; NaN where it was asked about none."""
        return 100.0 * self.stable / self.asked if self.asked else math.nan

    def in_words(self) -> str:
        """The opinion in a sentence without its full stop."""
        if not self.successes:
            return f"second opinion of {self.potential}: no successes to ask about"
        if not self.asked:
            return f"second opinion of {self.potential}: {self.successes} successes not asked about yet"
        text = f"second opinion of {self.potential}: {self.stable} of {self.asked} successes stable too"
        text += f" ({self.percent:.0f} %)"
        if self.unscorable:
            text += f", {self.unscorable} cannot be scored by it"
        return text if self.complete else f"{text}, {self.successes - self.asked} not asked about yet"

    def as_dict(self) -> dict[str, Any]:
        """For `--json`; the share is None where it was asked about nothing."""
        return asdict(self) | {"percent": self.percent if self.asked else None}


def require_another(second: Potential, first: Potential) -> None:
    """See to it that a second opinion is one.

    Raises:
        UsageError: both potentials are the same.
    """
    if (second.id, second.weights_sha256) == (first.id, first.weights_sha256):
        raise UsageError(
            f"second_opinion is {second.id} with the weights of the campaign's own potential, which would only repeat "
            "what it has said; name another one, or none."
        )


def not_asked_about(run: RunDir) -> list[Candidate]:
    """Successes without a second opinion: their ids and the structures that their evaluations ended with."""
    given = set(run.opinions_given())
    open_ = [key for key in success_ids(run) if key not in given]
    if not open_:
        return []
    evaluated = Evaluated(run)
    for number in run.round_numbers():
        evaluated.add(number, read_round(run, number))
    found = zip(open_, evaluated.results(open_), strict=True)
    return [Candidate(key, evaluation.structure) for key, evaluation in found if evaluation is not None]


def identity(potential: Potential, settings: EvaluationSettings) -> dict[str, str]:
    """What an opinion is made with, as its shard says it."""
    return {
        "settings_sha256": settings.digest(),
        "potential": potential.id,
        "weights_sha256": potential.weights_sha256,
    }


def opinion_shard(evaluation: Evaluation, made_with: Mapping[str, str]) -> Shard:
    """The shard of one opinion: the row and the end of a relaxation."""
    return result_shard([evaluation], evaluation.row.evaluation_id, made_with)


def require_same(run: RunDir, made_with: Mapping[str, str]) -> None:
    """See to it that all opinions of a run are of one potential.

    Raises:
        PromofError: earlier ones are of another, or of other weights.
    """
    for key in run.opinions_given()[:1]:
        _, name, weights = _read(run.opinion(key))
        if (name, weights) != (made_with["potential"], made_with["weights_sha256"]):
            raise PromofError(
                f"{run.opinions} holds opinions of {name} with weights {weights[:12]}…, now {made_with['potential']} "
                f"has {made_with['weights_sha256'][:12]}…; opinions of different weights are never mixed: install the "
                "old ones again, or remove that folder and run `promof resume` to ask about all successes anew."
            )


def read_second_opinion(run: RunDir, name: str | None) -> SecondOpinion | None:
    """The second opinion as far as it was given.

    Args:
        name: of the second potential in the campaign's configuration.

    Returns:
        None where the configuration names none.
    """
    if name is None:
        return None
    successes, given = success_ids(run), set(run.opinions_given())
    opinions = [_read(run.opinion(key)) for key in successes if key in given]
    if not opinions:
        return SecondOpinion(name, successes=len(successes))
    _, potential, weights = opinions[0]
    reference = load_reference("shipped", potential, weights)
    rows = [row for row, _, _ in opinions]
    return SecondOpinion(
        potential=potential,
        weights_sha256=weights,
        successes=len(successes),
        asked=len(rows),
        stable=count_stable(rows, reference),
        unscorable=sum(row.outcome is Outcome.REFUSED for row in rows),
        energy_judged=reference is not None,
    )


def count_stable(rows: Sequence[Row], reference: ReferenceSet | None) -> int:
    """Rows that pass the gates of stability; energies are judged only where there is a reference set."""
    from promof_hpc.design.judging.reward import stability_checks  # and with it scipy: `status` is to answer at once

    count = 0
    for row in rows:
        checks = stability_checks(score(replace(row), reference))
        count += all(passed for gate, passed in checks.items() if gate != "energy" or reference is not None)
    return count


@lru_cache(maxsize=100_000)
def _read(path: Path) -> tuple[Row, str, str]:
    """Row, potential and weights of an opinion, which never changes."""
    shard = read_shard(path)
    return from_columns(shard.arrays)[0], str(shard.attrs["potential"]), str(shard.attrs["weights_sha256"])
