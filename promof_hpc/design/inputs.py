"""What a campaign reads beside its configuration, by digest: pretrained policies and the libraries of its blocks."""

from __future__ import annotations

import hashlib
from importlib.resources import files
from pathlib import Path

from promof_hpc.config import DesignConfig
from promof_hpc.store.shard import list_names

POLICIES = ("chemist.safetensors", "engineer.safetensors")
LIBRARIES = ("nodes.h5", "linkers.h5", "nets.h5")
SHIPPED = {"weights": "data/weights", "data": "data/small_mofs"}


def inputs_of(config: DesignConfig) -> dict[str, dict[str, str]]:
    """SHA-256 (hex) of every such file that is there, by name: `policies` and `libraries`.

    Strategies that need a file which is not there say so themselves.
    """
    return {
        "policies": _digests(weights_folder(config), POLICIES),
        "libraries": _digests(_folder("data", config.policy.data), LIBRARIES),
    }


def weights_folder(config: DesignConfig) -> Path:
    """Where the weights of the policies lie."""
    return _folder("weights", config.policy.weights)


def _folder(kind: str, name: str) -> Path:
    return Path(str(files("promof_hpc"))) / SHIPPED[kind] if name == "shipped" else Path(name)


def _digests(folder: Path, names: tuple[str, ...]) -> dict[str, str]:
    found = [name for name in names if name in list_names(folder)]
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in found}
