"""How busy a farm keeps its ranks: measured with 1, 2 and 4 ranks, simulated with the same dealer up to 4,096.

    PYTHONPATH=. python benchmarks/farm_scaling.py COSTS_RUN [--structures 100000] [--batch 8] [--lag-s 1.0]

Measured: MPI ranks on this machine evaluate batches under a potential that sleeps, so that ranks do not share cores.
Simulated: ranks that ask, compute and report as in `hpc.farm`, at the speed that the real `Dealer` has here on a run of
as many batches; batches cost what relaxations of COSTS_RUN cost (its result rows, drawn with replacement), are dealt
largest atoms first, and a result counts once it is seen `lag-s` after it was written.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from hpc.farm import Dealer, Tag
from hpc.preemption import Requests
from promof_hpc.config import FarmSettings, ScreenConfig, dump_config
from promof_hpc.physics.potential import Prediction
from promof_hpc.report.utilisation import fold_events
from promof_hpc.store.budget import batches_of
from promof_hpc.store.candidates import Candidate, Entry, candidate_shard, cut_batches
from promof_hpc.store.claims import Owner
from promof_hpc.store.events import read_events
from promof_hpc.store.results import read_results
from promof_hpc.store.run_dir import RunDir, read_round
from promof_hpc.store.shard import publish_text, write_shard
from promof_hpc.structure import Structure

SLEEP_S = 0.05  # of the sleeping potential for a structure
MEASURED_RANKS, MEASURED_BATCHES = (1, 2, 4), 160
SIMULATED_RANKS = (16, 64, 256, 1024, 4096)
POLL_S = 0.005  # between two looks of a rank for its answer
ROOT = Path(__file__).parents[1]


class Sleeping:
    """A potential that takes its time and no processor."""

    id, weights_sha256, notes = "sleeping", "s" * 64, "for benchmarks"
    elements, max_atoms, batched = frozenset(range(1, 97)), None, True

    def __init__(self, device: str = "cpu"):
        """Any device will do."""

    def compute(self, structures):
        """Nothing moves."""
        time.sleep(SLEEP_S * len(structures))
        return [Prediction(0.0, np.zeros((len(s), 3)), np.zeros((3, 3))) for s in structures]


def make_run(folder: Path, atoms: np.ndarray, batch: int) -> RunDir:
    """A screening whose library has been read: argon crystals with so many atoms."""
    config = ScreenConfig(
        library="made", reference="none", farm={"batch_structures": batch, "batch_atoms": 10**9},
        evaluation={"stages": "read,relax,energy", "potential": {"name": "benchmarks.farm_scaling:Sleeping"}},
    )  # fmt: skip
    run = RunDir.create(folder)
    record = {"kind": "screen", "potential": {"id": Sleeping.id, "weights_sha256": Sleeping.weights_sha256}}
    publish_text(run.provenance, json.dumps(record))
    publish_text(run.config, dump_config(config))
    candidates = [Candidate(f"{k:064x}", _crystal(int(n))) for k, n in enumerate(atoms)]
    batches = cut_batches(atoms.tolist(), batch, 10**9)
    run.make_round(0)
    entries = [Entry(f"entry {k}", c.evaluation_id) for k, c in enumerate(candidates)]
    write_shard(run.candidates(0), candidate_shard(candidates, batches, entries, {}))
    publish_text(run.ingested, "{}")
    return run


def _crystal(atoms: int) -> Structure:
    """Argon in a row, far enough apart."""
    positions = np.zeros((atoms, 3))
    positions[:, 0] = 4.0 * np.arange(atoms)
    return Structure(np.full(atoms, 18, np.int32), positions, np.diag([4.0 * atoms, 4.0, 4.0]))


def measure(ranks: int) -> tuple[float, float]:
    """Seconds from the first batch to the last, and the share of them that ranks computed."""
    with tempfile.TemporaryDirectory() as folder:
        run = make_run(Path(folder) / "run", np.full(2 * MEASURED_BATCHES, 2), 2)
        environment = {**os.environ, "PROMOF_RANKS": str(ranks), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        mpiexec = [str(Path(sys.executable).parent / "mpiexec"), "-n", str(ranks)]
        subprocess.run([*mpiexec, sys.executable, "-m", "hpc.farm", str(run.path)], env=environment, check=True,
                       stderr=subprocess.DEVNULL)  # fmt: skip
        use = fold_events(read_events(run))
        return use.working_s, use.busy


class _Silent:
    """Takes the place of the communicator to which a dealer answers."""

    def send(self, message, dest):
        """Nobody listens."""


class _From:
    """Where a message comes from."""

    def __init__(self, tag: Tag):
        self._tag = tag

    def Get_source(self) -> int:  # noqa: N802, MPI's name
        """Always the same rank."""
        return 0

    def Get_tag(self) -> Tag:  # noqa: N802, MPI's name
        """What it is about."""
        return self._tag


def dealing_cost_s(atoms: np.ndarray, batch: int, deals: int = 400) -> tuple[float, float]:
    """Seconds that the real dealer takes to deal a batch and to take a report, and to look around, on such a run."""
    with tempfile.TemporaryDirectory() as folder:
        run = make_run(Path(folder) / "run", atoms, batch)
        for plan in batches_of(read_round(run, 0), 0)[: len(atoms) // batch // 2]:  # half way, as on average
            publish_text(run.result(plan.name), "")
        dealer = Dealer(run, FarmSettings(), Owner.here(), _Silent(), _Silent(), Requests())
        dealer._look_around()  # the first one reads the round
        begin = time.perf_counter()
        dealer._look_around()
        look_s = time.perf_counter() - begin
        begin = time.perf_counter()
        for _ in range(deals):
            dealer._take(None, _From(Tag.NEXT))
            dealer._take((next(reversed(dealer.in_hand)), []), _From(Tag.DONE))
        return (time.perf_counter() - begin) / deals, look_s


def simulate(costs_s: np.ndarray, ranks: int, deal_s: float, look_s: float, lag_s: float) -> float:
    """Share of the time until the last result is seen that `ranks` ranks compute; batches in the order of dealing."""
    free = [(0.0, rank) for rank in range(ranks)]
    heapq.heapify(free)
    dealer_free = next_look = end = 0.0
    for cost in costs_s:
        asked, rank = heapq.heappop(free)
        begin = max(asked, dealer_free)
        if begin >= next_look:
            begin, next_look = begin + look_s, begin + look_s + 1.0
        dealer_free = begin + deal_s
        done = dealer_free + POLL_S / 2 + float(cost)
        end = max(end, done)
        heapq.heappush(free, (done, rank))
    return float(costs_s.sum()) / (ranks * (end + lag_s))


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("costs_run", type=Path)
    parser.add_argument("--structures", type=int, default=100_000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lag-s", type=float, default=1.0)
    asked = parser.parse_args()
    single, _ = measure(1)
    for ranks in MEASURED_RANKS:
        seconds, busy = measure(ranks)
        print(f"measured: {ranks} ranks, {single / seconds:.2f} x one rank, {busy:.1%} busy")
    rows = [e.row for e in read_results(RunDir.open(asked.costs_run)) if e.row.wall_s > 0]
    chosen = np.random.default_rng(0).integers(len(rows), size=asked.structures)
    atoms = np.array([r.atoms for r in rows])[chosen]
    seconds = np.array([r.wall_s for r in rows])[chosen]
    deal_s, look_s = dealing_cost_s(atoms, asked.batch)
    costs = np.array([seconds[members].sum() for members in cut_batches(atoms.tolist(), asked.batch, 10**9)])
    print(
        f"{len(rows)} measured relaxations, {seconds.mean():.3g} s on average, {asked.structures} drawn, "
        f"{len(costs)} batches of {asked.batch}; the dealer takes {1e3 * deal_s:.2f} ms a batch and "
        f"{1e3 * look_s:.0f} ms a look; lag {asked.lag_s:g} s"
    )
    for ranks in SIMULATED_RANKS:
        print(f"simulated: {ranks} ranks, {simulate(costs, ranks, deal_s, look_s, asked.lag_s):.1%} busy")


if __name__ == "__main__":
    main()
