"""How a campaign identifies, aims and judges, the same for every strategy: evaluation ids, targets, rewards."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from promof_hpc.config import DesignConfig
from promof_hpc.design.judging.reward import Repeats, Yardstick, judge
from promof_hpc.design.judging.tasks import targets
from promof_hpc.design.strategy import Judged, Proposal, Round
from promof_hpc.errors import UsageError
from promof_hpc.physics.energies import ReferenceSet, load_reference
from promof_hpc.physics.evaluate import evaluation_id, refuse_unscorable
from promof_hpc.physics.potential import Potential
from promof_hpc.store.schema import Evaluation
from promof_hpc.structure import Structure


@dataclass
class Scoring:
    """What stands between strategies and numbers.

    Attributes:
        config: of the run.
        potential: for its identity; it computes nothing here.
        reference: of the potential; None where stability does not count.
        known: component sets of known MOFs, for tasks that ask for new ones.
        repeats: what earlier rounds evaluated; counted only where duplicates cost.
    """

    config: DesignConfig
    potential: Potential
    reference: ReferenceSet | None
    known: Collection[str] = frozenset()
    repeats: Repeats = field(default_factory=Repeats)

    def __post_init__(self) -> None:
        self._yardstick = Yardstick.of(self.config, self.reference, self.known)

    def identify(self, structure: Structure) -> str:
        """Evaluation id of a canonical structure.

        Raises:
            Refused: the potential cannot score it, so that it would be no evaluation.
        """
        refuse_unscorable(structure, self.config.evaluation, self.potential)
        return evaluation_id(structure, self.potential, self.config.evaluation)

    def targets(self, number: int) -> list[dict[str, float]]:
        """What a round is to look for, drawn from the run's seed and its number."""
        generator = Round(number, self.config.seed, 0, 0, ()).generator("targets")
        return targets(self._yardstick.task, self.config.rounds.targets, self.config.assembly.atom_cap, generator)

    def judge(
        self, asked: Round, proposals: Sequence[Proposal], evaluations: Sequence[Evaluation | None]
    ) -> list[Judged]:
        """What the proposals of a round are worth; later rounds are judged with these materials in mind."""
        counted = self.repeats if self.remembers else None
        judged = judge(asked, proposals, evaluations, self._yardstick, counted)
        if self.remembers:
            self.remember(evaluations)
        return judged

    @property
    def remembers(self) -> bool:
        """See `campaign.loop.Scorer`: duplicates cost."""
        return self.config.reward.duplicate_cost > 0

    def remember(self, evaluations: Sequence[Evaluation | None]) -> None:
        """Count the materials of a round that was judged before a restart."""
        self.repeats.add(evaluations)


def reference_of(config: DesignConfig, potential: Potential) -> ReferenceSet | None:
    """The reference set that rewards are measured with.

    Raises:
        UsageError: stability counts and there is none for this potential.
    """
    found = load_reference(config.reference, potential.id, potential.weights_sha256)
    if found is None and config.reward.stability_weight > 0:
        raise UsageError(
            f"No reference set for {potential.id} with weights {potential.weights_sha256[:12]}…: the stability reward "
            "needs one. Make it with `promof reference build --set evaluation.potential.name="
            f"{config.evaluation.potential.name}` and set reference to its file, or set reward.stability_weight=0."
        )
    return found


def known_sets(config: DesignConfig) -> frozenset[str]:
    """Component sets of the training MOFs, where the task asks for new ones.

    Raises:
        UsageError: the training set is not there.
    """
    return _sequences(config.policy.data) if config.task.name == "energy" else frozenset()


@lru_cache(maxsize=4)
def _sequences(data: str) -> frozenset[str]:
    """Read once a process: a study asks for every run."""
    from promof_hpc.design.libraries import Libraries

    return frozenset(Libraries.read(data).sequences)
