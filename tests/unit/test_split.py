from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.settings import SplitSettings
from data_prep.split import Part, linker_skeleton, split_by_skeleton

skeleton_sets = st.frozensets(st.integers(0, 40).map(lambda k: f"s{k}"), min_size=1, max_size=3)
libraries = st.dictionaries(st.text("abcdefgh", min_size=1, max_size=6), skeleton_sets, min_size=1, max_size=60)
choices = st.builds(
    SplitSettings,
    seed=st.integers(0, 10),
    test_share=st.floats(0, 0.4),
    validation_share=st.floats(0, 0.3),
    kept_skeletons=st.integers(0, 20),
)


@given(libraries, choices)
def test_every_mof_is_in_exactly_one_part(library, settings):
    split = split_by_skeleton(library, settings)
    assert sorted(n for part in Part for n in split.names(part)) == sorted(library)


@given(libraries, choices)
def test_no_part_that_is_used_shares_a_skeleton_with_another(library, settings):
    split = split_by_skeleton(library, settings)
    seen = {p: {s for n in split.names(p) for s in library[n]} for p in (Part.TRAIN, Part.VALIDATION, Part.TEST)}
    assert not seen[Part.TRAIN] & seen[Part.TEST]
    assert not seen[Part.TRAIN] & seen[Part.VALIDATION]
    assert not seen[Part.VALIDATION] & seen[Part.TEST]
    assert not seen[Part.TRAIN] & set(split.held_out)


@given(libraries, choices)
def test_mixed_mofs_are_those_that_span_parts(library, settings):
    split = split_by_skeleton(library, settings)
    for name in split.names(Part.MIXED):
        assert len({split.held_out.get(s) for s in library[name]}) > 1


@given(libraries, choices)
def test_the_commonest_skeletons_stay_in_training(library, settings):
    split = split_by_skeleton(library, settings)
    counts = Counter(s for found in library.values() for s in found)
    commonest = sorted(counts, key=lambda s: (-counts[s], s))[: settings.kept_skeletons]
    assert not set(commonest) & set(split.held_out)


@given(libraries, choices, st.randoms())
def test_the_split_does_not_depend_on_the_order_of_the_library(library, settings, random):
    shuffled = list(library.items())
    random.shuffle(shuffled)
    assert split_by_skeleton(dict(shuffled), settings).part == split_by_skeleton(library, settings).part


def test_parts_reach_their_shares_and_another_seed_draws_others():
    library = {f"m{k}": frozenset({f"s{k % 300}"}) for k in range(1500)}
    split = split_by_skeleton(library, SplitSettings(seed=1, test_share=0.1, validation_share=0.05))
    assert 150 <= len(split.names(Part.TEST)) <= 155
    assert 75 <= len(split.names(Part.VALIDATION)) <= 80
    assert not split.names(Part.MIXED)
    other = split_by_skeleton(library, SplitSettings(seed=2, test_share=0.1, validation_share=0.05))
    assert other.names(Part.TEST) != split.names(Part.TEST)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("O=C([O-])c1ccc(C(=O)[O-])cc1", "O=C(O)c1ccc(C(=O)[O-])cc1"),
        ("C[C@H](N)C(=O)[O-]", "C[C@@H](N)C(=O)[O-]"),
        ("c1ccncc1", "C1CC[NH2+]CC1"),
        ("O=C([O-])/C=C/C(=O)[O-]", "O=C([O-])CCC(=O)[O-]"),
    ],
)
def test_hydrogen_charge_stereo_and_bond_orders_do_not_make_another_skeleton(first, second):
    assert linker_skeleton(first) == linker_skeleton(second)


@pytest.mark.parametrize(
    ("first", "second"),
    [("c1ccncc1", "c1ccccc1"), ("O=C([O-])c1cccc(C(=O)[O-])c1", "O=C([O-])c1ccc(C(=O)[O-])cc1")],
)
def test_other_elements_or_connections_make_another_skeleton(first, second):
    assert linker_skeleton(first) != linker_skeleton(second)
