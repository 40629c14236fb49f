"""Potentials with faults for tests: used as `tests.potentials:NAME` with the repository in PYTHONPATH."""

import os
import signal
import time
from collections.abc import Sequence

from promof_hpc.physics.lennard_jones import LennardJones
from promof_hpc.physics.potential import Prediction
from promof_hpc.structure import Structure

POISON_ATOMS = 7  # a structure with so many atoms takes its process down


class Crashing(LennardJones):
    """Lennard-Jones that kills its process on structures with `POISON_ATOMS` atoms."""

    def __init__(self, device: str = "cpu"):
        super().__init__()

    def compute(self, structures: Sequence[Structure]) -> list[Prediction]:
        if any(len(s) == POISON_ATOMS for s in structures):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().compute(structures)


class Slow(LennardJones):
    """Lennard-Jones that takes 0.05 s a structure."""

    def __init__(self, device: str = "cpu"):
        super().__init__()

    def compute(self, structures: Sequence[Structure]) -> list[Prediction]:
        time.sleep(0.05 * len(structures))
        return super().compute(structures)


class Hanging(LennardJones):
    """Lennard-Jones that never comes back from structures with `POISON_ATOMS` atoms."""

    def __init__(self, device: str = "cpu"):
        super().__init__()

    def compute(self, structures: Sequence[Structure]) -> list[Prediction]:
        while any(len(s) == POISON_ATOMS for s in structures):
            time.sleep(1)
        return super().compute(structures)


class AlwaysNaN(LennardJones):
    """Lennard-Jones whose energies are never numbers."""

    def __init__(self, device: str = "cpu"):
        super().__init__()

    def compute(self, structures: Sequence[Structure]) -> list[Prediction]:
        return [Prediction(float("nan"), p.forces, p.stress) for p in super().compute(structures)]


class SometimesNaN(LennardJones):
    """Lennard-Jones that returns NaN for every third structure by content, always the same ones."""

    def __init__(self, device: str = "cpu"):
        super().__init__()

    def compute(self, structures: Sequence[Structure]) -> list[Prediction]:
        predictions = super().compute(structures)
        for k, s in enumerate(structures):
            if int(s.numbers.sum()) % 3 == 0:
                predictions[k] = Prediction(float("nan"), predictions[k].forces, predictions[k].stress)
        return predictions


class FailingLater(LennardJones):
    """Lennard-Jones that cannot be loaded by a rank: only where no MPI launcher has set PROMOF_RANKS."""

    def __init__(self, device: str = "cpu"):
        if "PROMOF_RANKS" in os.environ:
            raise RuntimeError("no such device")
        super().__init__()
