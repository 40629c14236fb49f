"""Structures relaxed per minute by our relaxer against ASE's, same potential, optimiser, start and core, in one run.

ASE: LBFGS on a FrechetCellFilter with sevenn's own calculator. Both stop by ASE's rule of the same fmax (0.05 eV/Å on
atoms and cell). Prints the ratio and where our time goes.

    python benchmarks/relax.py [--count 6] [--max-steps 60]
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from ase.filters import FrechetCellFilter
from ase.optimize import LBFGS
from sevenn.calculator import SevenNetCalculator

from promof_hpc.config import RelaxSettings
from promof_hpc.physics.registry import load_potential
from promof_hpc.physics.relax import relax
from promof_hpc.screen.library import scan

DEMO = Path(__file__).parents[1] / "promof_hpc" / "data" / "demo"


def relax_with_ase(structure, calculator, max_steps):
    """CPU seconds, calls and energy per atom of ASE's relaxation."""
    atoms = structure.to_ase()
    atoms.calc = calculator
    begin = time.process_time()
    optimizer = LBFGS(FrechetCellFilter(atoms), logfile=None, maxstep=0.2)
    optimizer.run(fmax=0.05, steps=max_steps)
    return time.process_time() - begin, optimizer.nsteps + 1, atoms.get_potential_energy() / len(atoms)


class Timed:
    """A potential that adds up the CPU time of its calls."""

    def __init__(self, potential):
        self._potential, self.seconds = potential, 0.0

    def __getattr__(self, name):
        return getattr(self._potential, name)

    def compute(self, structures):
        """As the potential does."""
        begin = time.process_time()
        result = self._potential.compute(structures)
        self.seconds += time.process_time() - begin
        return result


def main():
    """Relax every structure with both, alternating, and print the ratio."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=6)
    parser.add_argument("--max-steps", type=int, default=60)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    ours, theirs = Timed(load_potential("sevennet-0")), SevenNetCalculator("7net-0")
    # a stress of 0.2 GPa is 0.05 eV of virial an atom at 40 Å³ an atom: about ASE's rule
    settings = RelaxSettings(max_steps=options.max_steps)
    structures = [(e.name, e.read()) for e in scan(DEMO).entries[: options.count]]
    ours.compute([structures[0][1]])  # compile before the clock runs
    ours.seconds = 0.0
    print(f"{'MOF':26s} atoms | ours s  calls   eV/atom | ASE s  calls   eV/atom | ratio")
    totals = np.zeros(2)
    for name, structure in structures:
        begin = time.process_time()
        result = relax([structure], ours, settings)[0]
        mine = time.process_time() - begin
        his, calls, energy = relax_with_ase(structure, theirs, options.max_steps)
        totals += mine, his
        ours_ev = result.last.energy / len(structure)
        print(
            f"{name:26s} {len(structure):5d} | {mine:6.1f} {result.force_calls:5d} {ours_ev:9.4f}"
            f" | {his:6.1f} {calls:5d} {energy:9.4f} | {his / mine:.1f}"
        )
    rate = 60 * len(structures) / totals
    print(f"structures per CPU minute: ours {rate[0]:.1f}, ASE {rate[1]:.1f}: ratio {rate[0] / rate[1]:.2f}x")
    print(f"our time: {ours.seconds / totals[0]:.1%} potential, {1 - ours.seconds / totals[0]:.1%} optimiser and tests")


if __name__ == "__main__":
    main()
