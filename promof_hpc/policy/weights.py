"""Folders with pretrained policies: safetensors, what they need to be read, and their digests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from promof_hpc.chem.sequence import Vocabulary
from promof_hpc.errors import PromofError, UsageError
from promof_hpc.policy.chemist import Chemist, ChemistSettings
from promof_hpc.policy.conditions import Conditions
from promof_hpc.policy.host_buffers import HostBuffers
from promof_hpc.store.shard import replace, replace_text

if TYPE_CHECKING:
    from promof_hpc.policy.engineer import Engineer

FORMAT = "promof-policy/1"
SHIPPED = "shipped"


@dataclass(frozen=True)
class LoadedChemist:
    """A chemist with what gives its numbers a meaning.

    Attributes:
        network: on the CPU.
        vocabulary: of its tokens.
        conditions: of the properties it is conditioned on.
        sha256: of its weights file.
    """

    network: Chemist
    vocabulary: Vocabulary
    conditions: Conditions
    sha256: str


@dataclass(frozen=True)
class LoadedEngineer:
    """An engineer and the SHA-256 of its weights file."""

    network: Engineer
    sha256: str


LoadedT = TypeVar("LoadedT", LoadedChemist, LoadedEngineer)


@dataclass(frozen=True)
class Policies:
    """The two policies of a campaign."""

    chemist: LoadedChemist
    engineer: LoadedEngineer


def weights_folder(name: str | Path) -> Path:
    """The folder that `policy.weights` of a configuration names."""
    return Path(str(files("promof_hpc"))) / "data" / "weights" if str(name) == SHIPPED else Path(name)


def load_policies(folder: str | Path = SHIPPED) -> Policies:
    """Both policies of a folder made by `promof pretrain`, or the shipped ones.

    Raises:
        UsageError: one of them is missing.
        PromofError: a file is damaged.
    """
    return Policies(load_chemist(folder), load_engineer(folder))


def load_chemist(folder: str | Path = SHIPPED) -> LoadedChemist:
    """The chemist of a folder; see `load_policies` for what is raised."""

    def make(text: Mapping[str, Any]) -> LoadedChemist:
        conditions = Conditions(**{k: tuple(v) for k, v in text["conditions"].items()})
        network = Chemist(ChemistSettings(**_with_tuples(text["settings"])))
        return LoadedChemist(network, Vocabulary(tuple(text["vocabulary"])), conditions, text["sha256"])

    return _load(weights_folder(folder), "chemist", make)


def load_engineer(folder: str | Path = SHIPPED) -> LoadedEngineer:
    """The engineer of a folder; see `load_policies` for what is raised."""
    from promof_hpc.policy.engineer import Engineer, EngineerSettings

    def make(text: Mapping[str, Any]) -> LoadedEngineer:
        return LoadedEngineer(Engineer(EngineerSettings(**_with_tuples(text["settings"]))), text["sha256"])

    return _load(weights_folder(folder), "engineer", make)


def save_chemist(folder: Path, network: Chemist, vocabulary: Vocabulary, conditions: Conditions) -> str:
    """Write a chemist into a folder, replacing one that is there; returns the SHA-256 of its weights."""
    return copy_chemist(network, vocabulary, conditions, HostBuffers()).save(folder)


def save_engineer(folder: Path, network: Engineer) -> str:
    """Write an engineer into a folder, replacing one that is there; returns the SHA-256 of its weights."""
    return copy_engineer(network, HostBuffers()).save(folder)


def copy_chemist(network: Chemist, vocabulary: Vocabulary, conditions: Conditions, buffers: HostBuffers) -> Copy:
    """Copy a chemist to `buffers`, over what was copied there before; see `Copy`."""
    meaning = {
        "settings": asdict(network.settings),
        "vocabulary": list(vocabulary.tokens),
        "conditions": asdict(conditions),
    }
    return Copy("chemist", buffers.copy(network.state_dict()), meaning)


def copy_engineer(network: Engineer, buffers: HostBuffers) -> Copy:
    """Copy an engineer to `buffers`, over what was copied there before; see `Copy`."""
    return Copy("engineer", buffers.copy(network.state_dict()), {"settings": asdict(network.settings)})


@dataclass(frozen=True)
class Copy:
    """What of a policy its folder holds, apart from the network that it was copied from.

    Attributes:
        policy: chemist or engineer.
        state: weights in host memory.
        meaning: what they need to be read.
    """

    policy: str
    state: Mapping[str, Tensor]
    meaning: Mapping[str, Any]

    def save(self, folder: Path) -> str:
        """Write it into a folder, replacing one that is there; returns the SHA-256 of the weights."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.policy}.safetensors"
        replace(path, lambda temporary: save_file(dict(self.state), temporary))
        sha256 = _sha256(path)
        text = {"format": FORMAT, "policy": self.policy, "sha256": sha256, **self.meaning}
        replace_text(folder / f"{self.policy}.json", json.dumps(text, indent=1) + "\n")
        return sha256


def _load(folder: Path, policy: str, make: Callable[[Mapping[str, Any]], LoadedT]) -> LoadedT:
    """A policy made from its description, with its weights filled in.

    Raises:
        UsageError: a file is missing.
        PromofError: a file is damaged, or one is not the other's.
    """
    remedy = f"train one with `promof pretrain {policy} --out {folder}`"
    path, description = folder / f"{policy}.safetensors", folder / f"{policy}.json"
    try:
        text = json.loads(description.read_text(encoding="utf-8"))
        if text["format"] != FORMAT or text["policy"] != policy:
            raise PromofError(f"{description} does not describe a {policy} ({FORMAT}); {remedy}.")
        if text["sha256"] != _sha256(path):
            raise PromofError(f"{path} is not the file that {description.name} describes (digest differs); {remedy}.")
        loaded = make(text)
        loaded.network.load_state_dict(load_file(path))
    except FileNotFoundError as error:
        raise UsageError(f"no {policy} in {folder} ({Path(error.filename).name} is missing); {remedy}.") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        raise PromofError(f"the {policy} in {folder} cannot be read ({error}); {remedy}.") from error
    loaded.network.eval()
    return loaded


def _with_tuples(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with tuples where JSON has lists."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
