"""The released weights of MOFFlow-2's structure predictor: which parameters they hold, and loading them.

Source: github.com/nayoung10/MOFFlow-2. Names, shapes and units (nm, rad) are its own, so nothing is converted; that
the sum of all sizes is 146,115,860 was checked against the original. Two things are as described but could not be
compared with the released files: heads use GELU, and the pool has no residual. Our sampler moves centroids straight in
fractions of the cell on the way to a prediction, theirs in ångströms.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from promof_hpc.errors import UsageError
from promof_hpc.policy.engineer import Engineer, EngineerSettings
from promof_hpc.policy.features import FEATURES
from promof_hpc.policy.heads import ATOM_TYPES, POOL_REACH_ANG, TIME_WIDTH, TORSION_REACH_ANG, TYPE_WIDTH
from promof_hpc.policy.layers import BONDS

PREFIX = "model."
SHOWN = 5  # names listed in an error
RELEASED = EngineerSettings(
    width=1024,
    layers=10,
    heads=16,
    gaussians=128,
    reach_ang=50.0,
    neighbor_rule="first_by_index",
    periodic=False,
    directions=False,
    hydrogens=True,
    sites=False,
    poses=False,
    relative=False,
    vectors=False,
    contact=False,
)


def released_shapes(settings: EngineerSettings = RELEASED) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter and buffer of a MOFFlow-2 structure predictor of a size, by name without prefix."""
    d, g = settings.width, settings.gaussians
    shapes: dict[str, tuple[int, ...]] = {
        "initial_embed.atom_type_embed.weight": (ATOM_TYPES, TYPE_WIDTH),
        **_linear("initial_embed.linear_out", d, TYPE_WIDTH + FEATURES + 3 + 6 + TIME_WIDTH),
    }
    for k in range(settings.layers):
        layer, block = f"interaction_layers.{k}", f"interaction_layers.{k}.interaction_layer"
        shapes |= {f"{layer}.edge_dist_embedder.offset": (g,)}
        shapes |= {f"{block}.{norm}.scale": (d,) for norm in ("attn_norm", "ffn_norm")}
        shapes |= _attention(f"{block}.self_attn", d, d + BONDS + g)
        shapes |= {f"{block}.ffn.0.weight": (4 * d, d), f"{block}.ffn.2.weight": (d, 4 * d)}
    shapes |= {f"{part}.edge_dist_embedder.offset": (g,) for part in ("final_pool", "torsion_output")}
    shapes |= _attention("final_pool", d, d + g) | _attention("torsion_output", d, d + g)
    shapes |= _linear("torsion_output.dihedral_proj", d, 4 * d)
    heads = {"rotation_output.rot_output": 9, "translation_output.trans_output": 3, "lattice_output.lattice_output": 6}
    for name, out in (heads | {"torsion_output.torsion_output": 2}).items():
        shapes |= _linear(f"{name}.0", d, d) | _linear(f"{name}.2", out, d)
    return shapes


def load_released(path: Path, settings: EngineerSettings = RELEASED) -> Engineer:
    """An engineer with the weights of a checkpoint of MOFFlow-2's structure predictor.

    Only tensors are unpickled, so a checkpoint from elsewhere runs no code.

    Raises:
        UsageError: the file cannot be read, or does not hold those weights.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises what pickle, zipfile and the file system raise
        raise UsageError(
            f"{path} cannot be read as a checkpoint of tensors ({error}); give the ckpt.pt of sp_module of MOFFlow-2's "
            "release, or load it once elsewhere and save its state_dict"
        ) from error
    state = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UsageError(f"{path} holds no state_dict; give the ckpt.pt of sp_module of MOFFlow-2's release")
    return engineer_of(state, settings, str(path))


def engineer_of(state: Mapping[str, Tensor], settings: EngineerSettings = RELEASED, where: str = "weights") -> Engineer:
    """An engineer with the weights of a state_dict, with or without the prefix `model.`.

    Args:
        where: named in errors.

    Raises:
        UsageError: names or shapes differ, or a grid of distances is another.
    """
    plain = {name.removeprefix(PREFIX): value for name, value in state.items()}
    expected = released_shapes(settings)
    missing, unknown = sorted(expected.keys() - plain.keys()), sorted(plain.keys() - expected.keys())
    if missing or unknown:
        raise UsageError(
            f"{where} is no structure predictor of {settings.layers} layers: {_listed('missing', missing)}"
            f"{_listed('unknown', unknown)}give the checkpoint of sp_module, and settings of its size"
        )
    wrong = [f"{n} {tuple(plain[n].shape)} not {s}" for n, s in expected.items() if tuple(plain[n].shape) != s]
    if wrong:
        raise UsageError(f"{where}: {_listed('shapes differ', wrong)}give settings of the size of these weights")
    for name in (n for n in expected if n.endswith(".offset")):
        part = name.split(".")[0]
        reach = {"final_pool": POOL_REACH_ANG, "torsion_output": TORSION_REACH_ANG}.get(part, settings.reach_ang)
        if not torch.allclose(plain[name].float(), torch.linspace(0.0, reach, settings.gaussians), atol=1e-3):
            raise UsageError(
                f"{where}: {name} is no grid from 0 to {reach:g} Å; these weights were trained with other distances"
            )
    engineer = Engineer(settings)
    engineer.load_state_dict({name: value.float() for name, value in plain.items()})
    return engineer


def _linear(name: str, out: int, into: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def _attention(name: str, d: int, pair: int) -> dict[str, tuple[int, ...]]:
    sides = _linear(f"{name}.linear_k", d, pair) | _linear(f"{name}.linear_v", d, pair)
    return _linear(f"{name}.linear_q", d, d) | sides | _linear(f"{name}.linear_out", d, d)


def _listed(what: str, names: list[str]) -> str:
    """The first few of a list, for an error; empty for an empty list."""
    if not names:
        return ""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{what}: {', '.join(names[:SHOWN])}{more}; "
