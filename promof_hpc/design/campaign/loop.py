"""The campaign: a strategy proposes rounds, the farm evaluates them, and the strategy learns, under one exact budget.

    propose -> cut to the budget -> candidates -> (farm) results -> seal -> judge -> learn -> checkpoint -> next round

Everything that the loop has decided lies in the run directory before the next step begins. What is there already is
never done again, so a campaign that was killed at any moment goes on as if nothing had been. Round r is proposed by
exactly the policy that has learned from the rounds up to r - 1 - lookahead, and its room is what the budget leaves by
what those rounds say: an evaluation that ended before the potential is known to have cost nothing once its round has
been learned from. Where they leave no room, the round waits for one more to be learned from, until there is some.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from promof_hpc.config import DesignConfig
from promof_hpc.design.campaign.evaluated import Evaluated
from promof_hpc.design.campaign.issuing import cut_groups, issue
from promof_hpc.design.campaign.keeping import Keeper, Kept
from promof_hpc.design.campaign.learned import LearnedRound, masked, publish_learned
from promof_hpc.design.campaign.proposal_shard import proposal_shard, read_asked, read_proposals
from promof_hpc.design.strategy import Judged, Proposal, Round, Strategy
from promof_hpc.errors import PromofError
from promof_hpc.store.candidates import cut_batches
from promof_hpc.store.checkpoint import newest_checkpoint, sweep_checkpoints
from promof_hpc.store.results import seal
from promof_hpc.store.run_dir import RunDir, read_round
from promof_hpc.store.schema import Evaluation
from promof_hpc.store.shard import Shard, write_shard
from promof_hpc.structure import Structure


class Ending(StrEnum):
    """Why a campaign proposes no more."""

    SPENT = "the budget is spent"
    PROPOSAL_CAP = "the cap on proposals was reached before the budget was spent"
    NOTHING_LEFT = "the strategy has nothing more to propose"


class Phase(StrEnum):
    """What a campaign is about to do with a round; it can be stopped before each."""

    PROPOSE = "proposing"
    EVALUATE = "evaluating"
    LEARN = "learning"


class Scorer(Protocol):
    """What is the same for every strategy; `design.judging.scoring` makes the real one."""

    def identify(self, structure: Structure) -> str:
        """Evaluation id of a structure; raises `Refused` where the potential cannot score it."""
        ...

    def targets(self, number: int) -> Sequence[Mapping[str, float]]:
        """What a round is to look for; the same whenever it is asked."""
        ...

    def judge(
        self, asked: Round, proposals: Sequence[Proposal], evaluations: Sequence[Evaluation | None]
    ) -> list[Judged]:
        """What the proposals are worth, in their order; None stands where there was no evaluation."""
        ...

    @property
    def remembers(self) -> bool:
        """Whether earlier rounds matter to it; reading them again takes a restart time."""
        ...

    def remember(self, evaluations: Sequence[Evaluation | None]) -> None:
        """Take notice of a round that was judged before a restart."""
        ...


@dataclass(frozen=True)
class Hands:
    """What a campaign has others do.

    Attributes:
        wait: given a round and its batches, returns once all have results; raises what stops the campaign.
        safe_point: told what comes next and for which round; raises what stops the campaign.
        tell: told what a person should know.
        kept: told of checkpoints.
        between_deaths_s: mean time between preemptions; None where not known, and then every round is kept.
    """

    wait: Callable[[int, Collection[str]], None]
    safe_point: Callable[[Phase, int], None] = lambda phase, number: None
    tell: Callable[[str], None] = lambda text: None
    kept: Callable[[Kept], None] = lambda kept: None
    between_deaths_s: float | None = None


@dataclass
class Campaign:
    """A campaign in its run directory.

    Attributes:
        config: with the budget as it now is.
        strategy: in its first state.
        learned: rounds that the strategy has learned from.
        proposed: rounds that have candidates.
        proposals: how many proposals they hold.
        settled: rounds that must have been learned from before another is proposed: those from before the budget was
            last raised, whatever checkpoint a restart finds.
        given_back: evaluations of learned rounds that were not charged.
    """

    run: RunDir
    config: DesignConfig
    strategy: Strategy
    scorer: Scorer
    hands: Hands
    learned: int = 0
    proposed: int = 0
    proposals: int = 0
    settled: int = 0
    given_back: int = 0
    evaluated: Evaluated = field(init=False)
    keeper: Keeper = field(init=False)
    _dry: bool = False

    def __post_init__(self) -> None:
        self.evaluated = Evaluated(self.run)
        self.keeper = Keeper(self.run, self.strategy.save, self.hands.between_deaths_s, self.hands.kept)
        for number in self.run.round_numbers():
            self._take_in(number, read_round(self.run, number))

    def pursue(self) -> Ending:
        """Go on until there is nothing more to propose and every round has been learned from."""
        self._restore()
        try:
            ending = self._pursue()
            self.keeper.keep()
            return ending
        finally:
            self.keeper.wait()

    def _pursue(self) -> Ending:
        while True:
            ending = self._why_no_more()
            while ending is None and self._may_propose():
                self._propose()
                ending = self._why_no_more()
            if ending is not None and self.learned == self.proposed:
                return ending
            self._learn()

    @property
    def spent(self) -> int:
        """Evaluations that count against the budget: all that were issued, less those known to have cost nothing."""
        return len(self.evaluated) - self.given_back

    @property
    def room(self) -> int:
        """Evaluations that the budget still allows."""
        return (self.config.budget or 0) - self.spent

    def _may_propose(self) -> bool:
        """Whether the rounds that the next one must know of have been learned from."""
        return self.learned >= max(self.proposed - self.config.rounds.lookahead, self.settled)

    def _why_no_more(self) -> Ending | None:
        if self.room <= 0:
            return Ending.SPENT
        if self._dry:
            return Ending.NOTHING_LEFT
        cap = self.config.rounds.proposals_per_evaluation * (self.config.budget or 0)
        return Ending.PROPOSAL_CAP if self.proposals >= cap else None

    def _restore(self) -> None:
        """Take up the newest state that can be used; rounds after it are learned from again, in the same way."""
        sweep_checkpoints(self.run)
        found = newest_checkpoint(self.run)
        for problem in found.skipped:
            self.hands.tell(f"A checkpoint cannot be used, an earlier one is: {problem}.")
        if found.folder is None:
            return
        if found.number > self.proposed:
            raise PromofError(
                f"{self.run.path} has a checkpoint of {found.number} rounds but candidates of {self.proposed}; "
                f"restore the missing folders in {self.run.rounds}, or begin another run."
            )
        self.strategy.load(found.folder)
        self.given_back = 0
        for number in range(found.number):
            self._wait(number)  # complete, unless somebody removed a damaged result
            self.given_back += self.evaluated.uncharged(number)
            if self.scorer.remembers:
                self.scorer.remember(self.evaluated.results(_ids(read_round(self.run, number))))
        self.learned = found.number

    def _propose(self) -> None:
        number = self.proposed
        self._safe_point(Phase.PROPOSE, number)
        asked = Round(number, self.config.seed, self.room, self.spent, self.scorer.targets(number))
        proposals = self.strategy.propose(asked)
        issued = issue(proposals.items, self.scorer.identify, self.evaluated, self.room)
        sizes = [len(c.structure) for c in issued.candidates]
        batches = cut_batches(sizes, self.config.farm.batch_structures, self.config.farm.batch_atoms)
        attrs = {"strategy": self.config.strategy}
        self.run.make_round(number)
        write_shard(self.run.candidates(number), proposal_shard(asked, proposals, issued, batches, attrs))
        self._take_in(number, read_round(self.run, number))

    def _learn(self) -> None:
        """Judge a round and learn from it; strategy and judge see what is stored, never what was in memory."""
        number = self.learned
        self._safe_point(Phase.EVALUATE, number)
        self._wait(number)
        seal(self.run, number)
        self._safe_point(Phase.LEARN, number)
        shard = read_round(self.run, number)
        asked = read_asked(shard, self.scorer.targets(number))
        proposals = read_proposals(shard, self.evaluated.structure)
        judged = self.scorer.judge(asked, proposals.items, self.evaluated.results(_ids(shard)))
        cut = cut_groups(proposals.items)
        used = tuple(p.group not in cut for p in proposals.items)
        # a round without proposals, the last of a strategy that has no more, has nothing to teach
        signals = self.strategy.learn(asked, proposals, masked(judged, used)) if proposals.items else {}
        names = tuple(p.name for p in proposals.items)
        publish_learned(self.run, LearnedRound(number, names, tuple(judged), used, signals))
        self.keeper.offer(number + 1)
        self.given_back += self.evaluated.uncharged(number)
        self.learned = number + 1

    def _safe_point(self, phase: Phase, number: int) -> None:
        with self._whole():
            self.hands.safe_point(phase, number)

    def _wait(self, number: int) -> None:
        with self._whole():
            self.hands.wait(number, self.evaluated.batches(number))

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """Where the state is whole, it is kept before what stops the campaign goes on its way."""
        try:
            yield
        except BaseException:
            self.keeper.keep()
            raise

    def _take_in(self, number: int, shard: Shard) -> None:
        """Count a round that has its candidates."""
        if number != self.proposed:
            raise PromofError(
                f"{self.run.path} has no round {self.proposed} but a round {number}; restore the missing folder in "
                f"{self.run.rounds}, or begin another run."
            )
        self.evaluated.add(number, shard)
        count = len(shard.arrays["entry_name"])
        self.proposed += 1
        self.proposals += count
        self._dry = count == 0


def _ids(shard: Shard) -> list[str]:
    """Evaluation id of every proposal; empty where there is none."""
    return [str(e) for e in shard.arrays["entry_evaluation_id"]]
