from collections import Counter
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
from rdkit import Chem

from promof_hpc.assembly import realise
from promof_hpc.assembly.components import BuildingBlock, Components, Solution, crystal_components
from promof_hpc.assembly.linker_library import LinkerLibrary
from promof_hpc.assembly.node_library import NodeLibrary, NodeTemplate, TemplateContact
from promof_hpc.assembly.realise import Realiser, RealiseReason
from promof_hpc.assembly.stack import place, poses_of, stack
from promof_hpc.chem.blocks import Kind
from promof_hpc.chem.conformer import ConformerReason
from promof_hpc.chem.sequence import ComponentSet, canonical_key, component_set, parse_sequence
from promof_hpc.errors import Refused
from tests.training_set import SHIPPED, shipped_training

TEREPHTHALATE = "O=C([O-])c1ccc(C(=O)[O-])cc1"


@lru_cache
def realiser(atom_cap: int = 150) -> Realiser:
    linkers = LinkerLibrary.of(shipped_training())
    return Realiser(NodeLibrary.read(SHIPPED / "nodes.h5"), linkers, atom_cap=atom_cap)


def _realised(
    nodes: tuple[str, ...], linkers: tuple[str, ...], seed: int = 0, using: Realiser | None = None
) -> Components:
    return (using or realiser()).realise(ComponentSet(nodes, linkers), np.random.default_rng(seed), 0)


def _reason(nodes: tuple[str, ...], linkers: tuple[str, ...], using: Realiser | None = None) -> str:
    with pytest.raises(Refused) as refusal:
        _realised(nodes, linkers, using=using)
    assert refusal.value.detail
    return str(refusal.value.reason)


def _template(contacts: list[tuple[int, ...]], count: int, source: str) -> NodeTemplate:
    """A zinc atom in whose plane ligands lie that bite like carboxylates."""
    sites = []
    for k, elements in enumerate(contacts):
        outward, across = (np.array([np.cos(a), np.sin(a), 0.0]) for a in (1.3 * k, 1.3 * k + np.pi / 2))
        offsets = np.array([1.1, -1.1]) if len(elements) == 2 else np.zeros(len(elements))
        donors = 2.0 * outward + offsets[:, None] * across
        behind = np.tile(2.65 * outward, (len(elements), 1))
        sites.append(TemplateContact(np.array(elements, np.int32), donors, behind))
    return NodeTemplate("[Zn]", np.array([30], np.int32), np.zeros((1, 3)), tuple(sites), count, source)


def _with_templates(*templates: NodeTemplate) -> Realiser:
    """Terephthalate can only bind by both carboxylates, each in one contact."""
    return Realiser(NodeLibrary(templates), LinkerLibrary({TEREPHTHALATE: ((((0, 2), (8, 9)), 1),)}, {}))


@pytest.mark.parametrize("start", range(4))
def test_training_sets_become_components_with_their_blocks_in_order(start):
    for mof in shipped_training()[start::16]:
        made = realiser().realise(component_set(mof.decomposition), np.random.default_rng(start), 0)
        assert made.sequence == mof.sequence
        assert [b.key for b in made.blocks] == [b.key for b in mof.decomposition.blocks]
        assert Counter(made.numbers.tolist()) == Counter(mof.decomposition.structure.numbers.tolist())
        assert Counter(e.pattern for e in made.node_ends) == Counter(e.pattern for e in made.linker_ends)
        blocks = {e.block for e in (*made.node_ends, *made.linker_ends)}
        assert blocks == set(range(len(made.blocks)))
        for ends in (made.node_ends, made.linker_ends):
            assert [e.block for e in ends] == sorted(e.block for e in ends)


def test_components_have_the_net_of_the_crystal_where_there_is_no_choice():
    mof = next(m for m in shipped_training() if "[Cu][Cu].[Cu][Cu]" not in m.sequence and "[Cu][Cu] " in m.sequence)
    crystal, _ = crystal_components(mof)
    made = [realiser().realise(component_set(mof.decomposition), np.random.default_rng(k), 0) for k in range(8)]
    assert crystal.signature() in {c.signature() for c in made}


