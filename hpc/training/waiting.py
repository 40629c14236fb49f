"""How a trainer waits for evaluations: as long as somebody evaluates or will, and not for ever where nobody does."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from promof_hpc.store.claims import live_claims
from promof_hpc.store.run_dir import RunDir

LOOK_S = 60.0

WhyNobody = Callable[[float], str]
"""Given for how many seconds nobody has evaluated anything: why nobody will; empty where it is worth waiting."""


@dataclass
class Watch:
    """Looks after the evaluations that a trainer waits for, from the moment when it begins to wait.

    Attributes:
        expiry_s: a claim that was not renewed for so long is void.
        why_nobody: asked once a minute while there is neither a result nor a live claim.
    """

    run: RunDir
    expiry_s: float
    why_nobody: WhyNobody
    clock: Callable[[], float] = time.monotonic
    _open: int = -1
    _heard_s: float = 0.0
    _looked_s: float = 0.0

    def why_not(self, open_batches: int) -> str:
        """Why it is no use to wait for so many batches; empty where it is."""
        now = self.clock()
        if open_batches != self._open:
            self._open, self._heard_s, self._looked_s = open_batches, now, now
        if now - self._looked_s < LOOK_S:
            return ""
        self._looked_s = now
        if live_claims(self.run, self.expiry_s):
            self._heard_s = now
            return ""
        return self.why_nobody(now - self._heard_s)
