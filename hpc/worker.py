"""One rank's work on a batch: evaluate it, or, under suspicion, in a child process, if need be one by one."""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing.connection import Connection
from pathlib import Path

from hpc.cluster.staging.node import weights_near
from hpc.devices import own_device
from hpc.kinds import config_of
from promof_hpc.config import EvaluationSettings, FarmSettings, RunConfig
from promof_hpc.errors import PromofError
from promof_hpc.physics.evaluate import crashed, evaluate
from promof_hpc.physics.potential import Potential
from promof_hpc.physics.registry import chosen_potential
from promof_hpc.store.budget import batches_of
from promof_hpc.store.candidates import read_structures
from promof_hpc.store.claims import Owner
from promof_hpc.store.results import result_shard
from promof_hpc.store.run_dir import RunDir, read_round
from promof_hpc.store.schema import TRIPWIRE, Candidate, Evaluation, Outcome
from promof_hpc.store.shard import Shard, write_shard

log = logging.getLogger("promof.worker")
DEATHS_TO_CONVICT = 3
_ENVIRONMENT = threading.Lock()  # of the process, which changes for a moment when a child is started
Heartbeat = Callable[[], None]
Judge = Callable[[RunDir, str], tuple[EvaluationSettings, Potential]]
"""What a structure is evaluated with, given the run and a device."""


class Dropped(BaseException):
    """The batch in hand is given up without a result; not an Exception, so that nothing takes it for a failure."""


@dataclass
class Worker:
    """A rank with its potential loaded once.

    Attributes:
        run: the run it works for.
        config: the run's configuration.
        potential: ready to compute, on this rank's device.
        rank: MPI rank.
        device: of the potential, for instance `cuda:1`.
    """

    run: RunDir
    config: RunConfig
    potential: Potential
    owner: Owner
    rank: int
    device: str

    @classmethod
    def load(cls, run: RunDir, rank: int, local_rank: int = 0) -> Worker:
        """Read the run's configuration and load its potential.

        Raises:
            PromofError: the weights are not those that the run began with.
        """
        config = config_of(run)
        device = device_of(config.evaluation, local_rank)
        return cls(run, config, load_run_potential(run, config.evaluation, device), Owner.here(), rank, device)

    def evaluate(self, batch: str, heartbeat: Heartbeat) -> list[Evaluation]:
        """All members of a batch, together."""
        return evaluate(self._members(batch), self.config.evaluation, self.potential, heartbeat)

    def evaluate_suspect(self, batch: str, heartbeat: Heartbeat) -> list[Evaluation]:
        """The members in a child process, together and so with the same numbers as ever; where it dies, one by one."""
        members = self._members(batch)
        with Child(self.run, self.config.farm, self.device) as child:
            return child.try_all(members, heartbeat) or [child.evaluate(m, heartbeat) for m in members]

    def commit(self, batch: str, evaluations: list[Evaluation]) -> bool:
        """Publish the result shard of a batch; False if somebody else was first."""
        for evaluation in evaluations:
            evaluation.row.rank, evaluation.row.host = self.rank, self.owner.host
        made_with = {
            "settings_sha256": self.config.evaluation.digest(),
            "potential": self.potential.id,
            "weights_sha256": self.potential.weights_sha256,
        }
        return write_shard(self.run.result(batch), result_shard(evaluations, batch, made_with))

    def tripwire(self, evaluations: list[Evaluation]) -> list[bool]:
        """For each charged row, whether it ended in a way that no chemistry explains."""
        return [e.row.outcome in TRIPWIRE for e in evaluations if e.row.charged]

    def _members(self, batch: str) -> list[Candidate]:
        number = int(batch.split("-")[0])
        shard = _candidates(self.run, number)
        plan = next(p for p in batches_of(shard, number) if p.name == batch)
        return read_structures(shard, plan.members)


@lru_cache(maxsize=2)
def _candidates(run: RunDir, number: int) -> Shard:
    """A round's candidates, which never change: read and checked once, not for every batch."""
    return read_round(run, number)


def device_of(settings: EvaluationSettings, local_rank: int) -> str:
    """The device of a rank; ranks share GPUs where there are more of them than GPUs.

    Raises:
        PromofError: a GPU is asked for and there is none.
    """
    return own_device(settings.potential.device, "evaluation.potential.device", local_rank)