def test_linkers_stand_in_the_order_of_their_smiles_and_equal_ones_share_a_conformer():
    made = _realised(("[Cu][Cu]",), (TEREPHTHALATE, TEREPHTHALATE))
    first, second = (b for b in made.blocks if b.kind is Kind.ORGANIC)
    assert first is second
    written = Chem.AddHs(Chem.MolFromSmiles(TEREPHTHALATE))
    assert first.numbers.tolist() == [a.GetAtomicNum() for a in written.GetAtoms()]
    assert first.torsions is not None
    np.testing.assert_allclose(first.local.mean(0), 0, atol=1e-9)
    for end in made.linker_ends:
        np.testing.assert_allclose(end.site.positions, first.local[end.donors])
        assert (first.numbers[end.donors] == end.site.elements).all()


def test_a_linker_may_be_written_in_any_way():
    made = _realised(("[Cu][Cu]",), ("[O-]C(=O)c1ccc(cc1)C([O-])=O",) * 2)
    assert made.sequence == ComponentSet(("[Cu][Cu]",), (TEREPHTHALATE,) * 2).sequence
    assert parse_sequence(made.sequence).linkers == (TEREPHTHALATE,) * 2


def test_components_can_be_stacked_and_placed():
    made = _realised(("[Cu][Cu]",), (TEREPHTHALATE, TEREPHTHALATE))
    fixed = stack([made, made])
    k = len(made.blocks)
    pose = Solution(
        np.eye(3) * 20, np.tile(np.eye(3), (k, 1, 1)), np.zeros((k, 3)), np.zeros(0), np.zeros(0), np.zeros(0)
    )
    assert place(fixed, poses_of([pose, pose], fixed)).isfinite().all()


def test_the_same_seed_gives_the_same_components_and_seeds_draw_among_templates():
    nodes, linkers = ("[Zn]",) * 2, (TEREPHTHALATE,) * 2
    first, again = (_realised(nodes, linkers, seed=5) for _ in range(2))
    assert [b.template for b in first.blocks] == [b.template for b in again.blocks]
    for a, b in zip(first.linker_ends, again.linker_ends, strict=True):
        np.testing.assert_array_equal(a.donors, b.donors)
    drawn = {_realised(nodes, linkers, seed=k).blocks[0].template for k in range(20)}
    assert len(drawn) > 2


def test_templates_are_drawn_as_often_as_they_occurred():
    common, rare = _template([(8, 8), (8, 8)], 30, "a"), _template([(8, 8), (8, 8)], 10, "b")
    using = _with_templates(common, rare)
    drawn = [_realised(("[Zn]",), (TEREPHTHALATE,), k, using).blocks[0].template for k in range(200)]
    assert abs(np.mean(np.array(drawn) == 0) - 0.75) < 4 * np.sqrt(0.75 * 0.25 / 200)


def test_a_template_that_no_split_of_the_linkers_meets_is_not_drawn():
    using = _with_templates(_template([(7,), (7,)], 10_000, "a"), _template([(8, 8), (8, 8)], 1, "b"))
    assert {_realised(("[Zn]",), (TEREPHTHALATE,), k, using).blocks[0].template for k in range(20)} == {1}


def test_a_template_that_bites_like_the_linkers_is_preferred():
    good, wide = (_template([(8, 8), (8, 8)], 10, s) for s in ("a", "b"))
    far = tuple(replace(c, sites=2 * c.sites) for c in wide.contacts)
    using = _with_templates(good, replace(wide, contacts=far))
    drawn = [_realised(("[Zn]",), (TEREPHTHALATE,), k, using).blocks[0].template for k in range(40)]
    assert drawn.count(0) >= 38


