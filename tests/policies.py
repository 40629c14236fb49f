"""Small policies and libraries for tests: a chemist that knows a few sets by heart, an engineer that knows nothing."""

from __future__ import annotations

import hashlib
import json
import shutil
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch

from promof_hpc.assembly.linker_library import LinkerLibrary
from promof_hpc.assembly.net_library import NetLibrary
from promof_hpc.assembly.net_start import net_starts
from promof_hpc.assembly.node_library import NodeLibrary
from promof_hpc.assembly.prepared import PreparedMof
from promof_hpc.assembly.prepared_shard import read_prepared
from promof_hpc.assembly.realise import Realiser
from promof_hpc.chem.sequence import Vocabulary, parse_sequence
from promof_hpc.errors import Refused
from promof_hpc.policy.chemist import Chemist, ChemistSettings
from promof_hpc.policy.conditions import Conditions
from promof_hpc.policy.engineer import Engineer, EngineerSettings
from promof_hpc.policy.sampling import log_probs, padded
from promof_hpc.policy.weights import save_chemist, save_engineer

SMALL = Path(str(files("promof_hpc"))) / "data" / "small_mofs"
KNOWN = 4  # sets that the chemist learns


@lru_cache
def small_mofs() -> tuple[PreparedMof, ...]:
    """The training part of the shipped set."""
    return tuple(read_prepared(SMALL / "train" / "00000.h5"))


def libraries(folder: Path) -> Path:
    """The shipped libraries in a folder of their own, with a linker library."""
    shutil.copytree(SMALL, folder)
    (folder / "linkers.h5").unlink(missing_ok=True)
    LinkerLibrary.of(small_mofs()).write(folder / "linkers.h5", {})
    return folder


@lru_cache
def easy_sequences() -> tuple[str, ...]:
    """Different short component sets of one net that can be built, the smallest cells first."""
    realiser = Realiser(NodeLibrary.read(SMALL / "nodes.h5"), LinkerLibrary.of(small_mofs()))
    nets = NetLibrary.read(SMALL / "nets.h5")
    single = [m for m in small_mofs() if m.decomposition.components == 1 and len(m.decomposition.structure) <= 40]
    found: list[str] = []
    for mof in sorted(single, key=lambda m: (len(m.decomposition.structure), m.name)):
        try:
            made = realiser.realise(parse_sequence(mof.sequence), np.random.default_rng(0))
        except Refused:
            continue
        if mof.sequence not in found and net_starts(made, nets, 1, np.random.default_rng(0)):
            found.append(mof.sequence)
        if len(found) == KNOWN:
            break
    return tuple(found)


def policies(folder: Path, steps: int = 160) -> Path:
    """A folder with both policies; a few seconds."""
    torch.manual_seed(0)
    vocabulary = Vocabulary(tuple(json.loads((SMALL / "vocabulary.json").read_text())))
    conditions = Conditions.of([{"pld_ang": 2.0 + 0.1 * k, "atoms": 10.0 + k} for k in range(40)])
    chemist = Chemist(ChemistSettings(len(vocabulary), len(conditions), width=64, depth=1, heads=1))
    tokens, lengths = padded([vocabulary.encode(text) for text in easy_sequences()])
    wanted = conditions.encode([{"pld_ang": 4.0, "atoms": 20.0}] * len(tokens))
    optimiser = torch.optim.Adam(chemist.parameters(), 5e-3)
    for _ in range(steps):
        loss = -log_probs(chemist, tokens, lengths, wanted).sum() / lengths.sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    save_chemist(folder, chemist, vocabulary, conditions)
    save_engineer(folder, Engineer(EngineerSettings(width=32, layers=1, heads=2, gaussians=8)))
    return folder


def state_digest(network: torch.nn.Module) -> str:
    """Digest of a network's parameters and buffers, to the last bit."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
