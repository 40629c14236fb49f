"""The pretrained policies as they are, without and with a choice among their assemblies."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from promof_hpc.config import AssemblySettings, DesignConfig, PolicySettings, RoundSettings, SdeSettings
from promof_hpc.design.proposing.chain import Proposing
from promof_hpc.design.strategies import sample
from promof_hpc.design.strategies.sample import Sample, SampleFilter, promise_of
from promof_hpc.design.strategy import Judged, Proposal, Round
from promof_hpc.physics.pores import pores
from tests.policies import libraries, policies
from tests.runs import crystal

ASKED = Round(0, 0, 64, 0, [{"pld_ang": 4.0, "atoms": 20.0}] * 2)
OPEN = crystal(0, atoms=2)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> DesignConfig:
    folder = tmp_path_factory.mktemp("policies")
    weights, data = policies(folder / "weights"), libraries(folder / "data")
    return DesignConfig(
        strategy="sample",
        rounds=RoundSettings(targets=2, sets=1, assemblies=3),
        assembly=AssemblySettings(atom_cap=50, start_time=0.7, tries=1),
        sde=SdeSettings(steps=3),
        policy=PolicySettings(weights=str(weights), data=str(data)),
    )


def proposal(name: str, energy: float = 0.0, **others: object) -> Proposal:
    return replace(Proposal(name, 0, 0, "", OPEN, snap_energy_ang2=energy), **others)


def test_sample_proposes_what_the_chain_of_promof_proposes_and_never_learns(config: DesignConfig, tmp_path: Path):
    strategy = Sample(config)
    first = strategy.propose(ASKED)
    assert [p.name for p in first.items] == [p.name for p in Proposing(config).propose(ASKED)[0]]
    assert strategy.learn(ASKED, first, [Judged(1.0)] * len(first.items)) == {}
    strategy.save(tmp_path)()
    again = Sample(config)
    again.load(tmp_path)
    for one, other in zip(strategy.propose(ASKED).items, again.propose(ASKED).items, strict=True):
        assert (one.structure is None) == (other.structure is None)
        assert one.structure is None or one.structure.digest() == other.structure.digest()


def test_sample_filter_chooses_the_most_promising_of_several_times_as_many(
    config: DesignConfig, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sample, "OVERSAMPLING", 2)
    more = config.model_copy(update={"rounds": RoundSettings(targets=2, sets=2, assemblies=3)})
    drawn = Sample(more).propose(ASKED).items
    kept = SampleFilter(config).propose(ASKED).items
    assert {p.name for p in kept} <= {p.name for p in drawn}
    for target, wanted in enumerate(ASKED.targets):
        own = [p for p in drawn if p.target == target]
        chosen = {p.name for p in kept if p.target == target}
        assert len(chosen) == min(3, len(own))
        left = [promise_of(p, wanted) for p in own if p.name not in chosen]
        assert min(promise_of(p, wanted) for p in own if p.name in chosen) >= max(left, default=(-1.0, 0.0))
    groups = [p.group for p in kept]
    assert groups == sorted(groups)
    assert set(groups) == set(range(len(set(groups))))


def test_a_proposal_promises_more_past_the_gate_near_the_wanted_pore_and_with_closed_contacts():
    pld = pores(OPEN).pld_ang
    wanted = {"pld_ang": pld}
    refused = proposal("refused", refusal="overlap", gate_score=0.9)
    assert promise_of(proposal("a"), wanted) > promise_of(refused, wanted)
    assert promise_of(proposal("a"), wanted) > promise_of(proposal("a"), {"pld_ang": pld + 0.5})
    assert promise_of(proposal("a"), wanted) > promise_of(proposal("b", 0.3), wanted)
    assert promise_of(proposal("a", float("nan")), wanted) == promise_of(proposal("a"), wanted)
    assert promise_of(proposal("a"), {})[1] == 0.0  # nothing is wanted of the pores
    far = [promise_of(proposal("a"), {"pld_ang": pld + off}) for off in (20.0, 40.0)]
    assert far[0] == far[1]


def test_a_structure_without_pore_geometry_counts_as_far_off():
    blown = replace(OPEN, positions=np.full_like(OPEN.positions, np.nan))
    assert promise_of(proposal("a", structure=blown), {"pld_ang": 3.0})[1] == -sample.WORST_PORE_ANG
