"""Which of a round's proposals become evaluations: the budget cuts, and nothing is evaluated twice."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from promof_hpc.design.strategy import Proposal
from promof_hpc.errors import PromofError, Refused
from promof_hpc.store.candidates import Entry
from promof_hpc.store.schema import Candidate
from promof_hpc.structure import Structure, canonical

Identify = Callable[[Structure], str]
"""The evaluation id of a structure. Raises `Refused` where the potential cannot score it."""


class IssueReason(StrEnum):
    """Why a proposal that passed the gate is not evaluated."""

    OVER_BUDGET = "over_budget"
    NOT_A_NUMBER = "not_a_number"
    NO_STRUCTURE = "no_structure"


@dataclass(frozen=True)
class Issue:
    """What a round asks the farm for.

    Attributes:
        entries: one a proposal, in their order: the id of its evaluation, or why there is none.
        candidates: the evaluations that are new, in the order of the proposals.
    """

    entries: tuple[Entry, ...]
    candidates: tuple[Candidate, ...]


def issue(items: Sequence[Proposal], identify: Identify, issued: Container[str], room: int) -> Issue:
    """Cut proposals to the room that the budget leaves.

    Whole groups first, in their order; what then is left goes to the first members of the group that does not fit.
    A structure with an evaluation in `issued`, or proposed twice, shares it and takes no room.

    Raises:
        PromofError: two proposals have one name.
    """
    _require_own_names(items)
    admitted = [_admit(item, identify) for item in items]
    fresh = [entry.evaluation_id not in issued and bool(entry.evaluation_id) for entry, _ in admitted]
    groups: dict[int, list[int]] = {}
    for k, item in enumerate(items):
        groups.setdefault(item.group, []).append(k)
    taken: set[str] = set()
    for members in groups.values():
        wanted = {admitted[k][0].evaluation_id for k in members if fresh[k]} - taken
        if len(taken) + len(wanted) <= room:
            taken |= wanted
    candidates: dict[str, Candidate] = {}
    entries = []
    for k, (entry, structure) in enumerate(admitted):
        key = entry.evaluation_id
        if fresh[k] and key not in taken and len(taken) < room:
            taken.add(key)
        if fresh[k] and key not in taken:
            detail = "the budget was used up before this proposal"
            entries.append(Entry(entry.name, "", IssueReason.OVER_BUDGET, detail))
            continue
        entries.append(entry)
        if fresh[k] and structure is not None:
            candidates.setdefault(key, Candidate(key, structure))
    return Issue(tuple(entries), tuple(candidates.values()))


def cut_groups(items: Sequence[Proposal]) -> set[int]:
    """Groups that the budget did not let through whole: what there is of them is not learned from."""
    return {item.group for item in items if item.refusal == IssueReason.OVER_BUDGET}


def with_entry(item: Proposal, entry: Entry, structure: Structure | None) -> Proposal:
    """A proposal as it was issued."""
    return replace(item, structure=structure, refusal=entry.refusal, detail=entry.detail)


def _admit(item: Proposal, identify: Identify) -> tuple[Entry, Structure | None]:
    """Entry and canonical structure of a proposal; the id is empty where it is refused."""
    if item.refusal:
        return Entry(item.name, "", item.refusal, item.detail), None
    if item.structure is None:
        return Entry(item.name, "", IssueReason.NO_STRUCTURE, "the strategy gave neither structure nor reason"), None
    try:
        structure = canonical(item.structure)
        return Entry(item.name, identify(structure)), structure
    except Refused as refusal:
        return Entry(item.name, "", str(refusal.reason), refusal.detail), None
    except ValueError as error:
        return Entry(item.name, "", IssueReason.NOT_A_NUMBER, str(error)), None


def _require_own_names(items: Sequence[Proposal]) -> None:
    names = [item.name for item in items]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise PromofError(f"The strategy gave two proposals of one round the name '{twice}'; each needs its own.")
