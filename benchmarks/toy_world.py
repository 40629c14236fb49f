"""The toy world: a handful of real building blocks under a potential with a known optimum, for comparing strategies.

    PYTHONPATH=. python benchmarks/toy_world.py runs/toy [SEEDS]    prepares and runs what is missing, prints the table

Known MOFs are those shipped with two single metals as nodes, at most 30 atoms and 4 blocks. The world is every pair of
their metals on the linkers of each that can be assembled; `world.json` lists it with the energies of its crystals, so
the best is known. The chemist is pretrained on all of these sets, the engineer on the known MOFs, both for seconds.
Chemistry, gate, campaign, ledger, judging, learning and tables are the product's. Made up are the energies
(`toy_landscape.py`) and, because it is most of the time of a run, the way to a crystal (`Basins`). Every run is a
campaign in this process, evaluated where it is proposed: starting ranks would take as long as a run.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from benchmarks.toy_landscape import Landscape, chemistry_ev, energy_ev_per_atom
from hpc.comparison import Tables
from hpc.design import Parts, begin_design
from hpc.worker import Worker
from promof_hpc.assembly import assembler
from promof_hpc.assembly.assembler import Assembled
from promof_hpc.assembly.components import Components
from promof_hpc.assembly.prepared import PreparedMof
from promof_hpc.assembly.prepared_shard import write_prepared
from promof_hpc.assembly.snap import Pairing, Snapped, SnapSettings
from promof_hpc.assembly.stack import Poses, Stack, stack
from promof_hpc.chem.blocks import Kind
from promof_hpc.chem.sequence import Vocabulary, build_vocabulary, parse_sequence, sorted_set
from promof_hpc.config import DesignConfig
from promof_hpc.config.design import AssemblySettings
from promof_hpc.config.evaluation import RelaxSettings
from promof_hpc.config.reading import load_config
from promof_hpc.config.study import StudyConfig
from promof_hpc.design.campaign.loop import Campaign, Hands, Phase
from promof_hpc.design.libraries import Libraries
from promof_hpc.design.proposing.by_net import NetAssembly, finish_settings
from promof_hpc.design.proposing.trace import components_digest
from promof_hpc.errors import Refused
from promof_hpc.physics.energies import BELOW_LOWEST_EV, Baseline, ReferenceSet, RelaxedMof
from promof_hpc.store.events import EventLog
from promof_hpc.store.run_dir import Ended, end, has_ended
from tests.training_set import shipped_training, training_set

MOST_ATOMS, MOST_BLOCKS, NODES = 30, 4, 2
CRYSTALS = 8  # that the blocks of a set can become, failures among them
ENDS = 64  # of nodes or linkers in a cell, more than any has
BASIN = 0.02  # of the logarithm of the volume
LAST_DIGITS = 1e-5  # by which assemblies of one crystal differ
FIRST_SEED, SEEDS, BUDGET = 20, 20, 144  # worlds before this one were looked at with seeds below and above
CHEMIST_STEPS, ENGINEER_STEPS = 400, 200
DESIGN = {
    "budget": BUDGET,
    "rounds": {"targets": 1, "sets": 16, "assemblies": 4, "proposals_per_evaluation": 12},
    "assembly": {"atom_cap": MOST_ATOMS, "tries": 1, "start": "noise", "contact_weight": 0.0},
    "reward": {"property_weight": 0.0, "floor": -1.0},
    "sde": {"steps": 4, "window": 1},
    "learning": {
        "k": 3,
        "epochs": 8,
        "clip": 0.4,
        "learning_rate_chemist": 3e-3,
        "kl_chemist": 0.02,
        "entropy": 0.05,
    },
    "evaluation": {
        "stages": "read,relax,energy",
        "potential": {"name": "benchmarks.toy_landscape:Landscape"},
    },
    "farm": {"batch_structures": 64},
}
STRATEGIES = [
    {"name": "promof", "label": "promof Pass@3"},
    {"name": "promof", "label": "promof Pass@3, best of 3 sets", "set": {"learning": {"k_sets": 3}}},
    {"name": "promof", "label": "promof Pass@3, best of 6 sets", "set": {"learning": {"k_sets": 6}}},
    {"name": "promof", "label": "promof Pass@1", "set": {"learning": {"k": 1, "credit": "mean"}}},
    {"name": "sample"},
    {"name": "genetic"},
    {"name": "random"},
    {"name": "sample_filter"},
]


def prepare(folder: Path, seeds: int) -> None:
    """Make everything that the study needs."""
    folder.mkdir(parents=True)
    mofs = [m for m in shipped_training() if m.decomposition.components == 1 and _small(m)]
    data = training_set(folder / "data", mofs)
    (data / "val").mkdir()
    write_prepared(data / "val" / "00000.h5", mofs[::3], {"part": "val"})
    world = enumerate_world(Libraries.read(data))
    (folder / "world.json").write_text(json.dumps(world, indent=1))
    train_chemist(folder / "weights", sorted(world))
    train_engineer(folder / "weights", data)
    (folder / "reference.json").write_text(reference().to_json(), encoding="utf-8")
    design = {
        **DESIGN,
        "reference": str((folder / "reference.json").absolute()),
        "policy": {"weights": str((folder / "weights").absolute()), "data": str(data.absolute())},
    }
    numbers = list(range(FIRST_SEED, FIRST_SEED + seeds))
    study = {"design": design, "strategies": STRATEGIES, "tasks": [{"name": "energy"}], "seeds": numbers}
    (folder / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False), encoding="utf-8")


def enumerate_world(libraries: Libraries) -> dict[str, dict[str, object]]:
    """Every pair of the metals on the linkers of every known MOF that can be assembled, with its crystals."""
    assembly = NetAssembly(DesignConfig(assembly={"atom_cap": MOST_ATOMS, "tries": 1}), libraries)
    known = [parse_sequence(text) for text in libraries.sequences]
    metals = sorted({key for sets in known for key in sets.nodes})
    world: dict[str, dict[str, object]] = {}
    for linkers in sorted({sets.linkers for sets in known}):
        for pair in itertools.combinations_with_replacement(metals, NODES):
            chosen = sorted_set(pair, linkers)
            try:
                components = assembly.realise(chosen, np.random.default_rng(0))
            except Refused:
                continue
            made = assembly.assemble(components, CRYSTALS, np.random.default_rng(0))
            sound = [a.structure for a in made if a.gate.passed]
            if sound:
                world[chosen.sequence] = {
                    "new": chosen.sequence not in libraries.sequences,
                    "chemistry_ev": round(chemistry_ev(sound[0].numbers), 4),
                    "ev_per_atom": [round(energy_ev_per_atom(s), 4) for s in sound],
                }
    return world


def train_chemist(folder: Path, sequences: list[str]) -> None:
    """A small chemist that writes the sets of the world about equally often."""
    from promof_hpc.policy.chemist import Chemist, ChemistSettings
    from promof_hpc.policy.conditions import Conditions
    from promof_hpc.policy.sampling import log_probs, padded
    from promof_hpc.policy.weights import save_chemist

    torch.manual_seed(0)
    vocabulary = Vocabulary(build_vocabulary(sequences).tokens)
    conditions = Conditions.of([])
    chemist = Chemist(ChemistSettings(len(vocabulary), len(conditions), width=64, depth=2, heads=2, head_width=32))
    tokens, lengths = padded([vocabulary.encode(text) for text in sequences])
    optimiser = torch.optim.Adam(chemist.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, CHEMIST_STEPS)
    for _ in range(CHEMIST_STEPS):
        loss = -log_probs(chemist, tokens, lengths, conditions.nothing(len(tokens))).sum() / lengths.sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    save_chemist(folder, chemist, vocabulary, conditions)


def train_engineer(folder: Path, data: Path) -> None:
    """A small engineer, pretrained as `promof pretrain engineer` does it."""
    from promof_hpc.config.pretrain import EngineerTraining
    from promof_hpc.policy.engineer_course import EngineerCourse
    from promof_hpc.policy.pretrain import train
    from promof_hpc.policy.training_data import TrainingData

    settings = EngineerTraining(
        steps=ENGINEER_STEPS, width=32, layers=2, heads=2, gaussians=16, batch_pairs=8000, learning_rate=2e-3,
        ema=0.98, warmup_steps=20, validate_every=ENGINEER_STEPS,
    )  # fmt: skip
    train(EngineerCourse(TrainingData.read([data]), settings), settings, folder)


class Basins:
    """Stands in for snap, which is most of a toy run's time: an assembly falls into one of the crystals of its blocks.

    Those are what snap makes of the blocks on nets of the known MOFs, failures among them; they are made when they are
    first met. Which one an assembly becomes, but for the last digits, follows from the volume of its cell: basins are
    `BASIN` wide in its logarithm and take turns. So small changes of a cell lead to another crystal, as they do with
    snap, and an engineer decides by the cell that it proposes; contacts that it proposes do not matter.
    """

    def __init__(self, libraries: Libraries):
        self._nets, self._snap, self._making = libraries.nets, assembler.snap, False
        self._crystals: dict[str, list[Assembled]] = {}

    def __call__(self, fixed: Stack, poses: Poses, settings: SnapSettings, **rest: Any) -> Snapped:
        """See `assembly.snap.snap`."""
        if self._making:
            return self._snap(fixed, poses, settings, **rest)
        done = Snapped(
            poses=Poses(*(getattr(poses, name).clone() for name in ("cells", "rotations", "centroids", "angles"))),
            energy=torch.full((len(fixed),), torch.inf),
            displacement=torch.zeros(len(fixed)),
            pairing=Pairing(torch.zeros(len(fixed), ENDS, dtype=torch.long), torch.zeros(len(fixed), ENDS, 3).long()),
            worst_ang=torch.zeros(len(fixed)),
            tries=torch.ones(len(fixed), dtype=torch.long),
        )
        for row, components in enumerate(fixed.components):
            self._fall(done, row, self._crystals_of(components))
        return done

    def _fall(self, done: Snapped, row: int, crystals: list[Assembled]) -> None:
        """Replace one assembly by the crystal of its basin; it stays unfinished where there is none."""
        volume = float(torch.linalg.det(done.poses.cells[row].double()).abs())
        if not crystals or not 0.0 < volume < math.inf:
            return
        near = crystals[math.floor(math.log(volume) / BASIN) % len(crystals)]
        scale = 1.0 + LAST_DIGITS * math.sin(volume)
        blocks, torsions, ends = len(near.pose.centroids), len(near.pose.angles), len(near.pose.partner)
        done.poses.cells[row] = torch.from_numpy(near.pose.cell * scale)
        done.poses.rotations[row, :blocks] = torch.from_numpy(near.pose.rotations).to(done.poses.cells)
        done.poses.centroids[row, :blocks] = torch.from_numpy(near.pose.centroids * scale).to(done.poses.cells)
        done.poses.angles[row, :torsions] = torch.from_numpy(near.pose.angles).to(done.poses.cells)
        done.energy[row] = near.snap_energy_ang2
        done.pairing.partner[row, :ends] = torch.from_numpy(near.pose.partner)
        done.pairing.shifts[row, :ends] = torch.from_numpy(near.pose.shifts)

    def _crystals_of(self, components: Components) -> list[Assembled]:
        key = components_digest(stack([components]))
        if key not in self._crystals:
            self._making = True
            settings = finish_settings(AssemblySettings(tries=1, atom_cap=MOST_ATOMS))
            made = assembler.assemble_by_net(components, self._nets, CRYSTALS, settings, np.random.default_rng(0))
            self._making = False
            self._crystals[key] = made
        return self._crystals[key]


def run_study(folder: Path) -> str:
    """Do what is missing of the study, every run an ordinary campaign in this process; returns the tables' text."""
    config = load_config(StudyConfig, folder / "study.yaml")
    tables = Tables(folder, config, "Toy world", f"PYTHONPATH=. python benchmarks/toy_world.py {folder}")
    assembler.snap = Basins(Libraries.read(config.design.policy.data))
    results = ""
    for run in tables.missing():
        pursue(folder / run.name, run.config)
        results = tables.write()
        logging.info("%s done", run.name)
    return results


