"""The net library: which nets MOFs of one signature have, and in which MOFs, with the direction of every edge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from promof_hpc.assembly.columns import flat, pointer, spans
from promof_hpc.assembly.sites import directions
from promof_hpc.chem.blocks import Block, Contact
from promof_hpc.store.shard import CorruptShard, Shard, read_shard, write_shard

FORMAT = "net-library/1"


@dataclass(frozen=True)
class Donor:
    """A MOF that lends its net and the geometry of its edges.

    Attributes:
        name: the MOF.
        net_key: its net (contact sizes labelled).
        signature: digest of kinds and contact sizes; `count_signature` the same with every size taken as one.
        cell: lattice vectors in rows in Å, [3, 3].
        kinds: block kinds, int8 [K].
        centroids: block centroids in Å, [K, 3].
        node_keys: keys of its nodes, sorted, each once.
        skeletons: skeletons of its linkers, sorted, each once.
        edges: contacts as (node, linker, shift of the linker), int32 [E, 5].
        elements: sorted donor elements of each contact.
        directions: unit vectors [E, 2, 2, 3] in the crystal's frame; axis 1: node end, linker end;
            axis 2: block centroid to contact, contact to the atoms behind the donors.
        lengths: distance in Å from block centroid to contact at both ends, [E, 2].
    """

    name: str
    net_key: str
    signature: str
    count_signature: str
    cell: np.ndarray
    kinds: np.ndarray
    centroids: np.ndarray
    node_keys: tuple[str, ...]
    skeletons: tuple[str, ...]
    edges: np.ndarray
    elements: tuple[tuple[int, ...], ...]
    directions: np.ndarray
    lengths: np.ndarray


@dataclass(frozen=True)
class NetLibrary:
    """Donors of the training split."""

    donors: tuple[Donor, ...]

    @cached_property
    def _by_signature(self) -> dict[tuple[str, int], dict[str, list[Donor]]]:
        table: dict[tuple[str, int], dict[str, list[Donor]]] = {}
        for donor in self.donors:
            for signature in {donor.signature, donor.count_signature}:
                nets = table.setdefault((signature, len(donor.kinds)), {})
                nets.setdefault(donor.net_key, []).append(donor)
        return table

    def candidates(self, signature: str, blocks: int) -> dict[str, list[Donor]]:
        """Donors by net, the commonest net first, for sets of this signature (of either level) and number of blocks."""
        nets = self._by_signature.get((signature, blocks), {})
        return dict(sorted(nets.items(), key=lambda item: (-len(item[1]), item[0])))

    def write(self, path: Path, attrs: dict[str, str | int | float | bool]) -> bool:
        """Publish the library; see `store.shard.publish` for what is returned and raised."""
        return write_shard(path, Shard(_columns(self.donors), {**attrs, "format": FORMAT}))

    @classmethod
    def read(cls, path: Path) -> NetLibrary:
        """Read a library.

        Raises:
            CorruptShard: the file is damaged, or no net library.
        """
        shard = read_shard(path)
        if shard.attrs.get("format") != FORMAT:
            raise CorruptShard(f"{path} is no net library ({FORMAT}); make one with `promof prep`.")
        return cls(_donors(shard))


def edge_geometry(contact: Contact, node: Block, linker: Block) -> tuple[np.ndarray, np.ndarray]:
    """Unit directions [2, 2, 3] (crystal frame) and lengths [2] (Å) of one contact, as in `Donor`.

    A single-atom linker has nothing behind its donor: the direction to the contact is taken twice.
    """
    ends = (
        (contact.sites, contact.behind, node.rotation),
        (linker.local[contact.donors], contact.linker_behind, linker.rotation),
    )
    outward = np.stack([directions(sites, behind, np.zeros(3)) @ turn.T for sites, behind, turn in ends])
    return outward, np.array([np.linalg.norm(sites.mean(0)) for sites, *_ in ends])


def _columns(donors: Sequence[Donor]) -> dict[str, np.ndarray | list[str]]:
    elements = [e for d in donors for e in d.elements]
    return {
        **{name: [getattr(d, name) for d in donors] for name in ("name", "net_key", "signature", "count_signature")},
        # neither bracket atoms nor SMILES contain a space
        "node_keys": [" ".join(d.node_keys) for d in donors],
        "skeletons": [" ".join(d.skeletons) for d in donors],
        "cell": np.array([d.cell for d in donors], np.float32).reshape(-1, 3, 3),
        "donor_blocks": pointer([len(d.kinds) for d in donors]),
        "donor_edges": pointer([len(d.edges) for d in donors]),
        "edge_elements": pointer([len(e) for e in elements]),
        "kind": flat([d.kinds for d in donors], np.int8),
        "centroid": flat([d.centroids for d in donors], np.float32, 3),
        "edge": flat([d.edges for d in donors], np.int16, 5),
        "element": flat([np.array(e) for e in elements], np.int16),
        "direction": flat([d.directions for d in donors], np.float32, 2, 2, 3),
        "length": flat([d.lengths for d in donors], np.float32, 2),
    }


def _donors(shard: Shard) -> tuple[Donor, ...]:
    a = {name: np.asarray(column) for name, column in shard.arrays.items()}
    elements = [tuple(a["element"][s:e].tolist()) for s, e in spans(a["edge_elements"])]
    donors = []
    for k, ((b0, b1), (e0, e1)) in enumerate(zip(spans(a["donor_blocks"]), spans(a["donor_edges"]), strict=True)):
        donors.append(
            Donor(
                name=str(a["name"][k]),
                net_key=str(a["net_key"][k]),
                signature=str(a["signature"][k]),
                count_signature=str(a["count_signature"][k]),
                cell=a["cell"][k].astype(float),
                kinds=a["kind"][b0:b1],
                centroids=a["centroid"][b0:b1].astype(float),
                node_keys=tuple(str(a["node_keys"][k]).split()),
                skeletons=tuple(str(a["skeletons"][k]).split()),
                edges=a["edge"][e0:e1].astype(np.int32),
                elements=tuple(elements[e0:e1]),
                directions=a["direction"][e0:e1].astype(float),
                lengths=a["length"][e0:e1].astype(float),
            )
        )
    return tuple(donors)
