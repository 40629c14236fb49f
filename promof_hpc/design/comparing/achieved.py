"""What a campaign has achieved, read from its run directory alone: gates, successes, Top-1, diversity, cost."""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from promof_hpc.chem.fingerprint import Fingerprint, fingerprint
from promof_hpc.chem.sequence import parse_sequence
from promof_hpc.config import DesignConfig, dump_config
from promof_hpc.config.study import task_name
from promof_hpc.design.campaign.evaluated import Evaluated
from promof_hpc.design.campaign.proposal_shard import read_proposals
from promof_hpc.design.comparing.study import RunFigures
from promof_hpc.design.judging.metrics import diversity, materials
from promof_hpc.design.judging.reward import GATES, Passed, Yardstick, passed
from promof_hpc.design.judging.scoring import known_sets
from promof_hpc.design.judging.second_opinion import read_second_opinion
from promof_hpc.design.strategy import Proposal
from promof_hpc.errors import Refused
from promof_hpc.physics.energies import load_reference
from promof_hpc.store.events import read_events
from promof_hpc.store.results import read_results
from promof_hpc.store.run_dir import RunDir, has_ended, read_round
from promof_hpc.store.schema import Evaluation


@dataclass(frozen=True)
class Proposed:
    """A proposal with what became of it.

    Attributes:
        item: as it was issued.
        evaluation_id: empty where it was not evaluated.
        evaluation: its row has derived energies; None where there is no result (yet).
        found: the gates that it passed.
    """

    item: Proposal
    evaluation_id: str
    evaluation: Evaluation | None
    found: Passed


def yardstick_of(run: RunDir, config: DesignConfig) -> Yardstick:
    """The yardstick that a run was judged with.

    Raises:
        UsageError: the task asks for new sets, and the training set that knows them is not there.
    """
    potential = run.provenance_record()["potential"]
    reference = load_reference(config.reference, potential["id"], potential["weights_sha256"])
    return Yardstick.of(config, reference, known_sets(config))


def read_proposed(run: RunDir, yardstick: Yardstick) -> list[Proposed]:
    """Every proposal of a campaign, in order."""
    results = {e.row.evaluation_id: e for e in read_results(run)}
    scored = {key: yardstick.scored(e) for key, e in results.items()}
    target, evaluated, everything = yardstick.task.wanted(), Evaluated(run), []
    for number in run.round_numbers():
        shard = read_round(run, number)
        evaluated.add(number, shard)
        ids = [str(e) for e in shard.arrays["entry_evaluation_id"]]
        for item, key in zip(read_proposals(shard, evaluated.structure).items, ids, strict=True):
            row = scored.get(key)
            evaluation = None if row is None else Evaluation(row, results[key].structure)
            everything.append(Proposed(item, key, evaluation, passed(item, row, target, yardstick)))
    return everything


def run_figures(run: RunDir, config: DesignConfig, strategy: str, path: str) -> RunFigures:
    """The figures of one run of a study.

    Args:
        config: of the run.
        strategy: as the study calls it.
        path: of the run, relative to the study.
    """
    yardstick, record = yardstick_of(run, config), run.provenance_record()
    proposed = read_proposed(run, yardstick)
    distinct = {p.evaluation_id: p for p in reversed(proposed) if p.evaluation is not None}
    judged = [distinct[key] for key in dict.fromkeys(p.evaluation_id for p in proposed) if key in distinct]
    charged = [p for p in judged if p.evaluation is not None and p.evaluation.row.charged]
    stable = [p for p in charged if p.found.stable]
    successes = [p for p in charged if p.found.success]
    best = _best(stable, yardstick)
    budget = config.budget or 0
    opinion = read_second_opinion(run, config.second_opinion)
    return RunFigures(
        strategy=strategy,
        task=task_name(config.task),
        seed=config.seed,
        path=path,
        finished=has_ended(run) and (opinion is None or opinion.complete),
        evaluations=len(charged),
        proposals=len(proposed),
        gates={name: sum(p.found.gates[name] for p in proposed) for name in GATES},
        success_percent=_percent(len(successes), budget),
        stable_percent=_percent(len(stable), budget),
        gate_pass_percent=_percent(sum(p.item.gate_score >= 1.0 for p in proposed), len(proposed)),
        top1=math.nan if best is None else _value(best, config),
        top1_error=math.nan if best is None else _distance(best, yardstick),
        diversity=diversity_of(stable),
        success_diversity=diversity_of(successes),
        materials=len(set(materials(p.evaluation.structure for p in successes if p.evaluation is not None))),
        force_calls=float(sum(p.evaluation.row.force_calls for p in charged if p.evaluation is not None)),
        wall_s=wall_s(run),
        config_sha256=hashlib.sha256(dump_config(config).encode()).hexdigest(),
        weights_sha256=str(record["potential"]["weights_sha256"]),
        policy_sha256=hashlib.sha256(json.dumps(record.get("policies", {}), sort_keys=True).encode()).hexdigest(),
        successes=tuple(p.evaluation_id for p in successes),
        best="" if best is None else best.evaluation_id,
        second_opinion=opinion.potential if opinion else "",
        second_opinion_percent=opinion.percent if opinion else math.nan,
    )


def wall_s(run: RunDir) -> float:
    """Wall time in s of a campaign, from the first to the last event of each of its trainers."""
    spans: dict[str, list[float]] = defaultdict(list)
    for event in read_events(run):
        if event["writer"].endswith("-trainer"):
            spans[event["writer"]].append(event["time_s"])
    return sum(max(times) - min(times) for times in spans.values())


def _best(stable: Sequence[Proposed], yardstick: Yardstick) -> Proposed | None:
    """The stable structure nearest to what is wanted; the earliest of equals."""
    measured = [p for p in stable if not math.isnan(_distance(p, yardstick))]
    return min(measured, key=lambda p: _distance(p, yardstick), default=None)


def _distance(proposed: Proposed, yardstick: Yardstick) -> float:
    if proposed.evaluation is None:
        return math.nan
    return yardstick.task.distance(proposed.evaluation.row, yardstick.task.wanted())


def _value(proposed: Proposed, config: DesignConfig) -> float:
    """What Top-1 shows: a pore diameter in Å, or an energy in eV/atom."""
    if proposed.evaluation is None:
        return math.nan
    row = proposed.evaluation.row
    return row.pld_relaxed_ang if config.task.name == "pore" else row.e_rel_ev_per_atom


def diversity_of(some: Sequence[Proposed]) -> float:
    """Mean distance between component sets, one an evaluation; those that name none are left out."""
    found = (_fingerprint(p.item.sequence) for p in some)
    return diversity([f for f in found if f is not None])


def _fingerprint(sequence: str) -> Fingerprint | None:
    try:
        return fingerprint(parse_sequence(sequence))
    except Refused:  # a strategy of the user's own may not think in component sets
        return None


def _percent(count: int, of: int) -> float:
    return 100.0 * count / of if of else math.nan