def test_equal_nodes_share_a_template_unless_only_different_ones_add_up():
    two, one, three = (_template([(8, 8)] * k, 10, str(k)) for k in (2, 1, 3))
    alike = _realised(("[Zn]",) * 2, (TEREPHTHALATE,) * 2, 0, _with_templates(two, one, three))
    assert [b.template for b in alike.blocks[:2]] == [0, 0]
    mixed = _realised(("[Zn]",) * 2, (TEREPHTHALATE,) * 2, 0, _with_templates(one, three))
    assert sorted(b.template for b in mixed.blocks[:2]) == [0, 1]


@pytest.mark.parametrize(
    ("nodes", "linkers", "reason"),
    [
        ((), (), RealiseReason.EMPTY),
        (("[Zn]",), (), RealiseReason.EMPTY),
        ((), (TEREPHTHALATE,), RealiseReason.EMPTY),
        (("[Og][Og]",), (TEREPHTHALATE,), RealiseReason.UNKNOWN_NODE),
        (("", "Zn"), (TEREPHTHALATE,), RealiseReason.UNKNOWN_NODE),
        (("[Zn]",), ("",), RealiseReason.NOT_A_LINKER),
        (("[Zn]",), ("(((",), RealiseReason.NOT_A_LINKER),
        (("[Zn]",), ("O",), RealiseReason.NOT_A_LINKER),
        (("[Zn]",), ("C[Zn]C",), RealiseReason.NOT_A_LINKER),
        (("[Zn]",), ("*C(=O)[O-]",), RealiseReason.NOT_A_LINKER),
        (("[Zn]",), ("CC(=O)[O-].CC(=O)[O-]",), RealiseReason.NOT_A_LINKER),
        (("[Zn]",), ("C",), RealiseReason.NO_DONOR),
        (("[Zn]",), ("[C-4]",), RealiseReason.NO_DONOR),
        (("[Zn]",), ("C[N+](C)(C)C",), RealiseReason.NO_DONOR),
        (("[Zn]",), ("C" * 2000,), RealiseReason.TOO_MANY_ATOMS),
        (("[Zn]",), ("C1" + "C" * 50 + "C1C(=O)[O-]",), RealiseReason.TOO_MANY_ATOMS),
        (("[Zn]",) * 20, (TEREPHTHALATE,) * 20, RealiseReason.TOO_MANY_BLOCKS),
        (("[Cu][Cu]",), (TEREPHTHALATE,) * 7, RealiseReason.NO_EXACT_COVER),
        (("[Zn]",) * 2, ("O=C([O-])C1C2=CC=C1C=C2",) * 2, RealiseReason.NOT_EMBEDDED),
    ],
)
def test_what_cannot_be_put_together_is_refused_with_its_reason(nodes, linkers, reason):
    assert _reason(nodes, linkers) == reason


def test_the_cap_on_atoms_counts_hydrogen():
    atoms = 2 + 2 * 16  # two Cu, two C8H4O4
    assert _reason(("[Cu][Cu]",), (TEREPHTHALATE,) * 2, realiser(atom_cap=atoms - 1)) == RealiseReason.TOO_MANY_ATOMS
    assert len(_realised(("[Cu][Cu]",), (TEREPHTHALATE,) * 2, using=realiser(atom_cap=atoms)).numbers) == atoms


def test_a_failed_embedding_is_tried_once(monkeypatch):
    tried = []

    def fail(smiles: str, *args: object, **kwargs: object) -> BuildingBlock:
        tried.append(smiles)
        raise Refused(ConformerReason.NOT_EMBEDDED, "no coordinates")

    monkeypatch.setattr(realise, "embed", fail)
    unusual = canonical_key("O=C([O-])c1c(F)c(F)c(C(=O)[O-])c(F)c1Cl")
    for seed in (0, 1):
        with pytest.raises(Refused, match="not_embedded"):
            _realised(("[Cu][Cu]",), (unusual,) * 2, seed)
    assert tried == [unusual]
    realise._embedded.cache_clear()
