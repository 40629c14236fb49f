"""The grammar of known blocks: everything written under it is a component set, and nothing that fits is lost."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from promof_hpc.chem.sequence import (
    BOS,
    EOS,
    SEP,
    atom_count,
    build_vocabulary,
    canonical_key,
    parse_sequence,
    sorted_set,
)
from promof_hpc.policy.chemist import Chemist, ChemistSettings
from promof_hpc.policy.grammar import Grammar
from promof_hpc.policy.sampling import distributions, said_mask, sample

NODES = ("[Zn]", "[Zn][Zn][O]", "[Cu][Cu]", "[Zr][O]")
LINKERS = tuple(
    canonical_key(s) for s in ("[O-]C(=O)c1ccc(C(=O)[O-])cc1", "[O-]C=O", "c1c[n-]cn1", "[O-]C(=O)C#CC(=O)[O-]")
)
VOCABULARY = build_vocabulary([f"{BOS} {'.'.join(NODES)} {SEP} {'.'.join(LINKERS)} {EOS}", f"{BOS} [Gd] {SEP} S {EOS}"])


def atoms_of(text):
    found = parse_sequence(text)
    return sum(atom_count(key) for key in (*found.nodes, *found.linkers))


def small_chemist(seed):
    torch.manual_seed(seed)
    return Chemist(ChemistSettings(tokens=len(VOCABULARY), conditions=0, width=32, depth=1, heads=1)).eval()


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), cap=st.integers(12, 60))
def test_whatever_an_untrained_chemist_writes_is_a_set_of_known_blocks_within_the_cap(seed, cap):
    grammar = Grammar(VOCABULARY, NODES, LINKERS, cap)
    chemist = small_chemist(seed)
    nothing = torch.zeros(4, 0)
    written = sample(chemist, VOCABULARY, nothing, torch.Generator().manual_seed(seed), grammar=grammar)
    for text in written.texts(VOCABULARY):
        found = parse_sequence(text, NODES)
        assert set(found.linkers) <= set(LINKERS)
        assert atoms_of(text) <= cap


def test_log_probs_of_a_written_sequence_are_those_it_was_sampled_with():
    grammar, chemist = Grammar(VOCABULARY, NODES, LINKERS, 50), small_chemist(3)
    nothing = torch.zeros(6, 0)
    written = sample(chemist, VOCABULARY, nothing, torch.Generator().manual_seed(5), grammar=grammar)
    allowed = grammar.masks(written.tokens, written.lengths)
    table = distributions(chemist, written.tokens, nothing, allowed)
    again = table.gather(2, written.tokens[:, 1:, None])[..., 0]
    said = said_mask(written.tokens, written.lengths)[:, 1:]
    assert (again - written.log_probs[:, 1:])[said].abs().max() < 1e-5


def test_every_small_set_that_fits_may_be_written():
    cap = 30
    grammar = Grammar(VOCABULARY, NODES, LINKERS, cap)
    tried = 0
    for nodes in itertools.chain.from_iterable(itertools.combinations_with_replacement(NODES, n) for n in (1, 2)):
        for linkers in itertools.chain.from_iterable(
            itertools.combinations_with_replacement(LINKERS, n) for n in (1, 2)
        ):
            text = sorted_set(nodes, linkers).sequence
            walk = grammar.begin()
            fits = True
            for token in VOCABULARY.encode(text)[1:]:
                fits = fits and bool(walk.mask()[token])
                if not fits:
                    break
                walk.follow(token)
            assert fits == (atoms_of(text) <= cap), text
            tried += 1
    assert tried == 14 * 14


def test_a_token_that_may_not_stand_somewhere_is_refused_by_name():
    walk = Grammar(VOCABULARY, NODES, LINKERS, 50).begin()
    with pytest.raises(ValueError, match=r"\[Gd\]"):
        walk.follow(VOCABULARY.number_of["[Gd]"])


def test_a_cap_below_every_set_is_refused():
    with pytest.raises(ValueError, match="4 atoms"):
        Grammar(VOCABULARY, NODES, LINKERS, 4)
