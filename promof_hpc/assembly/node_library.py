"""The node library: 3D templates of metal nodes by key, each with the connection sites that a linker must meet."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from promof_hpc.assembly.columns import flat, pointer, spans
from promof_hpc.chem.blocks import Contact
from promof_hpc.store.shard import CorruptShard, Shard, read_shard, write_shard

FORMAT = "node-library/1"


@dataclass(frozen=True)
class TemplateContact:
    """The sites of a node that one linker occupies.

    Attributes:
        elements: atomic numbers of the donors, int32 [m].
        sites: donor positions in the template's frame in Å, [m, 3].
        behind: mean position of each donor's heavy neighbours in the same frame in Å, [m, 3].
    """

    elements: np.ndarray
    sites: np.ndarray
    behind: np.ndarray


def pattern_of(contacts: Iterable[Contact | TemplateContact]) -> tuple[tuple[int, ...], ...]:
    """Sorted donor elements of each contact of a node, sorted."""
    return tuple(sorted(tuple(sorted(c.elements.tolist())) for c in contacts))


@dataclass(frozen=True)
class NodeTemplate:
    """One geometry of a metal node.

    Attributes:
        key: bag of bracket atoms, metals first.
        numbers: atomic numbers, int32 [n].
        local: coordinates in Å with the centroid at the origin, [n, 3].
        contacts: its contacts.
        count: nodes of the training set that it stands for.
        source: MOF that it was taken from.
    """

    key: str
    numbers: np.ndarray
    local: np.ndarray
    contacts: tuple[TemplateContact, ...]
    count: int
    source: str

    @property
    def pattern(self) -> tuple[tuple[int, ...], ...]:
        """Sorted donor elements of each contact, sorted: what a component set must offer."""
        return pattern_of(self.contacts)


@dataclass(frozen=True)
class NodeLibrary:
    """Templates; the position of a template is its index, which prepared MOFs refer to."""

    templates: tuple[NodeTemplate, ...]

    def __len__(self) -> int:
        return len(self.templates)

    @cached_property
    def by_key(self) -> dict[str, tuple[int, ...]]:
        """Indices of the templates of each key, the commonest first."""
        indices: dict[str, list[int]] = {}
        for k, template in enumerate(self.templates):
            indices.setdefault(template.key, []).append(k)
        return {key: tuple(sorted(v, key=lambda k: -self.templates[k].count)) for key, v in indices.items()}

    def write(self, path: Path, attrs: dict[str, str | int | float | bool]) -> bool:
        """Publish the library; see `store.shard.publish` for what is returned and raised."""
        return write_shard(path, Shard(_columns(self.templates), {**attrs, "format": FORMAT}))

    @classmethod
    def read(cls, path: Path) -> NodeLibrary:
        """Read a library.

        Raises:
            CorruptShard: the file is damaged, or no node library.
        """
        shard = read_shard(path)
        if shard.attrs.get("format") != FORMAT:
            raise CorruptShard(f"{path} is no node library ({FORMAT}); make one with `promof prep`.")
        return cls(_templates(shard))


def _columns(templates: Sequence[NodeTemplate]) -> dict[str, np.ndarray | list[str]]:
    contacts = [c for t in templates for c in t.contacts]
    return {
        "key": [t.key for t in templates],
        "source": [t.source for t in templates],
        "count": np.array([t.count for t in templates], np.int32),
        "template_atoms": pointer([len(t.numbers) for t in templates]),
        "template_contacts": pointer([len(t.contacts) for t in templates]),
        "contact_sites": pointer([len(c.elements) for c in contacts]),
        "number": flat([t.numbers for t in templates], np.int16),
        "local": flat([t.local for t in templates], np.float32, 3),
        "site_element": flat([c.elements for c in contacts], np.int16),
        "site": flat([c.sites for c in contacts], np.float32, 3),
        "behind": flat([c.behind for c in contacts], np.float32, 3),
    }


def _templates(shard: Shard) -> tuple[NodeTemplate, ...]:
    a = {name: np.asarray(column) for name, column in shard.arrays.items()}
    contacts = [
        TemplateContact(
            a["site_element"][s:e].astype(np.int32), a["site"][s:e].astype(float), a["behind"][s:e].astype(float)
        )
        for s, e in spans(a["contact_sites"])
    ]
    return tuple(
        NodeTemplate(
            key=str(a["key"][k]),
            numbers=a["number"][s:e].astype(np.int32),
            local=a["local"][s:e].astype(float),
            contacts=tuple(contacts[first:last]),
            count=int(a["count"][k]),
            source=str(a["source"][k]),
        )
        for k, ((s, e), (first, last)) in enumerate(
            zip(spans(a["template_atoms"]), spans(a["template_contacts"]), strict=True)
        )
    )
