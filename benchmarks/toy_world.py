"""The toy world: a handful of real building blocks under a potential with a known optimum, for comparing strategies.

    python benchmarks/toy_world.py runs/toy           prepares data, policies, reference set and study.yaml
    PYTHONPATH=. promof compare runs/toy/study.yaml   runs the study (add --jobs 2)

Known MOFs are those shipped with two nodes and at most 30 atoms. The world is every pair of metals on their linkers
that can be assembled; `world.json` lists it with the energies of its packings, so the best is known. The chemist is
pretrained on all of these sets, the engineer on the known MOFs, both for seconds. Chemistry, assembly, gate, campaign,
ledger and learning are the product's; only the energies are made up (`benchmarks/toy_landscape.py`).
"""

from __future__ import annotations

import itertools
import json
import shutil
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import yaml

from benchmarks.toy_landscape import Landscape, energy_ev_per_atom
from promof_hpc.assembly.prepared_shard import write_prepared
from promof_hpc.chem.blocks import Kind
from promof_hpc.chem.sequence import Vocabulary, build_vocabulary, parse_sequence, sorted_set
from promof_hpc.config import DesignConfig
from promof_hpc.config.evaluation import RelaxSettings
from promof_hpc.design.libraries import Libraries
from promof_hpc.design.proposing.by_net import NetAssembly
from promof_hpc.errors import Refused
from promof_hpc.physics.energies import BELOW_LOWEST_EV, Baseline, ReferenceSet, RelaxedMof
from tests.training_set import shipped_training, training_set

MOST_ATOMS, MOST_BLOCKS, NODES = 30, 8, 2
PACKINGS = 8  # assemblies of each set from which the world's energies are known
SEEDS, BUDGET = 20, 192
CHEMIST_STEPS, ENGINEER_STEPS = 400, 200
DESIGN = {
    "budget": BUDGET,
    "rounds": {"targets": 1, "sets": 10, "assemblies": 4},
    "assembly": {"atom_cap": MOST_ATOMS, "tries": 1, "start_time": 0.8},
    "reward": {"property_weight": 0.0, "floor": -1.0, "duplicate_cost": 0.3, "duplicate_bucket": 2},
    "sde": {"steps": 4},
    "learning": {"k": 3, "learning_rate_chemist": 5e-4, "kl_engineer": 0.1},
    "evaluation": {
        "stages": "read,relax,energy",
        "potential": {"name": "benchmarks.toy_landscape:Landscape"},
    },
    "farm": {"batch_structures": 64},
}
STRATEGIES = [
    {"name": "promof", "label": "promof Pass@3"},
    {"name": "promof", "label": "promof Pass@1", "set": {"learning": {"k": 1, "credit": "mean"}}},
    {"name": "sample"},
    {"name": "sample_filter"},
    {"name": "genetic"},
    {"name": "random"},
]


def prepare(folder: Path, seeds: int) -> Path:
    """Make everything that the study needs; returns the study's file."""
    folder.mkdir(parents=True)
    mofs = [m for m in shipped_training() if m.decomposition.components == 1 and _small(m)]
    data = training_set(folder / "data", mofs)
    (data / "val").mkdir()
    write_prepared(data / "val" / "00000.h5", mofs[::6], {"part": "val"})
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
    study = {"design": design, "strategies": STRATEGIES, "tasks": [{"name": "energy"}], "seeds": seeds}
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(study, sort_keys=False), encoding="utf-8")
    return path


def enumerate_world(libraries: Libraries) -> dict[str, dict[str, object]]:
    """Every pair of metals on the linkers of a known MOF that can be assembled, with the energies of its packings."""
    assembly = NetAssembly(DesignConfig(assembly={"atom_cap": MOST_ATOMS, "tries": 1}), libraries)
    metals = defaultdict(set)
    for text in libraries.sequences:
        known = parse_sequence(text)
        metals[known.linkers].update(known.nodes)
    world: dict[str, dict[str, object]] = {}
    for linkers, nodes in sorted(metals.items()):
        for pair in itertools.combinations_with_replacement(sorted(nodes), NODES):
            chosen = sorted_set(pair, linkers)
            try:
                components = assembly.realise(chosen, np.random.default_rng(0))
            except Refused:
                continue
            made = assembly.assemble(components, PACKINGS, np.random.default_rng(0))
            sound = [a.structure for a in made if a.gate.passed]
            if sound:
                energies = sorted({round(energy_ev_per_atom(s.numbers, s.volume / len(s)), 4) for s in sound})
                new = chosen.sequence not in libraries.sequences
                world[chosen.sequence] = {"new": new, "assembled": len(sound), "of": len(made), "ev_per_atom": energies}
    return world


def train_chemist(folder: Path, sequences: list[str]) -> None:
    """A small chemist that writes the sets of the world about equally often."""
    import torch

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


def _small(mof) -> bool:
    blocks = mof.decomposition.blocks
    nodes = sum(b.kind is Kind.METAL for b in blocks)
    return len(mof.decomposition.structure) <= MOST_ATOMS and len(blocks) <= MOST_BLOCKS and nodes == NODES


if __name__ == "__main__":
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/toy")
    if target.exists():
        shutil.rmtree(target)
    print(prepare(target, int(sys.argv[2]) if len(sys.argv) > 2 else SEEDS))
