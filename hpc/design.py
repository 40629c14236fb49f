"""The design journey on one machine: this process proposes and learns, the ranks of a resident farm evaluate."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hpc.exit_codes import DONE, INCOMPLETE, STOPPED
from hpc.kinds import design_of
from hpc.local import POLL_S, Farm, Incomplete, Stopped, leading
from hpc.runs import anchored, create_run, now, open_same, potential_of
from hpc.second_opinion import ask, check_second
from hpc.worker import load_run_potential
from promof_hpc.config import DesignConfig, load_config
from promof_hpc.design.campaign.keeping import Kept
from promof_hpc.design.campaign.loop import Campaign, Ending, Hands, Phase
from promof_hpc.design.inputs import inputs_of
from promof_hpc.design.judging.scoring import Scoring, known_sets, reference_of
from promof_hpc.design.learning.team import ALONE, Alone, Team
from promof_hpc.design.registry import build
from promof_hpc.errors import PromofError, UsageError
from promof_hpc.report.status import snapshot
from promof_hpc.store.budget import fold
from promof_hpc.store.claims import Owner
from promof_hpc.store.events import EventLog
from promof_hpc.store.run_dir import (
    Ended,
    RunDir,
    end,
    go_on,
    how_ended,
    raise_budget,
    rounds_before_the_raise,
    stop_requested,
)

if TYPE_CHECKING:
    from hpc.console import Progress
    from promof_hpc.design.strategy import Strategy
    from promof_hpc.physics.potential import Potential

DEFAULT_RUN = Path("runs/design")
FOR_EVER_S = 1e9  # the ranks stay until the campaign ends or this process dies
FAREWELL_S = 30.0
CODES = {Ending.SPENT: DONE, Ending.NOTHING_LEFT: DONE, Ending.PROPOSAL_CAP: INCOMPLETE}


@dataclass(frozen=True)
class Parts:
    """What a campaign is made of, loaded."""

    strategy: Strategy
    scoring: Scoring

    @classmethod
    def load(cls, config: DesignConfig, potential: Potential, team: Team = ALONE) -> Parts:
        """Build the strategy in its first state and what judges it.

        Args:
            team: processes that learn together.

        Raises:
            UsageError: weights, libraries or the reference set are missing, or the strategy cannot be built.
        """
        strategy = build(config, team)
        return cls(strategy, Scoring(config, potential, reference_of(config, potential), known_sets(config)))


def design_config(path: Path | None, overrides: Sequence[str]) -> DesignConfig:
    """The configuration of a campaign from a file and `--set`."""
    return load_config(DesignConfig, path, overrides)


def check_design(config: DesignConfig) -> int:
    """Load everything that a campaign needs, make nothing, and say what it would do; returns the exit code.

    Raises:
        UsageError: see `Parts.load` and `check_second`.
    """
    potential = potential_of(config)
    second = check_second(config, potential)
    parts = Parts.load(config, potential)
    sizes = config.rounds
    wanted = ", ".join(f"{name} {value:g}" for name, value in parts.scoring.targets(0)[0].items())
    print(
        f"Strategy {config.strategy}, potential {parts.scoring.potential.id}, {config.budget} evaluations; "
        f"{sizes.targets} x {sizes.sets} x {sizes.assemblies} proposals a round; first target: {wanted}; "
        f"second opinion: {second or 'none'}. "
        "Everything that is needed is there; nothing was made."
    )
    return DONE


def design_campaign(config: DesignConfig, run_path: Path | None, as_json: bool = False) -> int:
    """Run a campaign in a run directory; an existing run with the same configuration goes on.

    Returns:
        exit code.

    Raises:
        UsageError: the run exists with another configuration, or something that the campaign needs is missing.
    """
    run, parts = begin_design(run_path or DEFAULT_RUN, config, local_team(config))
    return resume_design(run, config.farm.ranks, as_json, parts=parts)


def begin_design(path: Path, config: DesignConfig, team: Team = ALONE) -> tuple[RunDir, Parts | None]:
    """Make the run directory, or check that an existing one has this configuration; parts where they were loaded.

    Args:
        team: that is to use the parts; on a login node they are only tried.
    """
    places = {"reference": anchored(config.reference), "external": anchored(config.external)}
    policy = {"weights": anchored(config.policy.weights), "data": anchored(config.policy.data)}
    config = config.model_copy(update={**places, "policy": config.policy.model_copy(update=policy)})
    run = open_same(path, config, "design")
    if run is not None:
        return run, None
    potential = potential_of(config)
    check_second(config, potential)
    parts = Parts.load(config, potential, team)  # what cannot be built leaves nothing behind
    reference = parts.scoring.reference
    record = {
        "kind": "design",
        "strategy": config.strategy,
        "reference_sha256": hashlib.sha256(reference.to_json().encode()).hexdigest() if reference else "",
        **inputs_of(config),
    }
    return create_run(path, config, potential, record), parts


def resume_design(
    run: RunDir, ranks: int = 0, as_json: bool = False, *, budget: int | None = None, parts: Parts | None = None
) -> int:
    """Do what is missing of a campaign, then write its report; returns the exit code.

    Args:
        budget: evaluations that it may spend from now on; None leaves it as it is.
    """
    from hpc.console import say
    from hpc.inspection import summary, write_report

    code = complete_design(run, ranks, as_json, budget=budget, parts=parts)
    page = write_report(run)
    if as_json:
        print(json.dumps(summary(run)))
    else:
        say(run, code, page)
    return code


def complete_design(
    run: RunDir, ranks: int = 0, quiet: bool = False, *, budget: int | None = None, parts: Parts | None = None
) -> int:
    """Pursue a campaign to its end, then ask for the second opinion on its successes; returns the exit code.

    Raises:
        PromofError: another process leads the run, its inputs have changed, or its farm cannot work.
    """
    from hpc.console import Progress

    with leading(run, design_of(run).farm.claim_expiry_s):
        if budget is not None:
            give_budget(run, budget)
        config = design_of(run)
        ranks = ranks or config.farm.ranks
        ended = how_ended(run)
        with Progress(run, config.budget, quiet) as progress:
            try:
                if ended is not None and budget is None and fold(run, None).finished:
                    ending = Ending[ended.ending]
                else:
                    ending = _go_on(run, config, ranks, parts, progress)
                ask(run, ranks, progress.asking)
            except Stopped:
                return STOPPED
            except Incomplete:
                return INCOMPLETE
    return CODES[ending]


def _go_on(run: RunDir, config: DesignConfig, ranks: int, parts: Parts | None, progress: Progress) -> Ending:
    """Do what is missing of a campaign with a farm, which has left when this returns."""
    prepare_to_go_on(run, config)
    with Farm(run, ranks, FOR_EVER_S) as farm:
        try:
            farm.keep()  # the ranks load their potential while this process loads the policies
            parts = parts or Parts.load(config, load_run_potential(run, config.evaluation), local_team(config))
            ending = _pursue(run, config, parts, farm, progress)
        except Stopped:
            farm.leave(progress.evaluating)
            raise
        close(run, ending)
        farm.leave(progress.evaluating, FAREWELL_S)
        return ending


def local_team(config: DesignConfig) -> Team:
    """This process as the only one that learns."""
    from hpc.training.team import training_device

    return Alone(training_device(config.training))


def _pursue(run: RunDir, config: DesignConfig, parts: Parts, farm: Farm, progress: Progress) -> Ending:
    events = EventLog(run, f"{Owner.here().job}-trainer")
    events.write("began", committed=fold(run, None).committed)

    def wait(number: int, batches: Collection[str]) -> None:
        while not set(batches) <= set(run.committed(number)):
            if stop_requested(run):
                raise Stopped
            farm.keep()
            progress.evaluating()
            time.sleep(POLL_S)

    def safe_point(phase: Phase, number: int) -> None:
        if stop_requested(run):
            raise Stopped
        events.write("phase", phase=phase, round=number)
        progress.phase(phase, number)

    def kept(checkpoint: Kept) -> None:
        events.write("checkpoint", **asdict(checkpoint))

    hands = Hands(wait, safe_point, progress.note, kept)
    settled = rounds_before_the_raise(run)
    return Campaign(run, config, parts.strategy, parts.scoring, hands, settled=settled).pursue()


def prepare_to_go_on(run: RunDir, config: DesignConfig) -> None:
    """Take back that a campaign has ended, unless its inputs have changed.

    Raises:
        PromofError: weights or libraries are others than when it was begun.
    """
    _same_inputs(run, config)
    go_on(run)


def close(run: RunDir, ending: Ending) -> None:
    """Note that a campaign has ended, and why."""
    end(run, Ended(ending.name, _why(run, ending)))


def _why(run: RunDir, ending: Ending) -> str:
    """How a campaign ended, for people; where the gate was in the way, with what it refused."""
    if ending is Ending.SPENT:
        return ending.value
    now = snapshot(run, design_of(run).budget)
    reasons = ", ".join(f"{n} {reason}" for reason, n in sorted(now.refused.items(), key=lambda item: -item[1])[:4])
    return f"{ending.value}: {now.entries} proposals, refused {reasons or 'none'}"


def give_budget(run: RunDir, budget: int) -> None:
    """Let a campaign that this process leads spend more.

    Raises:
        UsageError: it is no larger than the present budget.
    """
    before = design_of(run).budget or 0
    if budget <= before:
        raise UsageError(f"{run.path} has a budget of {before}; --raise-budget must be larger, {budget} is not.")
    go_on(run)  # first: a campaign that may spend more has not ended
    raise_budget(run, before, budget, now())


def _same_inputs(run: RunDir, config: DesignConfig) -> None:
    """A run goes on with the policies and libraries that it began with, or not at all."""
    begun, found = run.provenance_record(), inputs_of(config)
    changed = [name for kind in found for name in {**begun[kind], **found[kind]}
               if begun[kind].get(name) != found[kind].get(name)]  # fmt: skip
    if changed:
        raise PromofError(
            f"{run.path} was begun with other files than those that are there now: {', '.join(changed)}; "
            "put the old ones back (see policy.weights and policy.data), or begin another run."
        )
