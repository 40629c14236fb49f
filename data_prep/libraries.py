"""The node library and the net library of a training set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from data_prep.match import contacts_of, fingerprint, nearest, node_points
from data_prep.split import linker_skeleton
from promof_hpc.assembly.net_library import Donor, NetLibrary, edge_geometry
from promof_hpc.assembly.node_library import NodeLibrary, NodeTemplate, TemplateContact
from promof_hpc.assembly.prepared import PreparedMof
from promof_hpc.chem.blocks import Kind
from promof_hpc.geometry.point_match import match_points
from promof_hpc.geometry.topology import labelled_net, signature

TEMPLATE_RMSD_ANG = 0.3  # closer nodes share a template: up to here a finisher still meets the sites
LEADERS_TRIED = 3


def observed_nodes(mofs: Iterable[PreparedMof]) -> list[NodeTemplate]:
    """Every metal node of some MOFs as a template of its own, in order."""
    nodes = []
    for mof in mofs:
        for k, block in enumerate(mof.decomposition.blocks):
            if block.kind is not Kind.METAL:
                continue
            contacts = tuple(TemplateContact(c.elements, c.sites, c.behind) for c in contacts_of(mof.decomposition, k))
            nodes.append(NodeTemplate(block.key, block.numbers, block.local, contacts, 1, mof.name))
    return nodes


def node_library(nodes: Sequence[NodeTemplate]) -> NodeLibrary:
    """Cluster nodes of one key and contact pattern; each cluster is a template, the geometry of its first node.

    A node joins a cluster if, superposed on its leader, both atoms and sites are within `TEMPLATE_RMSD_ANG`; else it
    leads a new one. Mirror images are different templates. Templates are sorted by key, then by the number of nodes.
    """
    clusters: dict[tuple[str, tuple[tuple[int, ...], ...]], _Clusters] = {}
    for node in nodes:
        clusters.setdefault((node.key, node.pattern), _Clusters()).add(node)
    templates = [t for found in clusters.values() for t in found.templates]
    return NodeLibrary(tuple(sorted(templates, key=lambda t: (t.key, -t.count, t.source))))


@dataclass
class _Clusters:
    """Leaders of one key and pattern, their points and fingerprints, and how many nodes each stands for."""

    templates: list[NodeTemplate] = field(default_factory=list)
    points: list[tuple[np.ndarray, list[str]]] = field(default_factory=list)
    fingerprints: list[np.ndarray] = field(default_factory=list)

    def add(self, node: NodeTemplate) -> None:
        points = node_points(
            node.numbers, node.local, [c.elements for c in node.contacts], [c.sites for c in node.contacts]
        )
        mark = fingerprint(points[0])
        for k in nearest(self.fingerprints, mark, LEADERS_TRIED):
            if _misfit_ang(points, self.points[k], len(node.numbers)) < TEMPLATE_RMSD_ANG:
                self.templates[k] = replace(self.templates[k], count=self.templates[k].count + node.count)
                return
        self.templates.append(node)
        self.points.append(points)
        self.fingerprints.append(mark)


def _misfit_ang(moving: tuple[np.ndarray, list[str]], fixed: tuple[np.ndarray, list[str]], atoms: int) -> float:
    """The larger of the RMSDs of the first `atoms` points and of the others: many sites must not hide two metals."""
    found = match_points(*moving, *fixed)
    if found is None:
        return np.inf
    squares = ((found.fit.apply(moving[0][found.order]) - fixed[0]) ** 2).sum(1)
    return float(np.sqrt(max(part.mean() for part in (squares[:atoms], squares[atoms:]) if len(part))))


def net_library(mofs: Iterable[PreparedMof]) -> NetLibrary:
    """Donors of every net: three-periodic MOFs of one component, one for each (net, nodes, linker skeletons)."""
    donors, taken = [], set()
    for mof in mofs:
        if mof.decomposition.dimensionality < 3 or mof.decomposition.components > 1:
            continue
        donor = _donor(mof)
        family = (donor.net_key, donor.node_keys, donor.skeletons)
        if family not in taken:
            taken.add(family)
            donors.append(donor)
    return NetLibrary(tuple(donors))


def _donor(mof: PreparedMof) -> Donor:
    found = mof.decomposition
    geometry = [edge_geometry(c, found.blocks[c.node], found.blocks[c.linker]) for c in found.contacts]
    return Donor(
        name=mof.name,
        net_key=mof.net_key,
        signature=mof.signature,
        count_signature=signature(labelled_net(found), "count"),
        cell=found.structure.cell,
        kinds=np.array([b.kind for b in found.blocks], np.int8),
        centroids=np.array([b.centroid for b in found.blocks]),
        node_keys=tuple(sorted({b.key for b in found.blocks if b.kind is Kind.METAL})),
        skeletons=tuple(sorted({linker_skeleton(b.key) for b in found.blocks if b.kind is Kind.ORGANIC})),
        edges=np.array([(c.node, c.linker, *c.shift) for c in found.contacts], np.int32).reshape(-1, 5),
        elements=tuple(tuple(sorted(c.elements.tolist())) for c in found.contacts),
        directions=np.array([d for d, _ in geometry]).reshape(-1, 2, 2, 3),
        lengths=np.array([n for _, n in geometry]).reshape(-1, 2),
    )
