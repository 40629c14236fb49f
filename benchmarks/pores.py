"""Pores against Zeo++ (pyzeo, high accuracy): processor time per MOF, and the distance of both to CoRE MOF 2019.

Each Zeo++ run is a child process with a time-out, since the library ends its process on an error; a run that is cut
off counts with the time-out, so the ratio is a lower bound then.
"""

from __future__ import annotations

import argparse
import csv
import random
import subprocess
import sys
import tarfile
import tempfile
import time
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from ase.io import read

from promof_hpc.physics.pores import pores
from promof_hpc.structure import Structure

ZEO = """
import sys, time, pyzeo
start = time.process_time()
network = pyzeo.AtomNetwork.read_from_CIF(sys.argv[1])
if sys.argv[2] == "high":
    pyzeo.high_accuracy_atomnet(network, "DEF")
network.calculate_free_sphere_parameters(sys.argv[3])
open(sys.argv[3], "a").write(f" {time.process_time() - start}")
"""


def sampled(count: int, seed: int, max_bytes: int, folder: Path) -> dict[Path, tuple[float, float]]:
    """Extract `count` random CIFs of CoRE MOF 2019 of at most `max_bytes` to `folder`; their LCD and PLD in Å."""
    spec = find_spec("CoRE_MOF")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("core-mof is not installed: pip install core-mof")
    data = Path(spec.submodule_search_locations[0]) / "data"
    with open(data / "2019-ASR.csv", encoding="utf-8-sig") as table:
        known = {r["filename"]: (float(r["LCD"]), float(r["PLD"])) for r in csv.DictReader(table) if r["LCD"]}
    names = sorted(known)
    random.Random(seed).shuffle(names)
    rank = {name: position for position, name in enumerate(names)}
    small: dict[str, bytes] = {}
    with tarfile.open(data / "2019-ASR.tar.xz") as archive:
        for member in archive:
            name = Path(member.name).stem
            if name in rank and member.size <= max_bytes and (file := archive.extractfile(member)) is not None:
                small[name] = file.read()
    chosen = {}
    for name in sorted(small, key=rank.__getitem__)[:count]:
        path = folder / f"{name}.cif"
        path.write_bytes(small[name])
        chosen[path] = known[name]
    return chosen


def zeopp(cif: Path, accuracy: str, limit_s: float) -> tuple[float, float, float] | None:
    """LCD and PLD in Å and processor seconds of Zeo++ in a child process; None if it failed or ran out of time."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "zeo.res"
        command = [sys.executable, "-c", ZEO, str(cif), accuracy, str(result)]
        try:
            subprocess.run(command, check=True, timeout=limit_s, capture_output=True)
            lcd, pld, _, seconds = (float(x) for x in result.read_text().split()[-4:])
        except (subprocess.SubprocessError, OSError, ValueError):
            return None
    return lcd, pld, seconds


def ours(cif: Path) -> tuple[float, float, float]:
    """LCD and PLD in Å and processor seconds of `pores`, reading included."""
    start = time.process_time()
    found = pores(Structure.from_ase(read(cif)))
    return found.lcd_ang, found.pld_ang, time.process_time() - start


def describe(label: str, results: list[tuple[float, float, float] | None], known: list[tuple[float, float]]) -> None:
    """Print errors against CoRE MOF, time and failures of one program."""
    done = [(r, k) for r, k in zip(results, known, strict=True) if r is not None]
    if not done:
        print(f"{label:20s} none of {len(results)} finished")
        return
    off = np.abs([[r[0] - k[0], r[1] - k[1]] for r, k in done])
    median, worst = np.median(off, axis=0), off.max(axis=0)
    seconds = np.median([r[2] for r, _ in done])
    print(
        f"{label:20s} {len(done)}/{len(results)} done, {seconds:6.2f} s median, "
        f"LCD off by {median[0]:.3f} median {worst[0]:.3f} max, PLD {median[1]:.3f} median {worst[1]:.3f} max (Å)"
    )


def main() -> None:
    """Measure and print; the last line is the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mofs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit-s", type=float, default=60.0, help="time-out of one Zeo++ run")
    parser.add_argument("--max-bytes", type=int, default=10_000, help="largest CIF taken (about 120 atoms)")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        chosen = sampled(options.mofs, options.seed, options.max_bytes, Path(folder))
        paths, known = list(chosen), list(chosen.values())
        ours(paths[0])  # compiles
        mine = [ours(path) for path in paths]
        high = [zeopp(path, "high", options.limit_s) for path in paths]
        plain = [zeopp(path, "plain", options.limit_s) for path in paths]
    describe("pores", list(mine), known)
    describe("Zeo++ high accuracy", high, known)
    describe("Zeo++ plain", plain, known)
    ratios = [(h[2] if h else options.limit_s) / m[2] for m, h in zip(mine, high, strict=True)]
    print(f"pores: {np.median(ratios):.0f} times faster than Zeo++ at high accuracy (median of {len(ratios)} MOFs)")


if __name__ == "__main__":
    main()
