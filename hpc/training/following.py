"""How a campaign that one process leads is worked on by all processes of its training job.

The first process runs the campaign with a `Led` strategy, which tells the others of every call before it makes it; they
`follow` and make the same calls. Only the first process judges, and only it writes the ledger. Between calls the others
wait, so the first one must `agree` now and then while it waits for something else.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpc.preemption import Asked
from hpc.training.team import JobTeam
from promof_hpc.design.strategy import Judged, Proposals, Round, Strategy
from promof_hpc.errors import PromofError
from promof_hpc.store.checkpoint import Write
from promof_hpc.store.shard import list_names

log = logging.getLogger("promof.training")
WRITTEN = ".written"
POLL_S = 0.05
WRITE_S = 1800.0
AGREE, LEAVE = "agree", "leave"
NOTHING_TO_SAY: tuple[str, tuple[Any, ...]] = ("", ())


class Led:
    """A strategy in the first process of a team; every call is made by all."""

    def __init__(self, strategy: Strategy, team: JobTeam):
        self._strategy, self._team = strategy, team

    def propose(self, asked: Round) -> Proposals:
        """See `Strategy`."""
        _tell(self._team, "propose", asked)
        return self._strategy.propose(asked)

    def learn(self, asked: Round, proposals: Proposals, judged: Sequence[Judged]) -> dict[str, float]:
        """See `Strategy`."""
        _tell(self._team, "learn", asked, proposals, judged)
        return self._strategy.learn(asked, proposals, judged)

    def save(self, folder: Path) -> Write:
        """See `Strategy`; what is returned waits until the other processes have written theirs."""
        _tell(self._team, "save", folder)
        write, others = self._strategy.save(folder), self._team.size - 1

        def write_all() -> None:
            write()
            _wait_for_the_others(folder, others)

        return write_all

    def load(self, folder: Path) -> None:
        """See `Strategy`."""
        _tell(self._team, "load", folder)
        self._strategy.load(folder)

    def agree(self) -> Asked:
        """Whether any process was asked to stop; to be called often while the campaign waits for evaluations."""
        _tell(self._team, AGREE)
        return self._team.agree()

    def dismiss(self, asked: Asked) -> None:
        """The others may leave; why."""
        _tell(self._team, LEAVE, asked)


@dataclass
class Follower:
    """Another process of the team: makes the calls that the first one tells it of."""

    strategy: Strategy
    team: JobTeam
    _writer: threading.Thread | None = field(default=None, init=False)

    def follow(self) -> Asked:
        """Work until the first process says that all may leave, and why.

        Raises:
            Interrupted: one of the processes was asked to stop while all learned.
        """
        try:
            while True:
                name, arguments = self.team.gather(NOTHING_TO_SAY)[0]
                if name == LEAVE:
                    asked: Asked = arguments[0]
                    return asked
                if name == AGREE:
                    self.team.agree()
                elif name == "save":
                    self._save(*arguments)
                else:
                    getattr(self.strategy, name)(*arguments)
        finally:
            self._wait()

    def _save(self, folder: Path) -> None:
        self._wait()
        write = self.strategy.save(folder)
        self._writer = threading.Thread(target=_write_mine, args=(write, folder, self.team.rank), name="checkpoint")
        self._writer.start()

    def _wait(self) -> None:
        if self._writer is not None:
            self._writer.join()
            self._writer = None


def _tell(team: JobTeam, name: str, *arguments: Any) -> None:
    team.gather((name, arguments))


def _write_mine(write: Write, folder: Path, rank: int) -> None:
    """Write a process's part, and say that it is there, or why not."""
    why = ""
    try:
        write()
    except Exception as error:
        log.exception("rank %d could not write its part of a checkpoint", rank)
        why = f"rank {rank}: {error}"
    try:
        (folder / f"{rank:05d}{WRITTEN}").write_text(why, encoding="utf-8")
    except OSError:
        log.exception("rank %d could not say that it has written its part of a checkpoint", rank)


def _wait_for_the_others(folder: Path, others: int) -> None:
    """Return when all have written their parts.

    Raises:
        PromofError: one could not, or they do not say so in time.
    """
    deadline = time.monotonic() + WRITE_S
    while len(names := list_names(folder, WRITTEN)) < others:
        if time.monotonic() > deadline:
            raise PromofError(
                f"{others - len(names)} processes have not written their parts of {folder} in {WRITE_S:.0f} s."
            )
        time.sleep(POLL_S)
    for name in names:
        why = (folder / name).read_text(encoding="utf-8")
        if why:
            raise PromofError(f"A checkpoint could not be written ({why}); see the log of the training job.")
        (folder / name).unlink()
