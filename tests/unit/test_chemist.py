import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from promof_hpc.chem.sequence import build_vocabulary, tokenize
from promof_hpc.policy.chemist import Chemist, ChemistSettings, Dropout, released_state
from promof_hpc.policy.chemist_quality import Known, atoms_of, judge
from promof_hpc.policy.conditions import Conditions
from promof_hpc.policy.random_smiles import rewritten
from promof_hpc.policy.sampling import distributions, log_probs, padded, said_mask, sample

GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "x_transformers.json").read_text())
BDC = "O=C([O-])c1ccc(C(=O)[O-])cc1"
PYZ = "c1cnccn1"
TEXTS = [
    f"<BOS> [Zn].[Zn] <SEP> {PYZ}.{BDC}.{BDC} <EOS>",
    f"<BOS> [Cu][Cu] <SEP> {BDC}.{BDC} <EOS>",
    "<BOS> [Zn] <SEP> Cc1ncc[n-]1.Cc1ncc[n-]1 <EOS>",
]
VOCABULARY = build_vocabulary(TEXTS)
NOTHING = float("nan")


def small_chemist(seed: int = 0, conditions: int = 2) -> Chemist:
    torch.manual_seed(seed)
    chemist = Chemist(ChemistSettings(len(VOCABULARY), conditions, width=32, depth=2, heads=2))
    with torch.no_grad():  # far from uniform, so that an error would show
        chemist.to_logits.weight.mul_(4.0)
    return chemist


def wanted(rows: int, seed: int = 0) -> torch.Tensor:
    values = torch.randn(rows, 2, generator=torch.Generator().manual_seed(seed))
    values[::3, 0] = NOTHING
    values[1::4] = NOTHING
    return values


