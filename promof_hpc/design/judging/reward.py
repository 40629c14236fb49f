"""Rewards: what became of a proposal, gate by gate, and the number that is learned from.

    R = w_stability * -log(max(E - E_min, delta)) + w_property * R_property - costs

E is eV/atom of one potential against its reference set; E_min lies below the lowest reference MOF, where the logarithm
diverges. Failures get a floor, rejects of the gate less, graded by how far off they are, so that they teach as well.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from promof_hpc.config import DesignConfig, RewardSettings
from promof_hpc.design.campaign.issuing import IssueReason
from promof_hpc.design.judging.metrics import Materials
from promof_hpc.design.judging.tasks import Target, Task, task_of
from promof_hpc.design.strategy import NOT_A_NUMBER, Judged, Proposal, Round
from promof_hpc.physics.energies import BELOW_LOWEST_EV, ReferenceSet, e_form, score
from promof_hpc.store.schema import Evaluation, Outcome, Row

LEAST_DISTANCE_EV = 0.01  # delta: what lies nearer to E_min earns no more
REJECT_DEPTH = 2.0  # rejects of the gate lie up to this far below the floor
STABLE_FMAX = 0.1  # eV/Å
STABLE_VOLUME_CHANGE = 0.2
STABLE_PERCENTILE = 90.0
STRICT_PERCENTILE = 10.0
RELAXED = frozenset({Outcome.CONVERGED, Outcome.MAX_STEPS})
NOT_CHARGED = frozenset({Outcome.REFUSED, Outcome.FILTERED})
GATES = ("gate", "relaxed", "bonded", "volume", "energy", "target")
"""What a proposal must pass, in order; all of them is success, all but the last is stable."""


@dataclass(frozen=True)
class Yardstick:
    """What results are measured with, the same for every strategy of a comparison.

    Attributes:
        settings: weights, floor and costs.
        task: what is looked for.
        reference: of the campaign's potential; None where stability does not count.
        known: component sets of known MOFs as text.
        relax_sha256: digest of the run's relaxation settings, which may differ from the reference set's.
    """

    settings: RewardSettings
    task: Task
    reference: ReferenceSet | None
    known: Collection[str] = frozenset()
    relax_sha256: str = ""

    @classmethod
    def of(
        cls, config: DesignConfig, reference: ReferenceSet | None, known: Collection[str] = frozenset()
    ) -> Yardstick:
        """The yardstick of a run."""
        relax = config.evaluation.relax.digest()
        return cls(config.reward, task_of(config.task, reference), reference, known, relax)

    def scored(self, evaluation: Evaluation | None) -> Row | None:
        """The row of an evaluation with its derived energies; `energy_note` says where the reference differs."""
        return None if evaluation is None else score(replace(evaluation.row), self.reference, self.relax_sha256)

    @property
    def lowest_ev_per_atom(self) -> float:
        """E_min of the energy that is judged."""
        if self.reference is None:
            return NOT_A_NUMBER
        if self.settings.energy == "e_rel":
            return self.reference.e_min_ev_per_atom
        elemental = self.reference.elemental_ev_per_atom
        cells = [(m.counts, m.energy_ev_per_atom * sum(m.counts.values())) for m in self.reference.mofs]
        return min(e_form(n, energy, elemental) for n, energy in cells if set(n) <= set(elemental)) - BELOW_LOWEST_EV


@dataclass(frozen=True)
class Passed:
    """Which gates a proposal passed, and the stricter variant of success.

    Attributes:
        gates: by name of `GATES`; a gate after a failed one is False.
        strict: success, and below the reference set's 10th percentile in energy and within its 10th to 90th in volume
            change.
    """

    gates: Mapping[str, bool]
    strict: bool = False

    @property
    def stable(self) -> bool:
        """Everything but the target."""
        return all(self.gates[name] for name in GATES[:-1])

    @property
    def success(self) -> bool:
        """Everything."""
        return all(self.gates.values())


@dataclass
class Repeats:
    """How often each material was evaluated in earlier rounds; members of one round do not count against each other.

    Attributes:
        materials: as `design.judging.metrics` tells them apart, by their relaxed structures.
        seen: evaluations of each.
    """

    materials: Materials = field(default_factory=Materials)
    seen: Counter[int] = field(default_factory=Counter)

    def before(self, evaluation: Evaluation) -> int:
        """Earlier evaluations of the same material; 0 of what did not end relaxed."""
        if evaluation.row.outcome not in RELAXED:
            return 0
        return self.seen[self.materials.number(evaluation.structure)]

    def add(self, evaluations: Iterable[Evaluation | None]) -> None:
        """Remember what a round evaluated; proposals that share an evaluation count as one."""
        relaxed = {e.row.evaluation_id: e for e in evaluations if e is not None and e.row.outcome in RELAXED}
        self.seen.update(self.materials.number(e.structure) for e in relaxed.values())


def passed(proposal: Proposal, row: Row | None, target: Target, yardstick: Yardstick) -> Passed:
    """Go through the gates of one proposal.

    Args:
        row: its evaluation with derived energies (`physics.energies.score`); None where there is none.
        target: what its set was written for.
    """
    if proposal.refusal or row is None:
        return Passed({name: name == "gate" and proposal.gate_score >= 1.0 for name in GATES})
    new = proposal.sequence not in yardstick.known
    met = yardstick.task.met(row, target, new=new)
    checks = {"gate": row.outcome not in NOT_CHARGED, **stability_checks(row), "target": met}
    so_far = True
    for name in GATES:
        so_far = checks[name] = so_far and bool(checks[name])
    return Passed(checks, so_far and _strict(row, yardstick.reference))


def stability_checks(row: Row) -> dict[str, bool]:
    """The gates between the geometry gate and the target, in order, each for itself.

    Args:
        row: an evaluation with derived energies.
    """
    return {
        "relaxed": row.outcome in RELAXED and row.fmax_ev_per_ang <= STABLE_FMAX,
        "bonded": row.bonds_broken == 0,
        "volume": abs(row.volume_change) <= STABLE_VOLUME_CHANGE,
        "energy": row.e_rel_percentile < STABLE_PERCENTILE,  # NaN, so False, without baseline or reference
    }


def judge(
    asked: Round,
    proposals: Sequence[Proposal],
    evaluations: Sequence[Evaluation | None],
    yardstick: Yardstick,
    repeats: Repeats | None = None,
) -> list[Judged]:
    """Rewards of a round.

    Args:
        asked: its targets are those that the proposals' sets were written for.
        proposals: in their order.
        evaluations: of each; None where it was refused or cut off by the budget.
        repeats: of earlier rounds; None where duplicates cost nothing.
    """
    lowest = yardstick.lowest_ev_per_atom
    judged = []
    for proposal, evaluation in zip(proposals, evaluations, strict=True):
        row, target = yardstick.scored(evaluation), asked.targets[proposal.target]
        found = passed(proposal, row, target, yardstick)
        before = repeats.before(evaluation) if repeats is not None and evaluation is not None else 0
        reward, low, prop = _reward(proposal, row, target, yardstick, lowest, before)
        judged.append(Judged(reward, low, prop, found.stable, found.success))
    return judged


def stability(energy_ev_per_atom: float, lowest_ev_per_atom: float) -> float:
    """-log of the distance from E_min in eV/atom, at most -log(0.01); NaN where an energy is missing."""
    if math.isnan(energy_ev_per_atom) or math.isnan(lowest_ev_per_atom):
        return NOT_A_NUMBER
    return -math.log(max(energy_ev_per_atom - lowest_ev_per_atom, LEAST_DISTANCE_EV))


def _reward(
    proposal: Proposal, row: Row | None, target: Target, yardstick: Yardstick, lowest: float, before: int
) -> tuple[float, float, float]:
    """Reward, stability part and property part of one proposal."""
    settings = yardstick.settings
    if proposal.refusal and proposal.refusal != IssueReason.OVER_BUDGET and proposal.gate_score < 1.0:
        return settings.floor - REJECT_DEPTH * (1.0 - proposal.gate_score), NOT_A_NUMBER, NOT_A_NUMBER
    if row is None and proposal.refusal in ("", IssueReason.OVER_BUDGET):
        return NOT_A_NUMBER, NOT_A_NUMBER, NOT_A_NUMBER
    if row is None or row.outcome in NOT_CHARGED:  # it cannot be scored: as far off as a set that cannot be built
        return settings.floor - REJECT_DEPTH, NOT_A_NUMBER, NOT_A_NUMBER
    if row.outcome not in RELAXED:
        return settings.floor, NOT_A_NUMBER, NOT_A_NUMBER
    energy = row.e_rel_ev_per_atom if settings.energy == "e_rel" else row.e_form_ev_per_atom
    low, prop = stability(energy, lowest), yardstick.task.reward(row, target)
    if math.isnan(low) and settings.stability_weight > 0:
        return settings.floor, NOT_A_NUMBER, prop
    total = settings.property_weight * prop + (settings.stability_weight * low if settings.stability_weight else 0.0)
    return max(settings.floor, total - _costs(proposal, settings, before)), low, prop


def _costs(proposal: Proposal, settings: RewardSettings, before: int) -> float:
    """What snap's help and repetition cost."""
    moved = 0.0 if math.isnan(proposal.displacement_ang) else proposal.displacement_ang
    repeated = max(0, before + 1 - settings.duplicate_bucket)
    return settings.displacement_cost_per_ang * moved + settings.duplicate_cost * repeated


def _strict(row: Row, reference: ReferenceSet | None) -> bool:
    """The stricter variant's margins."""
    if reference is None:
        return False
    drift = reference.volume_drift_percentiles
    return row.e_rel_percentile < STRICT_PERCENTILE and drift["p10"] <= row.volume_change <= drift["p90"]
