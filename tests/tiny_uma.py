"""Checkpoints in UMA's own format with random weights, 42,000 or as many as UMA-S has: meaningless energies."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

TASKS = ("oc20", "omol", "omat", "odac", "omc")
TASKS_WITH_STRESS = ("omat", "omc")
LAST_ELEMENT = 100
UNSEEN = (0, 84, 85, 86, 87, 88)  # no reference energy: not among the elements
SPREAD_EV = 1.423  # the unit of energy in UMA's training configurations
UNIT = "fairchem.core.units.mlip_unit.mlip_unit"
NORMALIZATION = "fairchem.core.modules.normalization"
LOSS = "fairchem.core.modules.loss"


@dataclass(frozen=True)
class Size:
    """Of a backbone."""

    channels: int
    distances: int
    experts: int
    degree: int
    layers: int


TINY, UMA_S = Size(16, 16, 4, 1, 1), Size(128, 64, 32, 2, 4)


def write_tiny_uma(path: Path, seed: int = 0, size: Size = TINY) -> Path:
    """Write the checkpoint (0.2 MB; 586 MB at the size of UMA-S) and give its path back; equal seeds, equal weights."""
    import hydra
    from fairchem.core.units.mlip_unit.api.inference import MLIPInferenceCheckpoint

    torch.manual_seed(seed)
    model = hydra.utils.instantiate(_model(size))
    weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
    # inference reads the averaged weights, kept in the layout of torch's AveragedModel
    averaged = {f"module.{name}": value for name, value in weights.items()}
    averaged["n_averaged"] = torch.tensor(0, dtype=torch.long)
    tasks = [entry for task in TASKS for entry in _task_entries(task)]
    torch.save(MLIPInferenceCheckpoint(_model(size), weights, averaged, tasks), path)
    return path


def _model(size: Size) -> dict[str, Any]:
    """The 1.1 layout: one backbone of experts, one head that all tasks share."""
    backbone = {
        "model": "fairchem.core.models.uma.escn_moe.eSCNMDMoeBackbone",
        "moe_dropout": 0.05, "moe_layer_type": "pytorch", "num_experts": size.experts,
        "use_composition_embedding": True, "use_global_embedding": False, "max_num_elements": LAST_ELEMENT,
        "sphere_channels": size.channels, "edge_channels": size.channels, "hidden_channels": size.channels,
        "num_distance_basis": size.distances, "lmax": size.degree, "mmax": size.degree, "num_layers": size.layers,
        "otf_graph": True, "max_neighbors": 300, "use_pbc": True, "use_pbc_single": True, "cutoff": 6.0,
        "distance_function": "gaussian", "norm_type": "rms_norm_sh", "act_type": "gate", "ff_type": "spectral",
        "chg_spin_emb_type": "rand_emb", "cs_emb_grad": True,
        "regress_forces": True, "regress_stress": True, "direct_forces": False,
        "dataset_mapping": {task: task for task in TASKS},
    }  # fmt: skip
    head = {
        "module": "fairchem.core.models.uma.escn_moe.DatasetSpecificSingleHeadWrapper",
        "dataset_names": list(TASKS),
        "head_cls": "fairchem.core.models.uma.escn_md.MLP_EFS_Head",
        "head_kwargs": {"wrap_property": False},
    }
    return {
        "_target_": "fairchem.core.models.base.HydraModel",
        "model_id": "TINY-RANDOM",  # fairchem refuses a mixture of experts without a name
        "backbone": backbone, "heads": {"energyandforcehead": head},
        "pass_through_head_outputs": True, "otf_graph": True,
    }  # fmt: skip


def _task_entries(task: str) -> list[dict[str, Any]]:
    """What the model predicts under a task: energy, forces, and for some tasks stress."""
    references = [0.0 if z in UNSEEN else -3.0 - 0.01 * z for z in range(LAST_ELEMENT)]
    energy = _entry(task, "energy", "system", [1])
    energy["element_references"] = {
        "_target_": f"{NORMALIZATION}.element_references.ElementReferences",
        "element_references": {"_target_": "torch.DoubleTensor", "_args_": [references]},
    }
    forces = _entry(task, "forces", "atom", [3])
    forces |= {"train_on_free_atoms": True, "eval_on_free_atoms": True}
    stress = [_entry(task, "stress", "system", [1, 9])] if task in TASKS_WITH_STRESS else []
    return [energy, forces, *stress]


def _entry(task: str, quantity: str, level: str, shape: list[int]) -> dict[str, Any]:
    return {
        "_target_": f"{UNIT}.Task",
        "name": f"{task}_{quantity}", "level": level, "property": quantity, "datasets": [task], "metrics": ["mae"],
        "out_spec": {"dim": shape, "dtype": "float32"},
        "normalizer": {"_target_": f"{NORMALIZATION}.normalizer.Normalizer", "mean": 0.0, "rmsd": SPREAD_EV},
        "loss_fn": {
            "_target_": f"{LOSS}.DDPMTLoss", "coefficient": 1, "loss_fn": {"_target_": f"{LOSS}.MAELoss"},
        },
    }  # fmt: skip