def load_run_potential(run: RunDir, settings: EvaluationSettings, device: str = "cpu") -> Potential:
    """The potential of a run, checked against the weights digest that the run was begun with.

    Args:
        device: cpu where only its identity is wanted.

    Raises:
        PromofError: the weights are others than those of the run's beginning.
    """
    chosen = settings.potential
    near = weights_near(run, chosen.weights)
    potential = chosen_potential(chosen.model_copy(update={"weights": near}), device)
    begun_with = run.provenance_record()["potential"]["weights_sha256"]
    if potential.weights_sha256 != begun_with:
        raise PromofError(
            f"{run.path} was begun with {chosen.name} weights {begun_with[:12]}…, now they are "
            f"{potential.weights_sha256[:12]}…; energies of different weights are never mixed: start a new run."
        )
    return potential


def judge_of_run(run: RunDir, device: str) -> tuple[EvaluationSettings, Potential]:
    """The settings and the potential that a run's candidates are evaluated with."""
    settings = config_of(run).evaluation
    return settings, load_run_potential(run, settings, device)


class Child:
    """A child process that evaluates structures, started again after each death."""

    def __init__(self, run: RunDir, settings: FarmSettings, device: str, judge: Judge = judge_of_run):
        """A child without a process yet.

        Args:
            judge: gives it what it evaluates with; a function of a module, because the child imports it.
        """
        self._run, self._settings, self._device, self._judge = run, settings, device, judge
        self._process: multiprocessing.process.BaseProcess | None = None
        self._pipe: Connection | None = None

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *exc: object) -> None:
        self._kill()

    def try_all(self, batch: list[Candidate], heartbeat: Heartbeat) -> list[Evaluation] | None:
        """The evaluations of a whole batch; None if the child dies or hangs on it, which convicts nobody."""
        answer = self._ask(batch, heartbeat)
        if answer is None:
            self._kill()
        return answer

    def evaluate(self, candidate: Candidate, heartbeat: Heartbeat) -> Evaluation:
        """The evaluation of one structure, or its conviction.

        Only deaths that this living parent saw count: after a preemption the count starts anew.
        """
        for _ in range(DEATHS_TO_CONVICT):
            answer = self._ask([candidate], heartbeat)
            if answer is not None:
                return answer[0]
            code = self._process.exitcode if self._process else None
            self._kill()
            if code is None:  # it hangs
                return crashed(candidate, f"no step in {self._settings.hang_s:.0f} s", Outcome.TIMED_OUT)
            log.warning("the child died (exit code %s) on %s", code, candidate.evaluation_id)
        return crashed(candidate, f"its process died {DEATHS_TO_CONVICT} times (exit code {code})")

    def _ask(self, batch: list[Candidate], heartbeat: Heartbeat) -> list[Evaluation] | None:
        """The child's answer; None if it died, or was silent for `hang_s`."""
        pipe = self._start()
        pipe.send(batch)
        return self._wait(pipe, heartbeat)

    def _start(self) -> Connection:
        if self._process is None or self._pipe is None:
            context = multiprocessing.get_context("spawn")
            self._pipe, theirs = context.Pipe()
            with _ENVIRONMENT, without_mpi_environment():
                arguments = (str(self._run.path), self._device, self._judge, theirs)
                self._process = context.Process(target=_child_main, args=arguments, daemon=True)
                self._process.start()
            theirs.close()
        return self._pipe

    def _wait(self, pipe: Connection, heartbeat: Heartbeat) -> list[Evaluation] | None:
        heard = time.monotonic()
        while time.monotonic() - heard < self._settings.hang_s:
            heartbeat()
            try:
                if pipe.poll(0.5):
                    message = pipe.recv()
                    if isinstance(message, list):
                        return message
                    heard = time.monotonic()
            except (EOFError, OSError):
                if self._process is not None:
                    self._process.join(10)
                return None
        return None

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join(10)
        if self._pipe is not None:
            self._pipe.close()
        self._process = self._pipe = None


def _child_main(run_path: str, device: str, judge: Judge, pipe: Connection) -> None:
    """Evaluate what comes through the pipe; a message other than an answer only says that a step was taken."""
    settings, potential = judge(RunDir.open(Path(run_path)), device)
    try:
        while True:
            pipe.send(evaluate(pipe.recv(), settings, potential, lambda: pipe.send("step")))
    except (EOFError, BrokenPipeError):
        return


class without_mpi_environment:  # noqa: N801, a context manager reads like a function
    """Hide what an MPI launcher or Slurm set, so that a child does not take itself for a rank."""

    PREFIXES = ("PMI", "PMIX", "OMPI_", "MPI_", "HYDRA", "SLURM_", "PALS_")

    def __enter__(self) -> None:
        self._hidden = {k: v for k, v in os.environ.items() if k.startswith(self.PREFIXES)}
        for name in self._hidden:
            del os.environ[name]

    def __exit__(self, *exc: object) -> None:
        os.environ.update(self._hidden)
