"""What a campaign's page tells beside the table: rewards, gates, diversity and learning over the evaluations spent."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from promof_hpc.config import AssemblySettings, DesignConfig
from promof_hpc.design.campaign.learned import LearnedRound, learned_rounds, read_learned
from promof_hpc.design.comparing.achieved import Proposed, diversity_of, read_proposed, yardstick_of
from promof_hpc.design.judging.reward import GATES
from promof_hpc.design.judging.second_opinion import SecondOpinion, read_second_opinion
from promof_hpc.store.run_dir import RunDir, read_round
from promof_hpc.store.schema import Row

GATE_WORDS = {
    "gate": "passed the geometry gate",
    "relaxed": "relaxed (forces ≤ 0.1 eV/Å)",
    "bonded": "all bonds kept",
    "volume": "volume within 20 %",
    "energy": "energy among real MOFs",
    "target": "target met: success",
}
DEAD = "dead_groups_share"  # learning signal: groups whose rewards were all alike
EARLY, LATE = 0.25, 0.75  # shares of the evaluations that count as before and after learning


@dataclass(frozen=True)
class RoundFacts:
    """One round.

    Attributes:
        evaluations: issued by the end of the round, less those that cost nothing.
        proposals, passed: of the round, and of these past the geometry gate.
        reward_mean, reward_max: of what was learned from; NaN before.
        best: highest reward by the end of the round.
        successes: by the end of the round.
        diversity: mean Tanimoto distance between the component sets evaluated in the round; NaN for fewer than two.
        signals: what the strategy reported.
    """

    number: int
    evaluations: int
    proposals: int
    passed: int
    reward_mean: float = math.nan
    reward_max: float = math.nan
    best: float = math.nan
    successes: int = 0
    diversity: float = math.nan
    signals: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class CampaignStory:
    """A campaign as its page tells it.

    Attributes:
        aim: what was looked for, in words; `assembly` how structures were put together; `strategy` by whom.
        rounds: in order.
        gates: proposals past each gate, from all proposals on, the second one the geometry gate: (words, count).
        refusals: reasons of the geometry gate and before, with counts, the commonest first.
        energies: E_rel in eV/atom of (reference MOFs, first and last quarter of the evaluations), each float64 [N].
        targets: distance from the target and E_rel of every relaxed structure, float64 [N, 2]; NaN where missing.
        property_axis: what the distance is called.
        displacements_ang: root mean square moves of the atoms by snap, of proposals that passed, float64 [N].
        dead_share: mean share of groups without a learning signal; NaN where nothing learns.
        strict: successes with the stricter margins.
        second_opinion: on the successes; None where none is asked for.
    """

    aim: str
    assembly: str
    strategy: str
    rounds: tuple[RoundFacts, ...]
    gates: tuple[tuple[str, int], ...]
    refusals: tuple[tuple[str, int], ...]
    energies: Mapping[str, np.ndarray]
    targets: np.ndarray
    property_axis: str
    displacements_ang: np.ndarray
    dead_share: float = math.nan
    strict: int = 0
    second_opinion: SecondOpinion | None = None


def collect_campaign(run: RunDir, config: DesignConfig) -> CampaignStory:
    """Read a campaign from its run directory."""
    yardstick = yardstick_of(run, config)
    proposed = read_proposed(run, yardstick)
    learned = {n: read_learned(run, n) for n in learned_rounds(run)}
    rounds = _rounds(run, proposed, learned)
    evaluated = list({p.evaluation_id: p for p in reversed(proposed) if p.evaluation is not None}.values())[::-1]
    rows = [p.evaluation.row for p in evaluated if p.evaluation is not None]
    reference = yardstick.reference
    real = [] if reference is None else [m.e_rel_ev_per_atom for m in reference.mofs]
    cut = (round(EARLY * len(rows)), round(LATE * len(rows)))
    wanted = yardstick.task.wanted()
    dead = [r.signals[DEAD] for r in rounds if DEAD in r.signals]
    return CampaignStory(
        aim=_aim(config),
        assembly=assembly_in_words(config.assembly),
        strategy=config.strategy,
        rounds=rounds,
        gates=_gates(proposed),
        refusals=tuple(Counter(p.item.refusal for p in proposed if p.item.refusal).most_common(10)),
        energies={
            "real MOFs": np.array(real, float),
            "first quarter": _energies(rows[: cut[0]]),
            "last quarter": _energies(rows[cut[1] :]),
        },
        targets=np.array([(yardstick.task.distance(r, wanted), r.e_rel_ev_per_atom) for r in rows]).reshape(-1, 2),
        property_axis="distance from the wanted pore (Å)" if config.task.name == "pore" else "E_rel (eV/atom)",
        displacements_ang=np.array([p.item.displacement_ang for p in proposed if not p.item.refusal], float),
        dead_share=float(np.mean(dead)) if dead else math.nan,
        strict=sum(p.found.strict for p in evaluated),
        second_opinion=read_second_opinion(run, config.second_opinion),
    )


def _gates(proposed: Sequence[Proposed]) -> tuple[tuple[str, int], ...]:
    counts = {name: sum(p.found.gates[name] for p in proposed) for name in GATES}
    first, *others = ((GATE_WORDS[name], count) for name, count in counts.items())
    return (
        ("proposed", len(proposed)),
        first,
        ("evaluated", sum(p.evaluation is not None for p in proposed)),  # the budget, or repeats, may keep some out
        *others,
    )


def assembly_in_words(settings: AssemblySettings) -> str:
    """Where assemblies started, whether a flow ran, and what finished them."""
    start = {
        "noise": "from noise",
        "net": "from nets of known MOFs",
        "mixed": "half from nets of known MOFs, half from noise",
    }[settings.start]
    flow = f"; flow from time {settings.start_time:g}" if settings.start != "noise" else "; flow from time 0"
    finish = "contacts closed by snap" if settings.snap else "raw, no finisher"
    return f"{start}{flow if settings.flow else '; no flow'}; {finish}"


def _aim(config: DesignConfig) -> str:
    task = config.task
    if task.name == "pore":
        return f"a pore limiting diameter of {task.pld_ang:g} ± {task.width_ang:g} Å"
    return f"new materials with an energy among the lowest {task.best_percent:g} % of real MOFs"


def _rounds(run: RunDir, proposed: Sequence[Proposed], learned: Mapping[int, LearnedRound]) -> tuple[RoundFacts, ...]:
    named = {p.item.name: p for p in proposed}
    facts, issued, successes, best = [], 0, 0, -math.inf
    for number in run.round_numbers():
        shard = read_round(run, number)
        mine = [named[str(name)] for name in shard.arrays["entry_name"]]
        free = {p.evaluation_id for p in mine if p.evaluation is not None and not p.evaluation.row.charged}
        issued += len({str(e) for e in shard.arrays["evaluation_id"]} - free)
        successes += len({p.evaluation_id for p in mine if p.found.success})
        record = learned.get(number)
        summary = record.summary() if record is not None else {}
        best = max(best, _number(summary.get("reward_max"), -math.inf))
        facts.append(
            RoundFacts(
                number=number,
                evaluations=issued,
                proposals=len(mine),
                passed=sum(p.item.gate_score >= 1.0 for p in mine),
                reward_mean=_number(summary.get("reward_mean")),
                reward_max=_number(summary.get("reward_max")),
                best=best if best > -math.inf else math.nan,
                successes=successes,
                diversity=diversity_of([p for p in mine if p.evaluation is not None]),
                signals=dict(record.signals) if record is not None else {},
            )
        )
    return tuple(facts)


def _energies(rows: Sequence[Row]) -> np.ndarray:
    return np.array([r.e_rel_ev_per_atom for r in rows], float)


def _number(value: float | None, otherwise: float = math.nan) -> float:
    return otherwise if value is None else float(value)
