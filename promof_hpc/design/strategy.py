"""What every compared system is: a strategy proposes structures and learns from their rewards; nothing else differs.

Budget, gate, scorer, reward, metrics and ledger belong to the campaign and are the same for all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from promof_hpc.store.checkpoint import Write
from promof_hpc.store.shard import Column
from promof_hpc.structure import Structure

NOT_A_NUMBER = float("nan")


@dataclass(frozen=True)
class Proposal:
    """One proposed structure, or the reason why there is none.

    Attributes:
        name: unique in the run: `r00003-s01-a05` (round, component set, assembly).
        group: number of its component set in the round; proposals of one group are learned from together.
        target: number of its target in the round; groups of one target are compared.
        sequence: the component set as text; empty where the strategy knows none.
        structure: what is to be evaluated; None where it was refused.
        refusal: typed reason; empty where it passed the gate.
        detail: the reason in words.
        gate_score: 1 where it passed, else in [0, 0.95], how far it came.
        start: where the assembly came from: `net:KEY`, `noise`, `file`, ...
        misfit: of the net start; NaN without one.
        snap_energy_ang2: what snap could not close, in Å²; NaN without snap.
        displacement_ang: root mean square move of the atoms by snap, in Å; NaN without snap.
    """

    name: str
    group: int
    target: int
    sequence: str
    structure: Structure | None
    refusal: str = ""
    detail: str = ""
    gate_score: float = 1.0
    start: str = ""
    misfit: float = NOT_A_NUMBER
    snap_energy_ang2: float = NOT_A_NUMBER
    displacement_ang: float = NOT_A_NUMBER


@dataclass(frozen=True)
class Proposals:
    """Everything that a round proposes.

    Attributes:
        items: the proposals; members of a group stand together.
        trace: whatever the strategy needs to learn from them later (tokens, stored actions, log-probs), as columns of
            the round's shard; after a restart it comes back as it was.
    """

    items: tuple[Proposal, ...]
    trace: Mapping[str, Column] = field(default_factory=dict)


@dataclass(frozen=True)
class Round:
    """What a strategy is asked for.

    Attributes:
        number: of the round, from 0.
        seed: of the run.
        room: evaluations that the budget still allows; a strategy may propose more, the campaign cuts.
        spent: evaluations issued before this round, less those known to have cost nothing.
        targets: what is wanted, by property (as `policy.conditions.NAMES`), one mapping a target.
    """

    number: int
    seed: int
    room: int
    spent: int
    targets: Sequence[Mapping[str, float]]

    def generator(self, purpose: str, *numbers: int) -> np.random.Generator:
        """Random numbers of this round for one purpose; never from global state, the same after a restart."""
        words = [self.seed, self.number, *numbers, *purpose.encode()]
        return np.random.default_rng(np.random.SeedSequence(words))


@dataclass(frozen=True)
class Judged:
    """What became of one proposal.

    Attributes:
        reward: the reward; NaN where it is not learned from (cut off by the budget).
        stability: its stability part without weight; NaN where there is none.
        property: its property part without weight; NaN where there is none.
        stable: relaxed, bonded as at the gate, and low enough in energy.
        success: stable and the target met.
    """

    reward: float
    stability: float = NOT_A_NUMBER
    property: float = NOT_A_NUMBER
    stable: bool = False
    success: bool = False


class Strategy(Protocol):
    """A system under comparison."""

    def propose(self, asked: Round) -> Proposals:
        """Structures for a round. The same state and round always give the same proposals."""
        ...

    def learn(self, asked: Round, proposals: Proposals, judged: Sequence[Judged]) -> dict[str, float]:
        """Take in what became of a round's proposals, in their order; returns learning signals for the report."""
        ...

    def save(self, folder: Path) -> Write:
        """Copy everything that the next round depends on; returns what writes the copy into `folder`, which is empty.

        The next round may begin before, or while, the copy is written by another thread.
        """
        ...

    def load(self, folder: Path) -> None:
        """Go on from what `save` and its return value wrote."""
        ...
