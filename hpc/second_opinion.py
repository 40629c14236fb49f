"""Asking a second potential about a campaign's successes, in child processes of this one once the farm has left."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

from hpc.kinds import design_of
from hpc.local import POLL_S, Stopped
from hpc.worker import Child, device_of
from promof_hpc.config import DesignConfig, EvaluationSettings
from promof_hpc.design.judging.second_opinion import (
    identity,
    not_asked_about,
    opinion_shard,
    require_another,
    require_same,
)
from promof_hpc.physics.potential import Potential
from promof_hpc.physics.registry import chosen_potential
from promof_hpc.store.run_dir import RunDir, stop_requested
from promof_hpc.store.schema import Candidate
from promof_hpc.store.shard import write_shard


def check_second(config: DesignConfig, first: Potential) -> str:
    """Load the second potential once, so that a campaign does not end with one that cannot be had; returns its id.

    Raises:
        UsageError: it cannot be loaded, or is the campaign's own.
    """
    if config.second_opinion is None:
        return ""
    second = chosen_potential(config.second_evaluation.potential)
    require_another(second, first)
    return second.id


def ask(run: RunDir, ranks: int, tell: Callable[[int, int], None], heed: Callable[[], None] = lambda: None) -> None:
    """Ask about every success that has no second opinion yet; what was said before stays.

    Each is relaxed by itself in a child process, so that one which takes its process down is known by name.

    Args:
        ranks: child processes.
        tell: told often how many of how many have been asked about.
        heed: called often, in several threads; raises what stops it.

    Raises:
        Stopped: somebody asked the run to stop; what was said until then stays.
        PromofError: the potential cannot be loaded, or earlier opinions are of other weights.
    """
    config = design_of(run)
    open_ = not_asked_about(run) if config.second_opinion is not None else []
    if not open_:
        return
    settings = config.second_evaluation
    # loaded here first: what cannot be loaded is an error, not the fault of a structure
    made_with = identity(chosen_potential(settings.potential, device_of(settings, 0)), settings)
    require_same(run, made_with)
    run.make_opinions()
    queue, answered = deque(open_), list[str]()

    def heartbeat() -> None:
        if stop_requested(run):
            raise Stopped
        heed()

    def work(local_rank: int) -> None:
        with Child(run, config.farm, device_of(settings, local_rank), second_judge) as child:
            while (candidate := _next(queue)) is not None:
                heartbeat()
                evaluation = child.evaluate(candidate, heartbeat)
                write_shard(run.opinion(candidate.evaluation_id), opinion_shard(evaluation, made_with))
                answered.append(candidate.evaluation_id)

    with ThreadPoolExecutor(min(ranks, len(open_))) as pool:
        futures = [pool.submit(work, local_rank) for local_rank in range(min(ranks, len(open_)))]
        try:
            while wait(futures, POLL_S, FIRST_EXCEPTION).not_done:
                if any(future.exception() for future in futures if future.done()):
                    break
                tell(len(answered), len(open_))
        finally:
            queue.clear()  # where one has failed, the others end what they have in hand
    for future in futures:
        future.result()
    tell(len(answered), len(open_))


def _next(queue: deque[Candidate]) -> Candidate | None:
    """The next of a queue that several threads take from; None where nothing is left."""
    try:
        return queue.popleft()
    except IndexError:
        return None


def second_judge(run: RunDir, device: str) -> tuple[EvaluationSettings, Potential]:
    """What a child process judges with."""
    settings = design_of(run).second_evaluation
    return settings, chosen_potential(settings.potential, device)