def released(conditional: bool) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Weights as the golden file was made with, and the logits that x-transformers gave."""
    case = GOLDEN["conditional" if conditional else "unconditional"]
    draw = np.random.default_rng(0)
    rotary = "attn_layers.rotary_pos_emb.inv_freq"
    state = {
        name: torch.from_numpy((0.3 * draw.standard_normal(shape)).astype(np.float32))
        for name, shape in sorted(case["shapes"].items())
        if name != rotary
    }
    state = {f"model.{n}": v for n, v in state.items()}
    state[f"model.{rotary}"] = 10_000.0 ** (-torch.arange(0, 32, 2) / 32)
    if conditional:
        draw = np.random.default_rng(1)
        names = ("prop_linear.weight", "prop_linear.bias", "prop_fourier.frequencies", "prop_fourier.phases")
        for name, shape in zip(names, [(48, 1), (48,), (48,), (48,)], strict=True):
            state[name] = torch.from_numpy(draw.standard_normal(shape).astype(np.float32))
    return state, torch.tensor(case["logits"])


@pytest.mark.parametrize("conditional", [False, True])
def test_released_weights_load_and_give_the_logits_of_x_transformers(conditional):
    state, logits = released(conditional)
    chemist = Chemist(ChemistSettings(11, int(conditional), width=48, depth=2, heads=2, never_said=()))
    chemist.load_state_dict(released_state(state))
    conditions = (
        Conditions.raw("capacity").encode([{"capacity": GOLDEN["wanted"]}]) if conditional else torch.zeros(1, 0)
    )
    found = chemist(torch.tensor([GOLDEN["tokens"]]), conditions)[0]
    torch.testing.assert_close(found, logits.log_softmax(-1), atol=1e-4, rtol=1e-4)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000), rows=st.integers(1, 9))
def test_log_probs_of_sampled_tokens_are_those_they_were_sampled_with(seed, rows):
    chemist, conditions = small_chemist(seed), wanted(rows, seed)
    samples = sample(chemist, VOCABULARY, conditions, torch.Generator().manual_seed(seed), max_tokens=60)
    again = log_probs(chemist, samples.tokens, samples.lengths, conditions)
    torch.testing.assert_close(again, samples.log_probs, atol=1e-5, rtol=0)
    assert (samples.log_probs[said_mask(samples.tokens, samples.lengths)] < 0).all()


def test_sampled_frequencies_are_the_probabilities():
    chemist = small_chemist(3)
    rows = 20_000
    conditions = torch.tensor([[0.5, NOTHING]]).expand(rows, 2)
    samples = sample(chemist, VOCABULARY, conditions, torch.Generator().manual_seed(5), max_tokens=3)
    first = torch.bincount(samples.tokens[:, 1], minlength=len(VOCABULARY)) / rows
    table = distributions(chemist, samples.tokens[:1, :2], conditions[:1])[0, 0].exp()
    assert (first - table).abs().max() < 4 * (0.25 / rows) ** 0.5
    assert (first[:3] == 0).all()


def test_padding_unknown_and_begin_are_never_said_but_the_rest_sums_to_one():
    chemist = small_chemist()
    tokens, _ = padded([VOCABULARY.encode(t) for t in TEXTS])
    table = distributions(chemist, tokens, wanted(3))
    assert (table[..., :3] == -torch.inf).all()
    torch.testing.assert_close(table.exp().sum(-1), torch.ones(table.shape[:2]))
    assert table.dtype == torch.float32


def test_a_row_is_the_same_in_a_larger_batch():
    chemist, conditions = small_chemist(1), wanted(8)
    few, many = (
        sample(chemist, VOCABULARY, conditions[:n], torch.Generator().manual_seed(2), max_tokens=50) for n in (3, 8)
    )
    assert few.texts(VOCABULARY) == many.texts(VOCABULARY)[:3]
    assert len(set(many.texts(VOCABULARY))) > 1


def test_a_sequence_ends_at_eos_and_one_cut_off_has_none():
    chemist = small_chemist(1)
    end = VOCABULARY.number_of["<EOS>"]
    samples = sample(chemist, VOCABULARY, wanted(64), torch.Generator().manual_seed(2), max_tokens=12)
    rows, lengths = samples.tokens.tolist(), samples.lengths.tolist()
    assert {row[0] for row in rows} == {VOCABULARY.number_of["<BOS>"]}
    ended = [end in row for row in rows]
    assert any(ended)
    assert not all(ended)
    for row, length, finished in zip(rows, lengths, ended, strict=True):
        assert (row.index(end) + 1 if finished else 12) == length
        assert set(row[length:]) <= {0}


def test_no_rows_are_sampled_for_no_conditions():
    samples = sample(small_chemist(), VOCABULARY, torch.zeros(0, 2), torch.Generator().manual_seed(0), max_tokens=9)
    assert len(samples) == 0
    assert samples.texts(VOCABULARY) == []


def test_later_tokens_do_not_reach_earlier_probabilities():
    chemist = small_chemist()
    tokens, _ = padded([VOCABULARY.encode(TEXTS[0])])
    changed = tokens.clone()
    changed[0, 9:] = 7
    before, after = (distributions(chemist, x, wanted(1)) for x in (tokens, changed))
    torch.testing.assert_close(before[:, :9], after[:, :9], atol=1e-6, rtol=0)
    assert (before[:, 10:] - after[:, 10:]).nan_to_num().abs().max() > 1e-3


def test_gradient_is_finite_and_reaches_nulls_where_nothing_is_wanted():
    chemist = small_chemist()
    tokens, lengths = padded([VOCABULARY.encode(t) for t in TEXTS])
    conditions = torch.tensor([[NOTHING, 1.0]] * 3)
    log_probs(chemist, tokens, lengths, conditions).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in chemist.parameters())
    null = chemist.condition.null.grad
    assert null[0].abs().max() > 0
    assert null[1].abs().max() == 0


def test_what_is_wanted_changes_what_is_written():
    chemist = small_chemist()
    tokens, _ = padded([VOCABULARY.encode(TEXTS[0])])
    tables = [distributions(chemist, tokens, torch.tensor([[v, NOTHING]])) for v in (-1.0, 1.0, NOTHING)]
    for k in (1, 2):
        assert (tables[0] - tables[k]).nan_to_num().abs().max() > 1e-4


def test_dropout_keeps_the_mean_and_follows_its_generator():
    x = torch.ones(200_000)
    first, second = (Dropout(0.25, torch.Generator().manual_seed(4))(x) for _ in range(2))
    assert torch.equal(first, second)
    assert abs(first.mean() - 1.0) < 0.01
    assert abs((first == 0).float().mean() - 0.25) < 0.01


def test_random_smiles_name_the_same_component_set():
    vocabulary = build_vocabulary([*TEXTS, "c12(C)ccc1ccc=23[nH]-4"])
    texts = {rewritten(TEXTS[0], seed, vocabulary) for seed in range(20)}
    assert len(texts) > 3
    assert judge(sorted(texts), Known.of({"[Zn]"}, [TEXTS[0]])).unique == 1 / len(texts)


def test_random_smiles_never_use_tokens_outside_the_vocabulary():
    vocabulary = build_vocabulary([TEXTS[1]])
    for seed in range(20):
        assert set(tokenize(rewritten(TEXTS[1], seed, vocabulary))) <= set(vocabulary.tokens)


def test_quality_counts_valid_unique_new_and_why_not():
    texts = [
        TEXTS[1], TEXTS[1], TEXTS[2],
        "<BOS> [Cu][Cu] <SEP> CC(=O)[O-] <EOS>",
        "<BOS> [Fe] <SEP> CC(=O)[O-] <EOS>",
        "<BOS> [Cu][Cu] <SEP> c1cc <EOS>",
        "<BOS> [Cu][Cu] <SEP> C",
    ]  # fmt: skip
    found = judge(texts, Known.of({"[Zn]", "[Cu][Cu]"}, TEXTS))
    assert (found.samples, found.valid, found.unique) == (7, 4 / 7, 3 / 4)
    assert (found.novel, found.new_linkers) == (1 / 3, 1 / 3)
    assert found.vnu == pytest.approx(1 / 7)
    assert found.refused == {"unknown_node": 1, "unreadable_linker": 1, "malformed": 1}
    assert [atoms_of(s) for s in found.sets] == [34, 34, 23, 9]