def pursue(place: Path, config: DesignConfig) -> None:
    """One campaign, evaluated where it is proposed."""
    run, parts = begin_design(place, config)
    if has_ended(run):
        return
    worker = Worker.load(run, 0)
    events = EventLog(run, "toy-trainer")

    def evaluate(number: int, batches: Collection[str]) -> None:
        for batch in sorted(set(batches) - set(run.committed(number))):
            worker.commit(batch, worker.evaluate(batch, lambda: None))

    def safe_point(phase: Phase, number: int) -> None:
        events.write("phase", phase=phase, round=number)

    parts = parts or Parts.load(config, worker.potential)
    hands = Hands(evaluate, safe_point, logging.info)
    ending = Campaign(run, config, parts.strategy, parts.scoring, hands).pursue()
    end(run, Ended(ending.name, ending.value))


def reference() -> ReferenceSet:
    """Reference MOFs at 0.00, 0.05, ... 0.95 eV/atom, and a baseline of zero: E_rel is the landscape's energy."""
    from ase.data import chemical_symbols

    potential = Landscape()
    baseline = Baseline(dict.fromkeys(chemical_symbols[1:97], 0.0), {}, 0.0, 0.0, 20)
    mofs = tuple(RelaxedMof(f"level {k:02d}", {"C": 1}, 0.05 * k, 0.0, 0.05 * k) for k in range(20))
    levels = {"p10": 0.1, "p50": 0.5, "p90": 0.9}
    return ReferenceSet(
        potential.id, potential.weights_sha256, RelaxSettings().digest(), dict.fromkeys(baseline.coefficients, 0.0),
        baseline, -BELOW_LOWEST_EV, levels, {"p10": -0.1, "p50": 0.0, "p90": 0.1}, mofs,
    )  # fmt: skip


def _small(mof: PreparedMof) -> bool:
    blocks = mof.decomposition.blocks
    nodes = [b for b in blocks if b.kind is Kind.METAL]
    small = len(mof.decomposition.structure) <= MOST_ATOMS and len(blocks) <= MOST_BLOCKS
    return small and len(nodes) == NODES and all(len(b.atoms) == 1 for b in nodes)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/toy")
    if not (target / "study.yaml").exists():
        prepare(target, int(sys.argv[2]) if len(sys.argv) > 2 else SEEDS)
    print(run_study(target))
