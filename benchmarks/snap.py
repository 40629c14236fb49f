"""Assemblies closed per CPU second by batched snap against scipy's least squares one at a time, same start, same core.

Crystals with noise (0.3 Å, 10°, torsions 20°, cell 2 %) must close their contacts. scipy.optimize.least_squares
(`lm`, MINPACK, and `trf`) gets the residuals of snap with the crystal's contacts and all pairs within 1.5 Å of
touching, and their derivatives by forward differentiation; snap also has to find the contacts. Prints both final
energies, measured alike.

    python benchmarks/snap.py [--sets 8] [--copies 8]
"""

from __future__ import annotations

import argparse
import time
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import least_squares

from promof_hpc.assembly.components import crystal_components
from promof_hpc.assembly.prepared_shard import read_prepared
from promof_hpc.assembly.snap import SnapSettings, snap
from promof_hpc.assembly.snap_assign import Free
from promof_hpc.assembly.snap_ends import ends_of
from promof_hpc.assembly.snap_energy import Rig, Weights, points_of, view
from promof_hpc.assembly.snap_overlap import close_pairs, reach_of
from promof_hpc.assembly.snap_step import moved
from promof_hpc.assembly.stack import Poses, poses_of, rotation_of, stack

FOLDER = Path(str(files("promof_hpc"))) / "data" / "small_mofs" / "train"
SHIFT_ANG, TURN_DEG, TWIST_DEG, STRAIN = 0.3, 10.0, 20.0, 0.02
WEIGHTS = Weights(behind=1.0, repulsion=1.0, volume=5.0)


def noised(poses: Poses, generator: torch.Generator) -> Poses:
    """Poses with normal noise."""

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(poses.cells)

    b, k, _ = poses.centroids.shape
    bend = STRAIN * normal(b, 3, 3)
    stretch = torch.eye(3).to(bend) + (bend + bend.mT) / 2
    axis = normal(b, k, 3)
    turn = axis / axis.norm(dim=-1, keepdim=True) * np.deg2rad(TURN_DEG) * normal(b, k, 1)
    return Poses(
        poses.cells @ stretch,
        rotation_of(turn) @ poses.rotations,
        poses.centroids @ stretch + SHIFT_ANG * normal(b, k, 3),
        poses.angles + np.deg2rad(TWIST_DEG) * normal(*poses.angles.shape),
    )


class OneAssembly:
    """Residuals of one assembly as a function of the change from its start."""

    def __init__(self, components, crystal, start):
        fixed = stack([components], torch.float64)
        self.rig = Rig(fixed, ends_of(fixed), reach_of(fixed), 11.0 * fixed.atoms.sum(1).double())
        self.crystal = Poses(*(getattr(crystal, n).double() for n in ("cells", "rotations", "centroids", "angles")))
        self.start = Poses(*(getattr(start, n).double() for n in ("cells", "rotations", "centroids", "angles")))
        e = self.rig.ends.size.shape[1]
        free = Free.of(self.rig, torch.zeros(1, e, e, dtype=torch.float64), WEIGHTS.behind)
        self.matched = free.choose(points_of(self.rig, self.crystal), self.crystal.cells).matched
        self.pairs = self.close(self.start, 1.5)
        self.size = 6 * fixed.blocks.shape[1] + fixed.torsions.shape[1] + 6
        self.slopes = torch.func.jacfwd(self.residuals)

    def close(self, poses, skin):
        """Pairs of atoms closer than touching plus `skin`."""
        return close_pairs(self.rig.reach, points_of(self.rig, poses).atoms, poses.cells, skin)

    def residuals(self, change):
        """Weighted residuals [R] after a change of the parameters [P]."""
        poses = moved(self.rig.fixed, self.start, change[None])
        gaps = view(self.rig, poses, points_of(self.rig, poses), self.matched, self.pairs).gaps
        parts = (gaps.sites, WEIGHTS.behind**0.5 * gaps.behinds, gaps.overlap, WEIGHTS.volume**0.5 * gaps.volume)
        return torch.cat([p.flatten() for p in parts])

    def solve(self, method):
        """The energy that scipy reaches, with a fresh list of close pairs."""
        found = least_squares(
            lambda x: self.residuals(torch.from_numpy(x)).numpy(),
            np.zeros(self.size),
            jac=lambda x: self.slopes(torch.from_numpy(x)).numpy(),
            method=method,
            max_nfev=60,
        )
        return self.energy(moved(self.rig.fixed, self.start, torch.from_numpy(found.x)[None]))

    def energy(self, poses):
        """The energy of poses with the crystal's contacts."""
        return float(
            view(self.rig, poses, points_of(self.rig, poses), self.matched, self.close(poses, 0.0)).energy(WEIGHTS)
        )


def main():
    """Close the same starts with each and print the ratio."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--sets", type=int, default=8)
    parser.add_argument("--copies", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(1)
    mofs = read_prepared(sorted(FOLDER.glob("*.h5"))[0])
    seconds, closed, count = {"snap": 0.0, "lm": 0.0, "trf": 0.0}, {"snap": 0, "lm": 0, "trf": 0}, 0
    print(f"{'MOF':22s} atoms blocks | CPU s and closed of {options.copies}: snap | lm | trf | median energies")
    for number, mof in enumerate(mofs[:: max(1, len(mofs) // options.sets)][: options.sets]):
        components, solution = crystal_components(mof)
        fixed = stack([components] * options.copies)
        crystal = poses_of([solution] * options.copies, fixed)
        start = noised(crystal, torch.Generator().manual_seed(number))
        begin = time.process_time()
        found = snap(fixed, start, SnapSettings(behind_weight=WEIGHTS.behind, volume_weight=WEIGHTS.volume))
        energies = {"snap": found.energy.numpy()}
        spent = {"snap": time.process_time() - begin}
        ones = [OneAssembly(components, crystal.take([k]), start.take([k])) for k in range(options.copies)]
        for method in ("lm", "trf"):
            begin = time.process_time()
            energies[method] = np.array([one.solve(method) for one in ones])
            spent[method] = time.process_time() - begin
        count += options.copies
        for method, energy in energies.items():
            seconds[method] += spent[method]
            closed[method] += int((energy < SnapSettings().done_ang2).sum())
        cells = " | ".join(f"{spent[m]:6.2f} {int((energies[m] < 0.02).sum()):2d}" for m in energies)
        medians = " ".join(f"{np.median(e):.1e}" for e in energies.values())
        print(f"{mof.name:22s} {len(components.numbers):5d} {len(components.blocks):6d} | {cells} | {medians}")
    rates = {m: closed[m] / s for m, s in seconds.items()}
    for method, rate in rates.items():
        print(f"{method:5s} {closed[method]:4d} of {count} closed, {rate:8.2f} closed per CPU second")
    print(f"ratio snap/lm {rates['snap'] / rates['lm']:.1f}x, snap/trf {rates['snap'] / rates['trf']:.1f}x")


if __name__ == "__main__":
    main()
