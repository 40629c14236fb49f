"""SevenNet-0 (11 July 2024), whose weights come inside the sevenn package: the embedded default potential."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from promof_hpc.physics.neighbours import directed_pairs, undirected_pairs
from promof_hpc.physics.potential import Prediction, compute_on_device
from promof_hpc.structure import Structure

if TYPE_CHECKING:
    import torch


class SevenNet0:
    """SevenNet-0 as a `Potential`.

    On a CPU structures go one by one through a faster convolution of the same numbers, on a GPU together through
    sevenn's own.
    """

    id = "sevennet-0"
    max_atoms: int | None = None
    notes = "PBE level without dispersion (trained on MPtrj)"

    def __init__(self, device: str = "cpu", batched: bool | None = None):
        """Load the weights.

        Args:
            device: torch device.
            batched: whether structures go together; by default on a GPU and not on a CPU.
        """
        import torch
        from sevenn import _const, _keys
        from sevenn.util import load_checkpoint

        weights = Path(_const.SEVENNET_0_11Jul2024)
        self.weights_sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
        self._device, self._keys = torch.device(device), _keys
        self.batched = self._device.type != "cpu" if batched is None else batched
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            checkpoint = load_checkpoint(weights)
            self._model = checkpoint.build_model()
        self.elements = frozenset(int(z) for z in checkpoint.config[_keys.TYPE_MAP])
        self._cutoff_ang = float(checkpoint.config[_keys.CUTOFF])
        self._model.to(self._device).eval().requires_grad_(False)
        self._model.set_is_batch_data(True)
        if not self.batched:
            self._use_pairs()

    def _use_pairs(self) -> None:
        from promof_hpc.physics.pair_convolution import PairConvolution

        for name, module in list(self._model.named_children()):
            if name.endswith("_convolution"):
                self._model.replace_module(name, PairConvolution(module))

    def compute(self, structures: Sequence[Structure]) -> list[Prediction]:
        """Energy (eV), forces [N, 3] (eV/Å) and stress [3, 3] (eV/Å³) of each structure.

        Raises:
            MemoryError: the batch does not fit on the device.
        """
        return compute_on_device(structures, self.batched, self._compute)

    def _compute(self, structures: Sequence[Structure]) -> list[Prediction]:
        import torch

        out = self._model(self._graph(structures))
        sizes = [len(s) for s in structures]
        # summed in double precision: a float of a whole cell's energy is only good to 1e-6 eV/atom
        atomic = out[self._keys.ATOMIC_ENERGY].detach().double().flatten()
        energies = [float(part.sum()) for part in torch.split(atomic.cpu(), sizes)]
        forces = torch.split(out[self._keys.PRED_FORCE].detach().double().cpu(), sizes)
        stresses = out[self._keys.PRED_STRESS].detach().double().cpu().numpy()
        return [Prediction(e, f.numpy(), _stress(v)) for e, f, v in zip(energies, forces, stresses, strict=True)]

    def _graph(self, structures: Sequence[Structure]) -> dict[str, Any]:
        """The structures as one graph in sevenn's keys, atoms of later structures numbered on."""
        import torch

        from promof_hpc.physics import pair_convolution

        search = directed_pairs if self.batched else undirected_pairs
        pairs = [search(s, self._cutoff_ang) for s in structures]
        sizes = np.array([len(s) for s in structures])
        offsets = np.cumsum(sizes) - sizes
        first = np.concatenate([p.first + o for p, o in zip(pairs, offsets, strict=True)])
        second = np.concatenate([p.second + o for p, o in zip(pairs, offsets, strict=True)])
        numbers = np.concatenate([s.numbers for s in structures]).astype(np.int64)
        arrays = {
            self._keys.NODE_FEATURE: numbers,
            self._keys.ATOMIC_NUMBERS: numbers,
            self._keys.EDGE_IDX: np.stack([first, second]),
            self._keys.EDGE_VEC: np.concatenate([p.vectors for p in pairs]).astype(np.float32),
            self._keys.CELL_VOLUME: np.array([s.volume for s in structures], np.float32),
            self._keys.NUM_ATOMS: sizes,
            self._keys.BATCH: np.repeat(np.arange(len(structures)), sizes),
            pair_convolution.FIRST: first,
            pair_convolution.SECOND: second,
        }
        graph: dict[str, torch.Tensor] = {k: torch.from_numpy(v).to(self._device) for k, v in arrays.items()}
        return graph


def _stress(pressure: np.ndarray) -> np.ndarray:
    """sevenn's xx, yy, zz, xy, yz, zx, positive under pressure, as a symmetric [3, 3], positive under tension."""
    xx, yy, zz, xy, yz, zx = -pressure
    return np.array([[xx, xy, zx], [xy, yy, yz], [zx, yz, zz]])
