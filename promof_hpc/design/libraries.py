"""What strategies build with: the libraries of a prepared training set, and the component sets that it knows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path

from promof_hpc.assembly.linker_library import LinkerLibrary
from promof_hpc.assembly.net_library import NetLibrary
from promof_hpc.assembly.node_library import NodeLibrary
from promof_hpc.assembly.realise import Realiser
from promof_hpc.errors import UsageError
from promof_hpc.store.shard import list_names, read_shard

SHIPPED = "shipped"
NAMES = ("nodes.h5", "linkers.h5", "nets.h5")


@dataclass(frozen=True)
class Libraries:
    """Libraries of one training set.

    Attributes:
        folder: made by `promof prep`.
        nodes: templates of metal nodes.
        linkers: splits of linkers.
        nets: nets and their donors.
    """

    folder: Path
    nodes: NodeLibrary
    linkers: LinkerLibrary
    nets: NetLibrary

    @classmethod
    def read(cls, name: str | Path) -> Libraries:
        """The libraries that `policy.data` of a configuration names: `shipped` or a folder.

        Raises:
            UsageError: a library is missing.
            CorruptShard: a file is damaged.
        """
        folder = Path(str(files("promof_hpc"))) / "data" / "small_mofs" if str(name) == SHIPPED else Path(name)
        missing = sorted(set(NAMES) - set(list_names(folder, ".h5")))
        if missing:
            raise UsageError(f"{folder} has no {', '.join(missing)}; make the libraries with `promof prep`.")
        paths = [folder / n for n in NAMES]
        return cls(folder, NodeLibrary.read(paths[0]), LinkerLibrary.read(paths[1]), NetLibrary.read(paths[2]))

    @cached_property
    def sequences(self) -> tuple[str, ...]:
        """Component sets of the training MOFs as text, in the order of the shards; doubles stay."""
        shards = [read_shard(self.folder / "train" / n) for n in list_names(self.folder / "train", ".h5")]
        return tuple(str(text) for shard in shards for text in shard.arrays["sequence"])

    def realiser(self, atom_cap: int) -> Realiser:
        """What turns component sets into components."""
        return Realiser(self.nodes, self.linkers, atom_cap=atom_cap)
