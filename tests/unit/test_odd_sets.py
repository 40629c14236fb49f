"""Odd component sets in one round: each becomes structures or a reason, and the round is learned from as any other."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from promof_hpc.chem.sequence import ComponentSet, atom_count, parse_sequence, sorted_set
from promof_hpc.config import (
    AssemblySettings,
    DesignConfig,
    LearningSettings,
    PolicySettings,
    RoundSettings,
    SdeSettings,
)
from promof_hpc.design.proposing.trace import Draft
from promof_hpc.design.strategies.promof import Promof
from promof_hpc.design.strategy import Judged, Round
from promof_hpc.policy.sampling import log_probs, padded
from tests.policies import easy_sequences, libraries, policies, small_mofs

TARGET = {"pld_ang": 4.0, "atoms": 20.0}
CAGED = "O=C([O-])C1C2=CC=C1C=C2"  # a bicycle with a bridgehead double bond, which has no conformer


@pytest.fixture(scope="module")
def strategy(tmp_path_factory: pytest.TempPathFactory) -> Promof:
    folder = tmp_path_factory.mktemp("odd")
    return Promof(
        DesignConfig(
            budget=64,
            rounds=RoundSettings(targets=1, sets=7, assemblies=4),
            assembly=AssemblySettings(atom_cap=400, start_time=0.7, tries=1),
            sde=SdeSettings(steps=2),
            learning=LearningSettings(k=2),
            policy=PolicySettings(
                weights=str(policies(folder / "weights")), data=str(libraries(folder / "data")), blocks="open"
            ),
        )
    )


def odd_sets() -> dict[str, str]:
    """Text of each, by what is odd."""
    known = [m for m in small_mofs() if m.decomposition.components == 1]
    bendable = {b.key for m in known for b in m.decomposition.blocks if b.mol is not None and len(b.torsions)}
    rigid = next(t for t in easy_sequences() if not bendable & set(parse_sequence(t).linkers))
    first = parse_sequence(rigid)
    sparse = max(known, key=lambda m: len(m.decomposition.structure) / len(m.decomposition.blocks)).sequence
    return {
        "no torsions": rigid,
        "one block": ComponentSet(first.nodes[:1], ()).sequence,
        "20 blocks": repeated(rigid, lambda blocks, atoms: blocks >= 20),
        "300 atoms": repeated(sparse, lambda blocks, atoms: atoms >= 300),
        "unknown metals": ComponentSet(("[Zn][Cu][Zn]",), first.linkers).sequence,
        "no conformer": sorted_set(first.nodes, [CAGED] * len(first.linkers)).sequence,
        "nothing that binds": ComponentSet(first.nodes, ("C",)).sequence,
    }


def repeated(text: str, enough: Callable[[int, int], bool]) -> str:
    """A set so many times over that blocks and atoms are enough."""
    known = parse_sequence(text)
    for times in range(1, 100):
        made = sorted_set(known.nodes * times, known.linkers * times)
        blocks = (*made.nodes, *made.linkers)
        if enough(len(blocks), sum(atom_count(key) for key in blocks)):
            return made.sequence
    raise AssertionError("never enough")


REASONS = {
    "one block": "no_linker",
    "unknown metals": "unknown_node",
    "no conformer": "not_embedded",
    "nothing that binds": "no_donor",
}


def test_odd_sets_of_one_round_become_structures_or_reasons_and_are_learned_from(strategy, monkeypatch):
    texts = odd_sets()
    chemist, proposing = strategy.proposing.policies.chemist, strategy.proposing
    asked = Round(0, 0, 64, 0, [TARGET])
    tokens = [np.array(chemist.vocabulary.encode(text)) for text in texts.values()]
    with torch.no_grad():
        rows = log_probs(
            chemist.network, *padded([t.tolist() for t in tokens]), chemist.conditions.encode([TARGET] * len(tokens))
        )
    drafts = [Draft(k, 0, t, rows[k, : len(t)].numpy()) for k, t in enumerate(tokens)]
    assert [proposing.text(d).split() for d in drafts] == [text.split() for text in texts.values()]
    monkeypatch.setattr(proposing, "drafts", lambda asked: drafts)
    proposals = strategy.propose(asked)
    of = {name: [p for p in proposals.items if p.group == k] for k, name in enumerate(texts)}
    for name, members in of.items():
        assert all((p.structure is None) == bool(p.refusal) for p in members)
        if name in REASONS:
            assert [p.refusal for p in members] == [REASONS[name]]
            assert members[0].detail
        else:
            assert len(members) == 4
    assert len(parse_sequence(texts["20 blocks"]).nodes + parse_sequence(texts["20 blocks"]).linkers) >= 20
    rewards = np.random.default_rng(0).normal(size=len(proposals.items))
    signals = strategy.learn(asked, proposals, [Judged(float(r)) for r in rewards])
    assert signals["engineer_updates"] == 3
    assert signals["chemist_updates"] == 1
    assert signals["engineer_first_ratio_deviation"] < 1e-5
    assert signals["chemist_first_ratio_deviation"] < 1e-5
