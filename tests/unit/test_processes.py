"""Workers that leave warnings to their parent."""

import os
import signal

from promof_hpc.processes import WARNINGS, Pool


def test_a_warning_of_slurm_ends_no_worker_and_blocks_nothing_here():
    with Pool(1) as pool:
        worker = pool.submit(os.getpid).result()
        for warning in WARNINGS:
            os.kill(worker, warning)
        assert pool.submit(os.getpid).result() == worker
    assert not set(WARNINGS) & signal.pthread_sigmask(signal.SIG_BLOCK, ())
