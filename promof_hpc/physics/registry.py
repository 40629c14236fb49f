"""Which potentials there are, by name; each is imported only when it is loaded."""

from __future__ import annotations

import difflib
import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from promof_hpc.errors import UsageError
from promof_hpc.physics.potential import Potential

if TYPE_CHECKING:
    from promof_hpc.config.evaluation import PotentialSettings

NAMES = ("sevennet-0", "chgnet-0.3.0", "uma", "lennard-jones")


def chosen_potential(chosen: PotentialSettings, device: str = "cpu") -> Potential:
    """The potential that a configuration names, as `load_potential`."""
    return load_potential(chosen.name, weights=chosen.weights, task=chosen.task, device=device)


def load_potential(name: str, *, weights: Path | None = None, task: str = "omat", device: str = "cpu") -> Potential:
    """The registered potential `name`, or a user's own `module:Class`, ready to compute.

    Args:
        weights: checkpoint file, for `uma` only.
        task: UMA task head, for `uma` only.
        device: torch device, for instance `cpu` or `cuda:0`.

    Raises:
        UsageError: unknown name (the nearest is suggested), or weights missing where they are needed.
    """
    if name == "sevennet-0":
        from promof_hpc.physics.sevennet import SevenNet0

        return SevenNet0(device)
    if name == "chgnet-0.3.0":
        from promof_hpc.physics.chgnet import CHGNet030

        return CHGNet030(device)
    if name == "uma":
        from promof_hpc.physics.uma import UMA

        return UMA(weights, task=task, device=device)
    if name == "lennard-jones":
        from promof_hpc.physics.lennard_jones import LennardJones

        return LennardJones()
    if ":" in name:
        return _load_own(name, device)
    near = difflib.get_close_matches(name, NAMES, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise UsageError(f"Unknown potential '{name}'.{hint} Known: {', '.join(NAMES)}, or your own as module:Class.")


def _load_own(name: str, device: str) -> Potential:
    """A user's own potential: `module:Class`, called with the device."""
    module_name, _, attribute = name.partition(":")
    try:
        factory = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"Cannot load the potential '{name}' ({error}); is its module in PYTHONPATH?") from error
    try:
        potential: Potential = factory(device)
    except TypeError as error:
        raise UsageError(f"The potential '{name}' cannot be made with a device alone: {error}.") from error
    return potential
