from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from data_prep.libraries import net_library, node_library, observed_nodes
from data_prep.match import match_nodes
from promof_hpc.assembly.build import assemble
from promof_hpc.assembly.net_library import NetLibrary
from promof_hpc.assembly.node_library import NodeLibrary, NodeTemplate, TemplateContact
from promof_hpc.assembly.prepared import PreparedMof, matched_parts
from promof_hpc.chem.blocks import Kind
from promof_hpc.geometry.topology import labelled_net, signature
from promof_hpc.store.shard import CorruptShard
from tests.prepared import prepared


def _moved(node: NodeTemplate, seed: int, noise_ang: float = 0.0, mirror: bool = False) -> NodeTemplate:
    """The node turned, its atoms and contacts shuffled, shaken, and mirrored if asked."""
    generator = np.random.default_rng(seed)
    turn = Rotation.random(rng=generator).as_matrix() @ np.diag([1, 1, -1 if mirror else 1])
    order = generator.permutation(len(node.numbers))

    def move(points: np.ndarray) -> np.ndarray:
        return points @ turn.T + noise_ang * generator.normal(size=points.shape) / np.sqrt(3)

    contacts = [TemplateContact(c.elements, move(c.sites), move(c.behind)) for c in node.contacts]
    shuffled = tuple(contacts[k] for k in generator.permutation(len(contacts)))
    return replace(node, numbers=node.numbers[order], local=move(node.local)[order], contacts=shuffled)


@pytest.fixture(scope="module")
def paddlewheel() -> NodeTemplate:
    return observed_nodes([prepared("FIQCEN")])[0]


def test_known_nodes_have_their_atoms_and_sites(paddlewheel):
    assert paddlewheel.key == "[Cu][Cu]"
    assert paddlewheel.pattern == ((8, 8),) * 4
    zirconium = observed_nodes([prepared("RUBTAK01_SL")])[0]
    assert zirconium.numbers.tolist().count(40) == 6
    assert zirconium.pattern == ((8, 8),) * 12


def test_turned_and_shaken_copies_of_a_node_are_one_template(paddlewheel):
    copies = [_moved(paddlewheel, seed, 0.1) for seed in range(8)]
    library = node_library([paddlewheel, *copies])
    assert [t.count for t in library.templates] == [9]


def test_all_nodes_of_a_symmetric_crystal_are_one_template():
    assert len(node_library(observed_nodes([prepared("FIQCEN")]))) == 1
    assert len(node_library(observed_nodes([prepared("EDUSIF")]))) == 1


def test_other_geometry_or_other_contacts_make_another_template(paddlewheel):
    stretched = replace(paddlewheel, local=paddlewheel.local * 1.5)
    fewer = replace(paddlewheel, contacts=paddlewheel.contacts[:3])
    library = node_library([paddlewheel, paddlewheel, stretched, fewer])
    assert [t.count for t in library.templates] == [2, 1, 1]
    assert library.by_key == {"[Cu][Cu]": (0, 1, 2)}


def test_mirror_images_are_two_templates():
    generator = np.random.default_rng(4)
    chiral = NodeTemplate("[Zn][O][O][O]", np.array([30, 8, 8, 8]), generator.normal(size=(4, 3)) * 2, (), 1, "x")
    chiral = replace(chiral, local=chiral.local * [[1], [1], [2], [3]])
    assert len(node_library([chiral, _moved(chiral, 1, mirror=True)])) == 2
    assert len(node_library([chiral, _moved(chiral, 1)])) == 1


def test_the_node_library_comes_back_from_its_file(paddlewheel, tmp_path):
    library = node_library([paddlewheel, *observed_nodes([prepared("EDUSIF")])])
    library.write(tmp_path / "nodes.h5", {})
    back = NodeLibrary.read(tmp_path / "nodes.h5")
    assert [t.key for t in back.templates] == [t.key for t in library.templates]
    for a, b in zip(library.templates, back.templates, strict=True):
        np.testing.assert_allclose(a.local, b.local, atol=1e-5)
        assert a.pattern == b.pattern
        np.testing.assert_allclose(a.contacts[0].sites, b.contacts[0].sites, atol=1e-5)
    with pytest.raises(CorruptShard, match="no net library"):
        NetLibrary.read(tmp_path / "nodes.h5")


