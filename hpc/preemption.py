"""What signals ask of a job: a handler only notes it, and the job stops where it loses nothing.

USR2 comes a while before the end (time limit, or preemption where the site sends it): stop, and be queued again once.
Learning goes on for half of that while, since the round in hand would be lost. TERM comes with little time left, from
whoever: stop and save, and never queue again by ourselves. A job that ends by itself after TERM counts as completed, so
where Slurm is to requeue a preempted job the processes wait to be killed.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from types import FrameType


class Asked(IntEnum):
    """What was asked for; the larger one wins where processes were asked different things."""

    NOTHING = 0
    IDLE = 1  # leave for want of work; whoever has some again starts others
    REQUEUE = 2  # stop, and be queued again
    LEAVE = 3  # stop, and leave (the run's STOP file)
    HOLD = 4  # stop, and wait to be killed


@dataclass(frozen=True)
class Parting:
    """How processes left their work.

    Attributes:
        why: in words; empty where everything was done.
    """

    asked: Asked = Asked.NOTHING
    why: str = ""


BY_SIGNAL, BY_FILE = "asked to stop", "STOP file in the run directory"
WARNING_VARIABLE = "SUBMITIT_PREEMPT_SIGNAL"  # the site's name of the signal that warns; USR2 without


class Interrupted(Exception):
    """All processes of a job stop here, because one of them was asked to."""

    def __init__(self, asked: Asked):
        super().__init__(f"asked to {asked.name.lower()}")
        self.asked = asked


class Requests:
    """Notes the signals of this process.

    Attributes:
        asked: the strongest request so far.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Install the handlers, in place of submitit's, and let through what came while signals were blocked."""
        self.asked = Asked.NOTHING
        self._clock, self._since = clock, 0.0
        warning = signal.Signals["SIG" + os.environ.get(WARNING_VARIABLE, "USR2")]
        self._meaning = {warning: Asked.REQUEUE, signal.SIGTERM: Asked.HOLD, signal.SIGINT: Asked.LEAVE}
        for number in self._meaning:
            signal.signal(number, self._note)
        signal.signal(signal.SIGCONT, signal.SIG_DFL)  # Slurm sends it before TERM, and submitit logs it
        signal.pthread_sigmask(signal.SIG_UNBLOCK, list(self._meaning))

    def heed(self) -> None:
        """Stop here if somebody has asked for it.

        Raises:
            Interrupted: with what was asked.
        """
        if self.asked is not Asked.NOTHING:
            raise Interrupted(self.asked)

    def pressing(self, patience_s: float) -> Asked:
        """What was asked and cannot wait for the end of costly work: a warning only once it is so old."""
        if self.asked is Asked.REQUEUE and self._clock() - self._since < patience_s:
            return Asked.NOTHING
        return self.asked

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked is Asked.NOTHING:
            self._since = self._clock()
        self.asked = max(self.asked, self._meaning[signal.Signals(number)])
