"""How long training stands still for a checkpoint of both policies at released size, against writing on the spot.

    PYTHONPATH=. python benchmarks/checkpoint.py [FOLDER]

Networks of the released sizes with Adam's state, kept as a campaign keeps them: training stops for a copy to host
memory, and a thread writes, flushes and publishes it. The reference is `torch.save` of the same tensors, for which
training would stop. FOLDER lies on the disk that is to be measured.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from promof_hpc.chem.sequence import Vocabulary, build_vocabulary
from promof_hpc.design.learning.engine import AdamEngine
from promof_hpc.policy.chemist import Chemist, ChemistSettings
from promof_hpc.policy.conditions import Conditions
from promof_hpc.policy.engineer import Engineer
from promof_hpc.policy.mofflow2 import RELEASED
from promof_hpc.policy.weights import copy_chemist, copy_engineer
from promof_hpc.store.checkpoint import Write, save_checkpoint
from promof_hpc.store.run_dir import RunDir

ROUNDS = 3
SEQUENCE = "<BOS> [Zn].[Zn] <SEP> O=C([O-])c1ccc(C(=O)[O-])cc1 <EOS>"
RELEASED_TOKENS = 512


class Policies:
    """Both networks after a step, so that Adam has its moments."""

    def __init__(self) -> None:
        self.vocabulary, self.conditions = Vocabulary(build_vocabulary([SEQUENCE]).tokens), Conditions.of([])
        settings = ChemistSettings(RELEASED_TOKENS, 1, width=1024, depth=6, heads=8)
        self.chemist, self.engineer = Chemist(settings), Engineer(RELEASED)
        self.engines = [
            AdamEngine("chemist", self.chemist, 1e-5, 1.0),
            AdamEngine("engineer", self.engineer, 1e-5, 1.0),
        ]
        for engine, network in zip(self.engines, (self.chemist, self.engineer), strict=True):
            engine.step([torch.stack([p.sum() for p in network.parameters()]).sum()])

    @property
    def networks(self) -> list[nn.Module]:
        """Chemist and engineer."""
        return [self.chemist, self.engineer]

    def copy(self, folder: Path) -> Write:
        """What `Promof.save` does."""
        optimisers = [engine.save(folder) for engine in self.engines]
        copied = [copy_chemist(self.chemist, self.vocabulary, self.conditions), copy_engineer(self.engineer)]

        def write() -> None:
            for policy in copied:
                policy.save(folder)
            for optimiser in optimisers:
                optimiser()

        return write

    def save_on_the_spot(self, path: Path) -> None:
        """The reference."""
        states = [e._optimiser.state_dict() for e in self.engines]
        torch.save([*(n.state_dict() for n in self.networks), *states], path)


def main(parent: Path | None) -> None:
    """Measure and print."""
    policies = Policies()
    count = sum(p.numel() for network in policies.networks for p in network.parameters())
    print(f"{count / 1e6:.0f} million parameters, {3 * 4 * count / 1e9:.2f} GB with Adam's moments")
    with tempfile.TemporaryDirectory(dir=parent) as place:
        run = RunDir.create(Path(place) / "run")
        run.checkpoints.mkdir(exist_ok=True)
        for number in range(1, ROUNDS + 1):
            begin = time.perf_counter()
            publish = save_checkpoint(run, number, policies.copy)
            copied = time.perf_counter()
            publish()
            written = time.perf_counter()
            policies.save_on_the_spot(Path(place) / "reference.pt")
            reference = time.perf_counter() - written
            stood = copied - begin
            print(
                f"copy {stood:.2f} s, written in the background in {written - copied:.2f} s; "
                f"torch.save {reference:.2f} s: training stands still {reference / stood:.1f}x shorter"
            )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
