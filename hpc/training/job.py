"""A training job: the first process leads the campaign, the others follow; evaluators are another job's."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import asdict

from hpc.design import Parts, close, prepare_to_go_on
from hpc.kinds import is_done
from hpc.lease import holding_lease
from hpc.preemption import Asked, Interrupted, Requests
from hpc.training.following import Follower, Led
from hpc.training.team import DeepSpeedTeam, JobTeam, SoloTeam
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


class Leaving(Exception):
    """The campaign stops here because it was asked to."""

    def __init__(self, asked: Asked):
        super().__init__(asked.name)
        self.asked = asked


def join(settings: TrainingSettings, requests: Requests) -> JobTeam:
    """Meet the other processes of this job; torch's own optimiser where there are none."""
    world = World.here()
    if settings.engine == "torch" or (settings.engine == "auto" and world.size == 1):
        return SoloTeam(settings, world, lambda: requests.asked)
    return DeepSpeedTeam(world, settings, lambda: requests.asked)


def train(
    run: RunDir,
    config: DesignConfig,
    requests: Requests,
    between_deaths_s: float | None = None,
    job_ended: Callable[[str], bool] = lambda job: False,
) -> Asked:
    """Work on a campaign until it ends or the job is to stop; returns what it was asked.

    Args:
        between_deaths_s: mean time between preemptions at this site.
        job_ended: whether the scheduler knows for certain that a job is over.

    Raises:
        PromofError: another job leads the run, its inputs have changed, or something that it needs is missing.
    """
    team = join(config.training, requests)
    if team.gather(is_done(run))[0]:  # as seen by the first; a job that comes too late must not open it again
        team.leave()
        return Asked.NOTHING
    try:
        if team.rank == 0:
            with holding_lease(run, config.farm.claim_expiry_s, job_ended):
                asked = _lead(run, config, team, between_deaths_s)
        else:
            asked = Follower(build(config, team), team).follow()
    except Interrupted as interrupted:  # in all processes, in the middle of learning
        asked = interrupted.asked
    team.leave()
    return asked


def _lead(run: RunDir, config: DesignConfig, team: JobTeam, between_deaths_s: float | None) -> Asked:
    prepare_to_go_on(run, config)
    parts = Parts.load(config, load_run_potential(run, config.evaluation), team)
    led = Led(parts.strategy, team)
    events = EventLog(run, f"{Owner.here().job}-trainer")

    def stop_if_asked() -> None:
        asked = max(led.agree(), Asked.LEAVE if stop_requested(run) else Asked.NOTHING)
        if asked is not Asked.NOTHING:
            raise Leaving(asked)

    def wait(number: int, batches: Collection[str]) -> None:
        while not set(batches) <= set(run.committed(number)):
            stop_if_asked()
            time.sleep(POLL_S)

    def safe_point(phase: Phase, number: int) -> None:
        stop_if_asked()
        events.write("phase", phase=phase, round=number)

    def kept(checkpoint: Kept) -> None:
        events.write("checkpoint", **asdict(checkpoint))

    hands = Hands(wait, safe_point, lambda text: events.write("note", text=text), kept, between_deaths_s)
    campaign = Campaign(run, config, led, parts.scoring, hands, settled=rounds_before_the_raise(run))
    try:
        close(run, campaign.pursue())
        asked = Asked.NOTHING
    except Leaving as leaving:
        asked = leaving.asked
    led.dismiss(asked)
    return asked
