"""When and how a campaign keeps its state: the copy stops it, the writing does not."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from promof_hpc.store.checkpoint import Publish, Write, save_checkpoint
from promof_hpc.store.run_dir import RunDir


@dataclass(frozen=True)
class Kept:
    """A checkpoint that was made.

    Attributes:
        number: rounds that its state has learned from.
        copy_s: seconds that the campaign stood still for it.
        write_s: seconds from then on until it was published.
    """

    number: int
    copy_s: float
    write_s: float


def interval_s(save_s: float, between_deaths_s: float | None) -> float:
    """Seconds of work between two checkpoints that lose least (Young, Commun. ACM 17, 530, 1974); 0 where unknown.

    Args:
        save_s: that a campaign stands still for one.
        between_deaths_s: mean time between preemptions and failures.
    """
    return math.sqrt(2.0 * save_s * between_deaths_s) if between_deaths_s else 0.0


class Keeper:
    """Keeps states of a campaign, one at a time.

    What goes wrong while a state is written is raised by the next call.
    """

    def __init__(
        self,
        run: RunDir,
        copy: Callable[[Path], Write],
        between_deaths_s: float | None = None,
        told: Callable[[Kept], None] = lambda kept: None,
    ):
        """Keep nothing yet.

        Args:
            copy: copies the state; see `store.checkpoint.save_checkpoint`.
            between_deaths_s: mean time between preemptions; None: every state that is offered is kept.
            told: of every checkpoint, by the thread that wrote it.
        """
        self._run, self._copy, self._between_deaths_s, self._told = run, copy, between_deaths_s, told
        self._writer: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._offered = self._kept = 0
        self._copy_s, self._last = 0.0, time.monotonic()

    def offer(self, number: int) -> None:
        """Keep the present state, which has learned from the rounds below `number`, if the last one is old enough."""
        self._offered = number
        if time.monotonic() - self._last >= interval_s(self._copy_s, self._between_deaths_s):
            self.keep()

    def keep(self) -> None:
        """Keep the state that was offered last, and still is the present one, unless it has been kept."""
        if self._offered == self._kept:
            return
        self.wait()
        number, begin = self._offered, time.monotonic()
        publish = save_checkpoint(self._run, number, self._copy)
        self._last = time.monotonic()
        self._copy_s, self._kept = self._last - begin, number
        self._writer = threading.Thread(target=self._write, args=(number, publish), name="checkpoint")
        self._writer.start()

    def wait(self) -> None:
        """Return once nothing is being written."""
        if self._writer is not None:
            self._writer.join()
            self._writer = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def _write(self, number: int, publish: Publish) -> None:
        begin, copy_s = time.monotonic(), self._copy_s
        try:
            if publish():
                self._told(Kept(number, copy_s, time.monotonic() - begin))
        except BaseException as error:
            self._failure = error
