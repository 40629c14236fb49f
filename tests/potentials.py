"""Potentials with faults for tests: used as `tests.potentials:NAME` with the repository in PYTHONPATH."""

import hashlib
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


class Wide(LennardJones):
    """Lennard-Jones with radii 4 % larger: another potential, to which much of the first one's is stable."""

    id = "lennard-jones-wide"
    scale = 1.04

    def __init__(self, device: str = "cpu"):
        super().__init__()
        self._radii = self.scale * self._radii
        self.weights_sha256 = hashlib.sha256(repr(self._radii.round(6).tolist()).encode()).hexdigest()


class Wider(Wide):
    """Radii 30 % larger: what the first one relaxed, this one blows up."""

    id = "lennard-jones-wider"
    scale = 1.3


class WideWithoutNeon(Wide):
    """Was not trained on Ne."""

    elements = LennardJones.elements - {10}


class WideCrashing(Wide):
    """Kills its process on about a third of all structures, always the same ones."""

    def compute(self, structures: Sequence[Structure]) -> list[Prediction]:
        if any(int(s.digest(), 16) % 3 == 0 for s in structures):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().compute(structures)


class WideAndSlow(Wide):
    """Takes 0.3 s a structure."""

    def compute(self, structures: Sequence[Structure]) -> list[Prediction]:
        time.sleep(0.3 * len(structures))
        return super().compute(structures)


class TheSame(LennardJones):
    """The very Lennard-Jones under a name of one's own."""

    def __init__(self, device: str = "cpu"):
        super().__init__()


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
