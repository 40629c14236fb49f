"""What policies are pretrained on: prepared MOFs with one net, their vocabulary, their labels, and a digest."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from promof_hpc.assembly.node_library import NodeLibrary
from promof_hpc.assembly.prepared import PreparedMof
from promof_hpc.assembly.prepared_shard import read_prepared
from promof_hpc.chem.sequence import Vocabulary
from promof_hpc.errors import UsageError
from promof_hpc.physics.energies import SHIPPED, ReferenceSet
from promof_hpc.store.shard import list_names

Part = Literal["train", "val"]


class Digest(Protocol):
    """What hashlib makes."""

    def update(self, data: bytes, /) -> None:
        """Take in more bytes."""
        ...


@dataclass(frozen=True)
class TrainingData:
    """Prepared MOFs to learn from.

    Attributes:
        train, val: the parts.
        vocabulary: of their sequences.
        nodes: node templates.
        digest: SHA-256 of the files read.
    """

    train: tuple[PreparedMof, ...]
    val: tuple[PreparedMof, ...]
    vocabulary: Vocabulary
    nodes: NodeLibrary
    digest: str

    @classmethod
    def read(cls, folders: Sequence[Path], molecules: bool = True) -> TrainingData:
        """Read folders made by `promof prep`: the first gives vocabulary, nodes and validation, all give training.

        Interpenetrated MOFs are left out: a policy builds one net.

        Args:
            molecules: as `read_prepared`; an engineer needs them.

        Raises:
            UsageError: a folder holds no prepared MOFs.
        """
        first, digest = folders[0], hashlib.sha256()
        try:
            tokens = json.loads((first / "vocabulary.json").read_text(encoding="utf-8"))
            nodes = NodeLibrary.read(first / "nodes.h5")
        except FileNotFoundError as error:
            raise UsageError(
                f"{first} is no training set ({error.filename} is missing); make one with `promof prep`"
            ) from error
        train = [m for folder in folders for m in _read_part(folder, "train", digest, molecules)]
        val = _read_part(first, "val", digest, molecules)
        for part, mofs in (("train", train), ("val", val)):
            if not mofs:
                raise UsageError(f"the part {part} of {first} holds no MOF with one net; make one with `promof prep`")
        return cls(tuple(train), tuple(val), Vocabulary(tuple(tokens)), nodes, digest.hexdigest())


def labels_of(mof: PreparedMof, energies: Mapping[str, float]) -> dict[str, float]:
    """What is known of a MOF by the names of `policy.conditions`; `energies` hold E_rel by MOF in eV/atom."""
    known = {**mof.properties, "atoms": float(len(mof.decomposition.structure))}
    if mof.name in energies:
        known["e_rel_ev_per_atom"] = energies[mof.name]
    return known


def energies_of(reference: str) -> dict[str, float]:
    """E_rel in eV/atom of the MOFs of a reference set, by name.

    Args:
        reference: `shipped` (the default potential's), `none`, or a file made by `promof reference build`.

    Raises:
        UsageError: the file cannot be read.
    """
    if reference == "none":
        return {}
    path = SHIPPED / "sevennet-0.json" if reference == "shipped" else Path(reference)
    try:
        mofs = ReferenceSet.from_json(path.read_text(encoding="utf-8")).mofs
    except (OSError, ValueError) as error:
        raise UsageError(
            f"Cannot read the reference set {path} ({error}); `promof reference build` makes one."
        ) from error
    return {m.name: m.e_rel_ev_per_atom for m in mofs if math.isfinite(m.e_rel_ev_per_atom)}


def _read_part(folder: Path, part: Part, digest: Digest, molecules: bool) -> list[PreparedMof]:
    mofs = []
    for name in list_names(folder / part, ".h5"):
        digest.update((folder / part / name).read_bytes())
        mofs += [m for m in read_prepared(folder / part / name, molecules) if m.decomposition.components == 1]
    return mofs
