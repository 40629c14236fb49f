"""Strategies `sample` and `sample_filter`: the pretrained policies as they are, without and with a choice.

`sample` is the proposing chain of `promof` that never learns. `sample_filter` lets the same chain write several times
as many component sets and proposes the assemblies that look best without any potential call: past the gate, with the
pores that are wanted (of the assembly as it is) and the least energy left by snap. Both pay for evaluations only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from promof_hpc.config import DesignConfig
from promof_hpc.design.proposing.chain import Proposing
from promof_hpc.design.strategy import Judged, Proposal, Proposals, Round
from promof_hpc.errors import Refused
from promof_hpc.physics.pores import pores
from promof_hpc.store.checkpoint import Write

OVERSAMPLING = 4
WORST_PORE_ANG = 5.0  # a pore further from the target counts as so far off
PORE_ANG_PER_SNAP_ANG2 = 1.0  # 1 Å² left by snap is as bad as a pore that is 1 Å off


class Sample:
    """The pretrained chain, unchanged from the first round to the last."""

    def __init__(self, config: DesignConfig):
        self._chain = Proposing(config)

    def propose(self, asked: Round) -> Proposals:
        """What the policies sample for the round's targets."""
        return Proposals(tuple(self._chain.propose(asked)[0]))

    def learn(self, asked: Round, proposals: Proposals, judged: Sequence[Judged]) -> dict[str, float]:
        """Nothing is learned."""
        return {}

    def save(self, folder: Path) -> Write:
        """There is no state."""
        return lambda: None

    def load(self, folder: Path) -> None:
        """There is no state."""


class SampleFilter(Sample):
    """The pretrained chain with `OVERSAMPLING` times the component sets, of which the best assemblies are proposed."""

    def __init__(self, config: DesignConfig):
        self._per_target = config.rounds.sets * config.rounds.assemblies
        rounds = config.rounds.model_copy(update={"sets": OVERSAMPLING * config.rounds.sets})
        super().__init__(config.model_copy(update={"rounds": rounds}))

    def propose(self, asked: Round) -> Proposals:
        """For every target as many as `sample` proposes, chosen from more."""
        drawn = self._chain.propose(asked)[0]
        kept: list[Proposal] = []
        for target, wanted in enumerate(asked.targets):
            own = [p for p in drawn if p.target == target]
            promise = {p.name: promise_of(p, wanted) for p in own}
            best = sorted(own, key=lambda p: promise[p.name], reverse=True)[: self._per_target]
            kept += sorted(best, key=lambda p: p.group)
        number = {group: k for k, group in enumerate(dict.fromkeys(p.group for p in kept))}
        return Proposals(tuple(replace(p, group=number[p.group]) for p in kept))


def promise_of(proposal: Proposal, wanted: Mapping[str, float]) -> tuple[float, float]:
    """How good a proposal looks before any potential call; larger is better.

    Returns:
        gate score; then minus how far the pore limiting diameter is from the wanted one in Å (where one is wanted)
        and what snap left open in Å², added up.
    """
    if proposal.refusal or proposal.structure is None:
        return proposal.gate_score, 0.0
    off = 0.0
    if "pld_ang" in wanted:
        try:
            off = min(WORST_PORE_ANG, abs(pores(proposal.structure).pld_ang - wanted["pld_ang"]))
        except Refused:
            off = WORST_PORE_ANG
    left = proposal.snap_energy_ang2
    return proposal.gate_score, -off - (PORE_ANG_PER_SNAP_ANG2 * left if left == left else 0.0)
