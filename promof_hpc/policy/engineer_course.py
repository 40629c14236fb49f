"""How the engineer is pretrained: flow matching from noise to the crystals of known MOFs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from promof_hpc.assembly.components import Components, Solution, crystal_components, matched_components
from promof_hpc.assembly.node_library import NodeLibrary
from promof_hpc.assembly.prepared import PreparedMof
from promof_hpc.assembly.stack import stack
from promof_hpc.config.pretrain import EngineerTraining
from promof_hpc.errors import UsageError
from promof_hpc.policy.batches import BatchOrder, step_generator
from promof_hpc.policy.coupling import partners_of, stack_copies
from promof_hpc.policy.engineer import Engineer, EngineerSettings
from promof_hpc.policy.flow import Losses, loss, states_of
from promof_hpc.policy.symmetry import BlockCopies, copies_of
from promof_hpc.policy.training_data import TrainingData
from promof_hpc.policy.weights import save_engineer

VALIDATION_PASSES = 2  # times drawn for each held-out MOF, always the same


@dataclass(frozen=True)
class Known:
    """One geometry of a MOF: components, how the crystal puts them together, and what looks the same."""

    components: Components
    solution: Solution

    @cached_property
    def copies(self) -> Sequence[BlockCopies]:
        """Found when first asked for: finding them for a whole training set takes minutes."""
        return copies_of(self.components, self.solution)


class EngineerCourse:
    """Flow matching on crystals, with the crystal's own blocks, with conformers and templates, or with either."""

    policy = "engineer"

    def __init__(self, data: TrainingData, settings: EngineerTraining):
        """Take the training set.

        Raises:
            UsageError: no MOF is small enough, or none is matched where only such are wanted.
        """
        self._settings = settings
        self._train = [k for k in (_known(m, data.nodes, settings) for m in data.train) if k]
        held_out = [k for k in (_known(m, data.nodes, settings) for m in data.val) if k]
        if not self._train or not held_out:
            raise UsageError(
                f"no MOF has at most {settings.max_atoms} atoms and geometry '{settings.geometry}'; raise max_atoms"
            )
        self._order = BatchOrder([_atoms(k) for k in self._train], settings.batch_pairs, 2.0, settings.seed)
        self._val = [
            [held_out[k] for k in items]
            for items in BatchOrder([_atoms(k) for k in held_out], settings.batch_pairs, 2.0, 0).epoch(0)
        ]
        torch.manual_seed(settings.seed)
        size = EngineerSettings(settings.width, settings.layers, settings.heads, settings.gaussians)
        self.network = Engineer(size)
        self.identity: Mapping[str, Any] = {
            "data_sha256": data.digest, "mofs": len(self._train), "validation_mofs": len(held_out),
            "matched": sum(len(k) == 2 or settings.geometry == "matched" for k in self._train),
            "network": asdict(size),
        }  # fmt: skip

    def loss(self, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Losses of `flow.loss` on one batch; where a MOF has two geometries, either by chance."""
        offered = [self._train[k] for k in self._order.batch(step)]
        which = torch.randint(2, (len(offered),), generator=generator).tolist()
        return _named(
            self._losses(self.network, [k[w % len(k)] for k, w in zip(offered, which, strict=True)], generator)
        )

    def validate(self, network: Engineer) -> dict[str, float]:
        """The same on held-out MOFs, the matched geometry where there is one, at times and noise that never change."""
        sums: dict[str, float] = {}
        count = VALIDATION_PASSES * sum(len(batch) for batch in self._val)
        for number in range(VALIDATION_PASSES):
            for place, batch in enumerate(self._val):
                generator = step_generator(number, "validation", place)
                with torch.no_grad():
                    losses = _named(self._losses(network, [k[-1] for k in batch], generator))
                for name, value in losses.items():
                    sums[name] = sums.get(name, 0.0) + float(value) * len(batch) / count
        return sums

    def card(self, network: Engineer) -> Mapping[str, Any]:
        """Nothing: how well it assembles is measured by `promof assess`."""
        return {}

    def save(self, folder: Path, network: Engineer) -> str:
        """Write the engineer."""
        return save_engineer(folder, network)

    @staticmethod
    def _losses(network: Engineer, known: Sequence[Known], generator: torch.Generator) -> Losses:
        solutions = [k.solution for k in known]
        fixed = stack([k.components for k in known]).to(next(network.parameters()).device)
        copies = stack_copies([k.copies for k in known], fixed)
        return loss(network, fixed, states_of(solutions, fixed), generator, partners_of(solutions, fixed), copies)


def _known(mof: PreparedMof, nodes: NodeLibrary, settings: EngineerTraining) -> tuple[Known, ...]:
    """The geometries of a MOF that are wanted and there are, the crystal's first; none where it is too large."""
    if len(mof.decomposition.structure) > settings.max_atoms:
        return ()
    found = [Known(*crystal_components(mof))] if settings.geometry != "matched" else []
    if settings.geometry != "crystal" and mof.fully_matched:
        with suppress(ValueError):  # a template may have other contacts than the crystal's node
            found.append(Known(*matched_components(mof, nodes)))
    return tuple(found)


def _atoms(known: Sequence[Known]) -> int:
    return len(known[0].components.numbers)


def _named(losses: Losses) -> dict[str, Tensor]:
    parts = dict(vars(losses))
    return {"loss": parts.pop("total"), **parts}
