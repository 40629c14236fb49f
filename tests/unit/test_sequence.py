from pathlib import Path

import pytest
from ase.io import read
from hypothesis import given
from hypothesis import strategies as st
from rdkit import Chem

from promof_hpc.chem.decompose import decompose
from promof_hpc.chem.sequence import (
    SPECIALS,
    ComponentSet,
    SequenceReason,
    build_vocabulary,
    component_set,
    detokenize,
    parse_sequence,
    sorted_set,
    tokenize,
)
from promof_hpc.errors import Refused
from promof_hpc.structure import Structure

MOFS = Path(__file__).parents[1] / "data" / "mofs"
NODES = ["[Zn]", "[Cu][Cu]", "[Zn][Zn][Zn][Zn][O]", "[Zr][Zr][O][O][H]"]
LINKERS = [
    "O=C([O-])c1ccc(C(=O)[O-])cc1",
    "Cc1ncc[n-]1",
    "[C-]#N",
    "O=C([O-])c1cc(Br)c(Cl)cc1[N+](=O)[O-]",
    "C[Si](C)(C)C#CC%10CC%10",
]


def component_sets() -> st.SearchStrategy[ComponentSet]:
    draw = st.tuples(
        st.lists(st.sampled_from(NODES), min_size=1, max_size=4),
        st.lists(st.sampled_from([Chem.CanonSmiles(s) for s in LINKERS]), min_size=1, max_size=6),
    )
    return draw.map(lambda parts: sorted_set(*parts))


def mof_sets() -> dict[str, ComponentSet]:
    return {p.stem: component_set(decompose(Structure.from_ase(read(p)))) for p in sorted(MOFS.glob("*.cif"))}


@pytest.fixture(scope="module")
def mofs() -> dict[str, ComponentSet]:
    return mof_sets()


def test_sequence_of_mof5_repeats_every_block(mofs: dict[str, ComponentSet]) -> None:
    bdc = "O=C([O-])c1ccc(C(=O)[O-])cc1"
    node = "[Zn][Zn][Zn][Zn][O]"
    assert mofs["EDUSIF_clean"].sequence == f"<BOS> {node}.{node} <SEP> {'.'.join([bdc] * 6)} <EOS>"


def test_sequences_of_real_frameworks_read_back(mofs: dict[str, ComponentSet]) -> None:
    known = {key for parts in mofs.values() for key in parts.nodes}
    for parts in mofs.values():
        assert parse_sequence(parts.sequence, known) == parts


@given(parts=component_sets())
def test_any_sorted_set_reads_back_from_its_tokens(parts: ComponentSet) -> None:
    tokens = tokenize(parts.sequence)
    assert detokenize(tokens) == parts.sequence
    assert parse_sequence(detokenize(tokens)) == parts


@given(parts=st.lists(component_sets(), min_size=1, max_size=3))
def test_vocabulary_encodes_its_own_sequences_without_loss(parts: list[ComponentSet]) -> None:
    texts = [p.sequence for p in parts]
    vocabulary = build_vocabulary(texts)
    assert vocabulary.tokens[: len(SPECIALS)] == SPECIALS
    assert build_vocabulary(reversed(texts)) == vocabulary
    for text in texts:
        numbers = vocabulary.encode(text)
        assert vocabulary.tokens.index("<UNK>") not in numbers
        assert vocabulary.decode([*numbers, 0, 0]) == text


def test_tokens_are_atoms_not_letters() -> None:
    assert tokenize("[Zn][O]") == ["[Zn]", "[O]"]
    assert tokenize("BrC(Cl)=C%12[n-]") == ["Br", "C", "(", "Cl", ")", "=", "C", "%12", "[n-]"]


def test_token_outside_the_vocabulary_becomes_unk() -> None:
    vocabulary = build_vocabulary(["<BOS> [Zn] <SEP> C <EOS>"])
    assert vocabulary.encode("<BOS> [Cu]") == [vocabulary.tokens.index("<BOS>"), vocabulary.tokens.index("<UNK>")]


def test_linkers_are_made_canonical() -> None:
    assert parse_sequence("<BOS> [Zn] <SEP> N#[C-] <EOS>").linkers == ("[C-]#N",)


def test_metals_sort_by_mass_then_key() -> None:
    assert sorted_set(["[Zr]", "[Cu][Cu]", "[Zn]"], ["C"]).nodes == ("[Zn]", "[Zr]", "[Cu][Cu]")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<BOS> [Zn] <SEP> !C <EOS>", SequenceReason.UNKNOWN_TOKEN),
        ("[Zn] <SEP> C <EOS>", SequenceReason.MALFORMED),
        ("<BOS> [Zn] <SEP> C", SequenceReason.MALFORMED),
        ("<BOS> [Zn] <SEP> C <SEP> C <EOS>", SequenceReason.MALFORMED),
        ("<BOS> <SEP> C <EOS>", SequenceReason.NO_METAL),
        ("<BOS> [Zn] <SEP> <EOS>", SequenceReason.NO_LINKER),
        ("<BOS> [Cd] <SEP> C <EOS>", SequenceReason.UNKNOWN_NODE),
        ("<BOS> [Zn] <SEP> C1CC <EOS>", SequenceReason.UNREADABLE_LINKER),
        ("<BOS> [Zn] <SEP> C..C <EOS>", SequenceReason.UNREADABLE_LINKER),
        ("<BOS> [Zn] <SEP> CC.C <EOS>", SequenceReason.UNSORTED),
        ("<BOS> [Zr].[Zn] <SEP> C <EOS>", SequenceReason.UNSORTED),
        ("", SequenceReason.MALFORMED),
    ],
)
def test_invalid_sequences_are_refused_with_their_reason(text: str, reason: SequenceReason) -> None:
    with pytest.raises(Refused) as refusal:
        parse_sequence(text, {"[Zn]", "[Zr]"})
    assert refusal.value.reason is reason


@pytest.mark.parametrize("node", ["Zn", "[O][Zn]", "[Xx]", "[O]"])
def test_node_must_be_a_bag_of_atoms_with_a_metal_first(node: str) -> None:
    with pytest.raises(Refused) as refusal:
        parse_sequence(f"<BOS> {node} <SEP> C <EOS>")
    assert refusal.value.reason in (SequenceReason.UNKNOWN_NODE, SequenceReason.UNKNOWN_TOKEN)
