"""CHGNet 0.3.0, whose weights come inside the chgnet package: the second opinion."""

from __future__ import annotations

import contextlib
import hashlib
import io
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from promof_hpc.physics.neighbours import right_handed
from promof_hpc.physics.potential import Prediction, compute_on_device
from promof_hpc.structure import Structure

WEIGHTS = "pretrained/0.3.0/chgnet_0.3.0_e29f68s314m37.pth.tar"
MPTRJ_ELEMENTS = frozenset(range(1, 95)) - {84, 85, 86, 87, 88}  # the model has rows for these five, untrained
LARGEST_ATOMS = 200  # memory grows with angles: 7.6 GB were seen at 308 atoms


class CHGNet030:
    """CHGNet 0.3.0 as a `Potential`: another architecture than SevenNet-0, but the same training data (MPtrj)."""

    id = "chgnet-0.3.0"
    elements = MPTRJ_ELEMENTS
    max_atoms: int | None = LARGEST_ATOMS
    notes = "PBE level without dispersion (trained on MPtrj, like SevenNet-0: agreement is not independent)"

    def __init__(self, device: str = "cpu"):
        import chgnet
        import torch
        from chgnet.model import CHGNet

        weights = Path(chgnet.__file__).parent / WEIGHTS
        self.weights_sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
        self._device = torch.device(device)
        self.batched = self._device.type != "cpu"
        with _silent():
            # from_file, unlike load, never goes to look which graphics card has most memory
            self._model = CHGNet.from_file(str(weights), mlp_out_bias=False, version="0.3.0")
        self._model.to(self._device).eval().requires_grad_(False)
        self._model.graph_converter.set_isolated_atom_response("ignore")

    def compute(self, structures: Sequence[Structure]) -> list[Prediction]:
        """Energy (eV), forces [N, 3] (eV/Å) and stress [3, 3] (eV/Å³) of each structure.

        Raises:
            MemoryError: the batch does not fit on the device.
        """
        return compute_on_device(structures, self.batched, self._compute)

    def _compute(self, structures: Sequence[Structure]) -> list[Prediction]:
        import torch
        from chgnet.model.model import BatchedGraph

        crystals = [self._graph(right_handed(s)) for s in structures]
        expansions = (self._model.bond_basis_expansion, self._model.angle_basis_expansion)
        with _silent():
            graph = BatchedGraph.from_graphs(crystals, *expansions, compute_stress=True)
        # the model's own forces and stresses keep a graph for training, at twice the time and the memory
        answer = self._model._compute(graph)
        sizes = torch.tensor([len(s) for s in structures], device=self._device)
        strained = torch.autograd.grad((answer["e"] * sizes).sum(), [*graph.atom_positions, *graph.strains])
        per_atom = (answer["e"] + self._model.composition_model(crystals)).detach().double().cpu().numpy()
        gradients = [g.double().cpu().numpy() for g in strained]
        pairs = zip(gradients[: len(sizes)], gradients[len(sizes) :], strict=True)
        return [
            Prediction(float(e) * len(s), -by_position, _symmetric(by_strain) / s.volume)
            for s, e, (by_position, by_strain) in zip(structures, per_atom, pairs, strict=True)
        ]

    def _graph(self, structure: Structure) -> Any:
        from pymatgen.core import Structure as Crystal

        crystal = Crystal(structure.cell, structure.numbers, structure.fractional)
        return self._model.graph_converter(crystal).to(self._device)


def _symmetric(matrix: np.ndarray) -> np.ndarray:
    return 0.5 * (matrix + matrix.T)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """CHGNet prints what it loads, and makes torch warn at every call."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
