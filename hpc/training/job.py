"""A training job: the first process leads the campaign, the others follow; evaluators are another job's."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass

from hpc.design import Parts, close, prepare_to_go_on
from hpc.kinds import is_evaluated
from hpc.lease import holding_lease
from hpc.preemption import BY_FILE, BY_SIGNAL, Asked, Interrupted, Parting, Requests
from hpc.training.following import Follower, Led
from hpc.training.team import DeepSpeedTeam, JobTeam, SoloTeam, Stops
from hpc.training.waiting import Watch, WhyNobody
from hpc.training.world import World
from hpc.worker import load_run_potential
from promof_hpc.config import DesignConfig, TrainingSettings
from promof_hpc.design.campaign.keeping import Kept
from promof_hpc.design.campaign.loop import Campaign, Hands, Phase
from promof_hpc.design.registry import build
from promof_hpc.store.claims import Owner
from promof_hpc.store.events import EventLog
from promof_hpc.store.run_dir import RunDir, rounds_before_the_raise, stop_requested

POLL_S = 0.5


@dataclass(frozen=True)
class Place:
    """What a training job is told of where it runs.

    Attributes:
        between_deaths_s: mean time between preemptions; None: not known.
        patience_s: for so long a warning does not interrupt learning: a round that ends meanwhile is not lost.
        job_ended: whether the scheduler knows for certain that a job is over.
        why_nobody: why nobody evaluates any more.
    """

    between_deaths_s: float | None = None
    patience_s: float = 0.0
    job_ended: Callable[[str], bool] = lambda job: False
    why_nobody: WhyNobody = lambda idle_s: ""


class Leaving(Exception):
    """The campaign stops here."""

    def __init__(self, parting: Parting):
        super().__init__(parting.why)
        self.parting = parting


def join(settings: TrainingSettings, requests: Requests, patience_s: float = 0.0) -> JobTeam:
    """Meet the other processes of this job; torch's own optimiser where there are none."""
    world = World.here()
    stops = Stops(lambda: requests.asked, lambda: requests.pressing(patience_s))
    if settings.engine == "torch" or (settings.engine == "auto" and world.size == 1):
        return SoloTeam(settings, world, stops)
    return DeepSpeedTeam(world, settings, stops)


def train(run: RunDir, config: DesignConfig, requests: Requests, place: Place) -> Parting:
    """Work on a campaign until it ends or the job is to stop; returns how it left.

    Raises:
        PromofError: another job leads the run, its inputs have changed, or something that it needs is missing.
    """
    team = join(config.training, requests, place.patience_s)
    if team.gather(is_evaluated(run))[0]:  # as seen by the first; a job that comes too late must not open it again
        team.leave()
        return Parting()
    try:
        if team.rank == 0:
            with holding_lease(run, config.farm.claim_expiry_s, place.job_ended):
                parting = _lead(run, config, team, place)
        else:
            parting = Parting(Follower(build(config, team), team).follow())
    except Interrupted as interrupted:  # in all processes, in the middle of learning
        parting = Parting(interrupted.asked, BY_SIGNAL)
    team.leave()
    return parting


def _lead(run: RunDir, config: DesignConfig, team: JobTeam, place: Place) -> Parting:
    prepare_to_go_on(run, config)
    parts = Parts.load(config, load_run_potential(run, config.evaluation), team)
    led = Led(parts.strategy, team)
    events = EventLog(run, f"{Owner.here().job}-trainer")

    def stop_if_asked() -> None:
        asked = led.agree()
        if asked < Asked.HOLD and stop_requested(run):
            raise Leaving(Parting(Asked.LEAVE, BY_FILE))
        if asked is not Asked.NOTHING:
            raise Leaving(Parting(asked, BY_SIGNAL))

    def wait(number: int, batches: Collection[str]) -> None:
        watch = Watch(run, config.farm.claim_expiry_s, place.why_nobody)
        while missing := set(batches) - set(run.committed(number)):
            stop_if_asked()
            if why := watch.why_not(len(missing)):
                events.write("note", text=f"Training stops: {why}.")
                raise Leaving(Parting(Asked.LEAVE, why))
            time.sleep(POLL_S)

    def safe_point(phase: Phase, number: int) -> None:
        stop_if_asked()
        events.write("phase", phase=phase, round=number)

    def kept(checkpoint: Kept) -> None:
        events.write("checkpoint", **asdict(checkpoint))

    hands = Hands(wait, safe_point, lambda text: events.write("note", text=text), kept, place.between_deaths_s)
    campaign = Campaign(run, config, led, parts.scoring, hands, settled=rounds_before_the_raise(run))
    try:
        close(run, campaign.pursue())
        parting = Parting()
    except Leaving as leaving:
        parting = leaving.parting
    led.dismiss(parting.asked)
    return parting