def test_a_node_gets_the_nearest_template_where_it_fits_best(paddlewheel):
    mof = prepared("FIQCEN")
    odd = replace(_moved(paddlewheel, 2), local=paddlewheel.local * 1.3)
    library = node_library([odd, odd, _moved(paddlewheel, 3, 0.02)])
    matched = match_nodes(mof.decomposition, library)
    for block, fit in zip(mof.decomposition.blocks, matched, strict=True):
        assert (fit is None) == (block.kind is Kind.ORGANIC)
        if fit is not None:
            placed = fit.local @ fit.rotation.T + fit.centroid
            rmsd = np.sqrt(((placed - block.positions) ** 2).sum(1).mean())
            assert rmsd == pytest.approx(fit.rmsd_ang, abs=1e-9)
            assert fit.rmsd_ang < 0.05
            assert library.templates[fit.template].count == 1


def test_a_single_metal_is_oriented_by_its_sites():
    mof = prepared("OFERUN")
    nodes = observed_nodes([mof])
    assert nodes[0].key == "[Zn]"
    library = node_library([_moved(nodes[0], 5)])
    matched = match_nodes(mof.decomposition, library)
    for k, (block, fit) in enumerate(zip(mof.decomposition.blocks, matched, strict=True)):
        if fit is None:
            continue
        sites = np.concatenate([c.sites for c in library.templates[fit.template].contacts]) @ fit.rotation.T
        wanted = [c.sites @ block.rotation.T for c in mof.decomposition.contacts if c.node == k]
        gaps = np.linalg.norm(sites[:, None] - np.concatenate(wanted)[None], axis=-1)
        assert gaps.min(0).max() < 0.1


def test_a_node_without_template_has_no_match(paddlewheel):
    mof = prepared("EDUSIF")
    assert set(match_nodes(mof.decomposition, node_library([paddlewheel]))) == {None}


def test_conformers_and_templates_rebuild_a_crystal():
    mof = prepared("FIQCEN", conformers=True)
    nodes = match_nodes(mof.decomposition, node_library(observed_nodes([mof])))
    full = replace(mof, matched=tuple(a or b for a, b in zip(nodes, mof.matched, strict=True)))
    assert full.fully_matched
    built = assemble(matched_parts(full), mof.decomposition.structure.cell)
    crystal = np.concatenate([b.positions for b in mof.decomposition.blocks])
    heavy = built.numbers > 1
    assert np.linalg.norm(built.positions - crystal, axis=1)[heavy].max() < 0.3


def test_donors_are_found_by_signature_and_grouped_by_net(tmp_path):
    mofs = [prepared(n) for n in ("EDUSIF", "FIQCEN", "AVIHOE")]
    net_library(mofs).write(tmp_path / "nets.h5", {})
    library = NetLibrary.read(tmp_path / "nets.h5")
    assert [d.name for d in library.donors] == [m.name for m in mofs]
    for mof in mofs:
        blocks = len(mof.decomposition.blocks)
        for level in ("size", "count"):
            nets = library.candidates(signature(labelled_net(mof.decomposition), level), blocks)
            assert mof.name in [d.name for d in nets[mof.net_key]]
        assert library.candidates(mof.signature, blocks + 1) == {}
    assert library.candidates("unheard of", 3) == {}


def test_edges_of_a_donor_point_from_node_to_linker_and_back():
    mof = prepared("EDUSIF")
    (donor,) = net_library([mof]).donors
    assert donor.node_keys == ("[Zn][Zn][Zn][Zn][O]",)
    for (node, linker, *shift), directions, lengths in zip(donor.edges, donor.directions, donor.lengths, strict=True):
        axis = donor.centroids[linker] + np.array(shift) @ donor.cell - donor.centroids[node]
        axis_unit = axis / np.linalg.norm(axis)
        # carboxylates of MOF-5 lie on the line between the two centres
        assert directions[0, 0] @ axis_unit > 0.99
        assert directions[0, 1] @ axis_unit > 0.99
        assert directions[1, 0] @ axis_unit < -0.99
        assert lengths.sum() == pytest.approx(np.linalg.norm(axis), abs=0.05)


def test_families_lend_their_net_once_and_low_dimensional_mofs_do_not():
    mof = prepared("EDUSIF")
    layered = replace(mof, decomposition=replace(mof.decomposition, dimensionality=2))
    twin: PreparedMof = replace(mof, name="twin")
    assert [d.name for d in net_library([mof, twin, layered]).donors] == [mof.name]
