"""UMA through fairchem-core's own code, from a staged checkpoint file: the production potential. No network."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from promof_hpc.errors import UsageError
from promof_hpc.physics.neighbours import right_handed
from promof_hpc.physics.potential import Prediction, compute_on_device
from promof_hpc.structure import Structure

GET_WEIGHTS = (
    "accept the licence of facebook/UMA on the model hub, download checkpoints/uma-s-1p1.pt (or a newer one) once on a "
    "login node to a file system that compute nodes see, and pass --weights FILE"
)
LEVELS = {
    "omat": "PBE level without dispersion",
    "odac": "PBE-D3 level, trained on CO2 and H2O adsorption, few bare MOFs",
    "omc": "PBE-D3 level, molecular crystals",
    "omol": "wB97M-V level, molecules",
    "oc20": "RPBE level, catalysis",
}


class UMA:
    """A UMA checkpoint under one of its tasks as a `Potential`.

    The file is a full pickle: loading it runs its code, so load only files whose digest you know.

    Attributes:
        stress_trained: whether the checkpoint was trained on stress for this task. Where it was not, fairchem
            returns a stress all the same, and a cell must not be relaxed by it.
    """

    max_atoms: int | None = None

    def __init__(
        self,
        weights: Path | None,
        task: str = "omat",
        device: str = "cpu",
        activation_checkpointing: bool | None = None,
    ):
        """Load a checkpoint.

        Args:
            weights: checkpoint file.
            task: head of the checkpoint, for instance `omat`.
            device: torch device; with several GPUs, `cuda:1` makes the second the current one, as fairchem wants it.
            activation_checkpointing: less memory for more time; default on for a GPU, off for a CPU (1.8 times slower).

        Raises:
            UsageError: no weights, not a checkpoint, fairchem-core missing, or a task that the file does not have.
        """
        path = _existing(weights)
        import torch

        self._device = torch.device(device)
        self.batched = self._device.type != "cpu"
        if self._device.index is not None:
            torch.cuda.set_device(self._device)
        checkpointing = self.batched if activation_checkpointing is None else activation_checkpointing
        self._unit = _load(path, self._device.type, checkpointing)
        tasks = self._unit.dataset_to_tasks
        if task not in tasks:
            raise UsageError(f"{path} has no task '{task}'; it has {', '.join(sorted(tasks))}: choose one by task.")
        self.id, self._task = f"uma-{task}", task
        self.weights_sha256 = _sha256(path)
        self.stress_trained = any(t.property == "stress" and not t.inference_only for t in tasks[task])
        self.elements = _elements(tasks[task])
        untrained = "" if self.stress_trained else "; stress was never trained for this task: keep the cell fixed"
        self.notes = f"UMA task {task}: {LEVELS.get(task, 'see the checkpoint')}{untrained}"

    def compute(self, structures: Sequence[Structure]) -> list[Prediction]:
        """Energy (eV), forces [N, 3] (eV/Å) and stress [3, 3] (eV/Å³) of each structure.

        Raises:
            MemoryError: the batch does not fit on the device.
        """
        with _quiet():
            return compute_on_device(structures, self.batched, self._compute)

    def _compute(self, structures: Sequence[Structure]) -> list[Prediction]:
        import torch
        from fairchem.core.datasets.atomic_data import atomicdata_list_to_batch

        answer = self._unit.predict(atomicdata_list_to_batch([self._data(s) for s in structures]))
        out = {k: answer[k].detach().double().cpu() for k in ("energy", "forces", "stress")}
        forces = torch.split(out["forces"], [len(s) for s in structures])
        stresses = out["stress"].reshape(-1, 3, 3)
        return [
            Prediction(float(e), f.numpy(), (0.5 * (v + v.T)).numpy())
            for e, f, v in zip(out["energy"], forces, stresses, strict=True)
        ]

    def _data(self, structure: Structure) -> Any:
        from fairchem.core.datasets.atomic_data import AtomicData

        atoms = right_handed(structure).to_ase()
        atoms.info = {"charge": 0, "spin": 1 if self._task == "omol" else 0}
        return AtomicData.from_ase(
            atoms, task_name=self._task, r_edges=False, r_data_keys=["spin", "charge"], radius=6.0, max_neigh=None
        )


def _existing(weights: Path | None) -> Path:
    if weights is None:
        raise UsageError(f"UMA needs its weights: {GET_WEIGHTS}.")
    if not Path(weights).is_file():
        raise UsageError(f"There are no UMA weights at {weights}: {GET_WEIGHTS}.")
    return Path(weights)


def _load(path: Path, device: str, activation_checkpointing: bool) -> Any:
    """fairchem's predict unit with the preset `batch` spelled out, so that a new release cannot change it."""
    try:
        from fairchem.core.units.mlip_unit import load_predict_unit
        from fairchem.core.units.mlip_unit.api.inference import InferenceSettings
    except ImportError as error:
        raise UsageError(f"UMA needs fairchem-core ({error}): pip install 'promof-hpc[uma]'.") from error
    settings = InferenceSettings(
        tf32=False,
        activation_checkpointing=activation_checkpointing,
        merge_mole=False,
        compile=False,
        external_graph_gen=False,
        internal_graph_gen_version=2,
    )
    try:
        with _quiet():
            return load_predict_unit(path, inference_settings=settings, device="cuda" if device == "cuda" else "cpu")
    except MemoryError:
        raise
    except Exception as error:  # a pickle of something else can fail in any way
        raise UsageError(f"{path} is no UMA checkpoint ({type(error).__name__}: {error}): {GET_WEIGHTS}.") from error


def _elements(tasks: Sequence[Any]) -> frozenset[int]:
    """Atomic numbers with a reference energy: the fit to the training data leaves 0 where there were none."""
    energy = next(t for t in tasks if t.property == "energy")
    if energy.element_references is None:
        raise UsageError("This UMA checkpoint has no element references, so its elements are unknown: use another.")
    references = energy.element_references.element_references
    return frozenset(int(z) for z in references.nonzero().flatten() if z > 0)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """fairchem logs through the root logger what it was told to do; its errors are exceptions anyway."""

    def not_fairchem(record: logging.LogRecord) -> bool:
        return "fairchem" not in Path(record.pathname).parts or record.levelno >= logging.ERROR

    root = logging.getLogger()
    root.addFilter(not_fairchem)
    try:
        yield
    finally:
        root.removeFilter(not_fairchem)
