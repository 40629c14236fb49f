"""Leading a run: one process holds its lease and says that it lives, also while it computes for minutes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from promof_hpc.store.claims import Owner, release_lease, renew_lease, take_lease
from promof_hpc.store.run_dir import RunDir

RENEW_S = 30.0


@contextmanager
def holding_lease(run: RunDir, expiry_s: float, has_ended: Callable[[str], bool] = lambda job: False) -> Iterator[None]:
    """Be the one that leads a run, until the block ends.

    Args:
        expiry_s: a lease that was not renewed for so long is void.
        has_ended: whether the scheduler knows for certain that a job is over.

    Raises:
        PromofError: another live process leads this run.
    """
    owner = Owner.here()
    take_lease(run, owner, expiry_s, has_ended=has_ended)
    ended = threading.Event()
    heart = threading.Thread(target=_renew_until, args=(run, ended), name="lease", daemon=True)
    heart.start()
    try:
        yield
    finally:
        ended.set()
        heart.join()
        release_lease(run, owner)


def _renew_until(run: RunDir, ended: threading.Event) -> None:
    while not ended.wait(RENEW_S):
        renew_lease(run)
