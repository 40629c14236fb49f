"""Strategy promof on real small components with tiny policies: exact ratios, restarts, what is learned and what not."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from promof_hpc.assembly.components import Components, crystal_components, matched_components
from promof_hpc.assembly.net_start import NetStart, net_starts
from promof_hpc.assembly.node_library import NodeLibrary
from promof_hpc.assembly.stack import place, poses_of, stack
from promof_hpc.chem.sequence import parse_sequence
from promof_hpc.config import (
    AssemblySettings,
    DesignConfig,
    LearningSettings,
    PolicySettings,
    RewardSettings,
    RoundSettings,
    SdeSettings,
    TrainingSettings,
)
from promof_hpc.design.learning.chemist_learner import ChemistLearner
from promof_hpc.design.learning.chemist_learner import Lesson as WrittenSet
from promof_hpc.design.learning.engineer_learner import EngineerLearner
from promof_hpc.design.learning.engineer_learner import Lesson as FlownGroup
from promof_hpc.design.learning.team import ALONE
from promof_hpc.design.proposing.sharing import shared
from promof_hpc.design.proposing.starts import launch
from promof_hpc.design.proposing.trace import Draft, Flight, Trace, components_digest
from promof_hpc.design.strategies.promof import Promof, learned_rewards
from promof_hpc.design.strategy import Judged, Proposal, Proposals, Round
from promof_hpc.errors import PromofError, UsageError
from promof_hpc.policy import sde
from promof_hpc.policy.engineer import Engineer, EngineerSettings
from promof_hpc.policy.flow import prior
from promof_hpc.policy.sampling import log_probs, padded, sample
from promof_hpc.policy.weights import load_chemist
from promof_hpc.store.shard import Shard, read_shard, write_shard
from promof_hpc.structure import Structure
from tests.policies import SMALL, easy_sequences, libraries, policies, small_mofs, state_digest

TARGET = {"pld_ang": 4.0, "atoms": 20.0}
ASKED = Round(0, 0, 64, 0, [TARGET])


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> DesignConfig:
    folder = tmp_path_factory.mktemp("policies")
    weights, data = policies(folder / "weights"), libraries(folder / "data")
    return DesignConfig(
        budget=64,
        rounds=RoundSettings(targets=1, sets=2, assemblies=4),
        assembly=AssemblySettings(atom_cap=50, start_time=0.7, tries=1),
        sde=SdeSettings(steps=4),
        learning=LearningSettings(k=2, replay=2, kl_engineer=0.1),
        policy=PolicySettings(weights=str(weights), data=str(data)),
    )


@pytest.fixture(scope="module")
def round_of(config: DesignConfig) -> tuple[Proposals, list[Judged]]:
    """A round's proposals and made-up judgements with variance."""
    proposals = Promof(config).propose(ASKED)
    rng = np.random.default_rng(0)
    return proposals, [Judged(float(rng.normal())) for _ in proposals.items]


@pytest.fixture(scope="module")
def components() -> Components:
    """A small set with torsions."""
    library = NodeLibrary.read(SMALL / "nodes.h5")
    some = [m for m in small_mofs() if m.fully_matched and 20 < len(m.decomposition.structure) < 40]
    made = (matched_components(m, library)[0] for m in some)
    return next(c for c in made if sum(len(b.torsions) for b in c.blocks if b.torsions is not None) > 1)


def engineer(seed: int = 0) -> Engineer:
    torch.manual_seed(seed)
    network = Engineer(EngineerSettings(width=32, layers=1, heads=2, gaussians=8))
    with torch.no_grad():  # away from the zero start of its heads, so that every modality moves
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape))
    return network.eval()


def flown(network: Engineer, components: Components, rows: int = 4, **settings: object) -> FlownGroup:
    fixed = stack([components] * rows)
    generator = torch.Generator().manual_seed(1)
    x0 = prior(fixed, generator)
    flight = sde.rollout(network, fixed, x0, 0.0, SdeSettings(steps=6, **settings), generator)
    return FlownGroup(fixed, flight, torch.tensor([1.5, -0.5, -0.5, -0.5])[:rows])


def test_first_ratios_are_1_and_the_divergence_is_0(components):
    network = engineer()
    learner = EngineerLearner(network, engineer(), LearningSettings(), ALONE)
    signals = learner.learn([flown(network, components)])
    assert signals["engineer_first_ratio_deviation"] < 1e-5
    assert signals["engineer_kl"] < 1e-8
    assert signals["engineer_gradient_norm"] > 0
    assert signals["engineer_updates"] == 1


def test_engineer_makes_actions_with_advantage_likelier_and_the_others_less(components):
    network = engineer()
    lesson = flown(network, components)
    learner = EngineerLearner(network, engineer(), LearningSettings(learning_rate_engineer=1e-3, epochs=3), ALONE)
    signals = learner.learn([lesson])
    with torch.no_grad():
        steps = lesson.rollout.noisy_steps
        now = torch.stack([sde.replay(network, lesson.fixed, lesson.rollout, s)[0] for s in steps], 1)
    change = (now - lesson.rollout.log_prob[:, steps]).sum((1, 2))
    assert change[0] > 0
    assert change[0] > change[1:].max()
    assert signals["engineer_ratio_deviation"] > 1e-4
    assert signals["engineer_kl"] > 0
    assert state_digest(learner.reference) == state_digest(engineer())


def test_a_heavy_divergence_weight_holds_the_engineer_back(components):
    drift = []
    for weight in (0.0, 100.0):
        network = engineer()
        learner = EngineerLearner(
            network, engineer(), LearningSettings(learning_rate_engineer=1e-3, epochs=6, kl_engineer=weight), ALONE
        )
        lesson = flown(network, components)
        learner.learn([lesson])
        drift.append(learner.learn([lesson])["engineer_kl"])
    assert drift[1] < 0.5 * drift[0]


def test_gradient_is_that_of_the_advantage_weighted_log_density(components):
    """On policy and without divergence the loss is -mean(A log pi), each modality at the reference's dof."""
    network = engineer()
    lesson = flown(network, components)
    settings = LearningSettings(kl_engineer=0.0, gradient_norm=1e9, reference_dof=12.0)
    learner = EngineerLearner(network, engineer(), settings, ALONE)
    learner.learn([lesson])
    found = [p.grad.clone() for p in network.parameters() if p.grad is not None]
    other, total = engineer(), torch.zeros(())
    steps = lesson.rollout.noisy_steps
    for s in steps:
        density, _ = sde.replay(other, lesson.fixed, lesson.rollout, s)
        total = total - (lesson.advantages[:, None] * density * 12.0 / lesson.rollout.dof).mean() / len(steps)
    expected = torch.autograd.grad(total, [p for p in other.parameters() if p.requires_grad], allow_unused=True)
    for a, b in zip(found, [g for g in expected if g is not None], strict=True):
        torch.testing.assert_close(a, b, atol=1e-4 * float(b.abs().max()) + 1e-7, rtol=1e-3)


def test_nothing_is_learned_where_there_was_no_noise(components):
    network = engineer()
    lesson = flown(network, components, translation=0.0, rotation=0.0, torsion=0.0, lattice=0.0)
    signals = EngineerLearner(network, engineer(), LearningSettings(), ALONE).learn([lesson])
    assert signals["engineer_updates"] == 0
    assert state_digest(network) == state_digest(engineer())


def written(config: DesignConfig, count: int = 6) -> tuple[ChemistLearner, list[WrittenSet]]:
    loaded = load_chemist(config.policy.weights)
    learner = ChemistLearner(loaded, LearningSettings(learning_rate_chemist=1e-4), None, ALONE)
    conditions = loaded.conditions.encode([TARGET] * count)
    found = sample(loaded.network, loaded.vocabulary, conditions, torch.Generator().manual_seed(0))
    lessons = [
        WrittenSet(found.tokens[i, :n].numpy(), found.log_probs[i, :n].numpy(), TARGET, (-1.0) ** i)
        for i, n in enumerate(found.lengths.tolist())
    ]
    return learner, lessons


def test_first_token_ratios_are_1(config):
    learner, lessons = written(config)
    signals = learner.learn([lessons])
    assert signals["chemist_first_ratio_deviation"] < 1e-5
    assert signals["chemist_kl"] < 1e-8
    assert signals["chemist_entropy"] > 0


def test_chemist_writes_more_of_what_is_rewarded(config):
    learner, lessons = written(config)
    tokens, lengths = padded([lesson.tokens.tolist() for lesson in lessons])
    conditions = learner.conditions.encode([TARGET] * len(lessons))
    before = log_probs(learner.network, tokens, lengths, conditions).sum(1).detach()
    texts = {tuple(lesson.tokens.tolist()): lesson for lesson in lessons}
    distinct = list(texts.values())
    assert len(distinct) > 1
    favoured = tuple(distinct[0].tokens.tolist())
    wanted = [replace(x, advantage=1.0 if tuple(x.tokens.tolist()) == favoured else -1.0) for x in lessons]
    learner.learn([wanted])
    after = log_probs(learner.network, tokens, lengths, conditions).sum(1).detach()
    likelier = np.array([tuple(x.tokens.tolist()) == favoured for x in lessons])
    assert (after - before)[likelier].min() > 0
    assert (after - before)[~likelier].mean() < 0


def test_remembered_sets_are_pulled_up_to_the_clip_and_no_further(config):
    learner, lessons = written(config)
    chosen = replace(lessons[0], advantage=1.0)
    first = learner.learn([], [chosen])
    assert first["chemist_updates"] == 0
    assert first["replay_updates"] == 1
    assert first["replay_gradient_norm"] > 0
    much = chosen.log_probs - 1.0  # by now every token is e times likelier than when it was written
    again = learner.learn([], [replace(chosen, log_probs=much)])
    assert again["replay_clip_share"] == 1.0
    assert again["replay_gradient_norm"] < 0.1 * first["replay_gradient_norm"]  # what is left is the divergence's


def test_a_round_is_the_same_whenever_it_is_asked_for(config, round_of):
    again = Promof(config).propose(ASKED)
    assert [p.name for p in again.items] == [p.name for p in round_of[0].items]
    assert Shard(again.trace).digest() == Shard(round_of[0].trace).digest()
    structures = [(a.structure, b.structure) for a, b in zip(again.items, round_of[0].items, strict=True)]
    assert all(a is None or a.digest() == b.digest() for a, b in structures)
    assert any(a is not None for a, _ in structures)
    other = Promof(config).propose(replace(ASKED, seed=1))
    assert Shard(other.trace).digest() != Shard(again.trace).digest()


def learned(config: DesignConfig, proposals: Proposals, judged: Sequence[Judged]) -> tuple[Promof, dict[str, float]]:
    strategy = Promof(config)
    return strategy, strategy.learn(ASKED, proposals, judged)


def states(strategy: Promof) -> tuple[str, str]:
    return state_digest(strategy.chemist.network), state_digest(strategy.engineer.network)


def test_both_policies_learn_and_say_how(config, round_of):
    strategy, signals = learned(config, *round_of)
    before = states(Promof(config))
    assert all(a != b for a, b in zip(states(strategy), before, strict=True))
    assert signals["chemist_first_ratio_deviation"] < 1e-5
    assert signals["engineer_first_ratio_deviation"] < 1e-5
    assert signals["engineer_updates"] == 2
    assert signals["chemist_updates"] == 1
    assert signals["reward_max"] == max(j.reward for j in round_of[1])
    assert signals["dead_groups_share"] == 0.0
    assert all(np.isfinite(v) for v in signals.values())
    assert len(strategy.memory) == len({tuple(d.tokens.tolist()) for d in Trace.read(round_of[0].trace).drafts})


def test_learning_after_a_restart_needs_only_the_shard_and_the_checkpoint(config, round_of, tmp_path):
    """Two rounds of learning in one process equal one round, save, load and a round from files."""
    proposals, judged = round_of
    strategy, _ = learned(config, proposals, judged)
    write_shard(tmp_path / "round.h5", Shard(proposals.trace))
    stored = replace(proposals, trace=read_shard(tmp_path / "round.h5").arrays)
    (tmp_path / "checkpoint").mkdir()
    strategy.save(tmp_path / "checkpoint")()
    restarted = Promof(config)
    restarted.load(tmp_path / "checkpoint")
    assert states(restarted) == states(strategy)
    assert restarted.memory == strategy.memory
    first = strategy.learn(ASKED, proposals, judged)
    second = restarted.learn(ASKED, stored, judged)
    assert states(restarted) == states(strategy)
    assert first == second
    assert first["chemist_updates"] == 1.0
    assert first["replay_updates"] == 1.0
    assert first["engineer_kl"] > 0  # measured from where the campaign began, not from the checkpoint


def test_bf16_samples_as_it_learns_and_keeps_weights_and_probabilities_in_fp32(config, round_of):
    config = config.model_copy(update={"training": TrainingSettings(precision="bf16")})
    proposals = Promof(config).propose(ASKED)
    half, full = Trace.read(proposals.trace), Trace.read(round_of[0].trace)
    assert any((a.log_probs != b.log_probs).any() for a, b in zip(half.drafts, full.drafts, strict=True))
    for a, b in zip(half.flights, full.flights, strict=True):
        assert not torch.equal(a.rollout.log_prob, b.rollout.log_prob)
    strategy, signals = learned(
        config, proposals, [Judged(float(p.group * 4 + k)) for k, p in enumerate(proposals.items)]
    )
    assert signals["chemist_first_ratio_deviation"] < 1e-3
    assert signals["engineer_first_ratio_deviation"] < 1e-3
    assert all(a != b for a, b in zip(states(strategy), states(Promof(config)), strict=True))
    for network in (strategy.chemist.network, strategy.engineer.network):
        assert {p.dtype for p in network.parameters()} == {torch.float32}
    assert {d.log_probs.dtype for d in half.drafts} == {np.dtype("float32")}


@pytest.mark.parametrize(("freeze", "moved"), [("chemist", (False, True)), ("engineer", (True, False))])
def test_a_frozen_policy_does_not_move(config, round_of, freeze, moved):
    learning = config.learning.model_copy(update={"freeze": freeze})
    strategy, _ = learned(config.model_copy(update={"learning": learning}), *round_of)
    before = states(Promof(config))
    assert tuple(a != b for a, b in zip(states(strategy), before, strict=True)) == moved


@pytest.mark.parametrize(("k_sets", "alike"), [(1, False), (2, True)])
def test_best_of_two_sets_does_not_tell_the_worse_ones_apart(config, k_sets, alike):
    """Of three sets the worse two have the same mean best of 2, so the same is learned if they change places."""
    rounds = config.rounds.model_copy(update={"sets": 3})
    learning = config.learning.model_copy(update={"k_sets": k_sets, "freeze": "engineer"})
    config = config.model_copy(update={"rounds": rounds, "learning": learning})
    proposals = Promof(config).propose(ASKED)
    chemists = [
        states(learned(config, proposals, [Judged(earned[p.group]) for p in proposals.items])[0])[0]
        for earned in ((0.0, 1.0, 5.0), (1.0, 0.0, 5.0))
    ]
    assert (chemists[0] == chemists[1]) == alike


def test_equal_rewards_and_cut_groups_teach_nothing(config, round_of):
    proposals, _ = round_of
    before = states(Promof(config))
    strategy, signals = learned(config, proposals, [Judged(-10.0)] * len(proposals.items))
    assert states(strategy) == before
    assert signals["dead_groups_share"] == signals["dead_targets_share"] == 1.0
    strategy, signals = learned(config, proposals, [Judged(float("nan"))] * len(proposals.items))
    assert states(strategy) == before
    assert strategy.memory == ()
    rewards = np.random.default_rng(1).normal(size=len(proposals.items))
    cut = [Judged(float("nan") if p.group == 1 else float(r)) for p, r in zip(proposals.items, rewards, strict=True)]
    strategy, signals = learned(config, proposals, cut)
    assert signals["engineer_updates"] == 1
    assert states(strategy)[0] == before[0]  # one whole set left: nothing to compare it with


def test_a_set_that_is_none_is_one_refusal_and_teaches_the_chemist(config, round_of):
    config = config.model_copy(update={"policy": config.policy.model_copy(update={"blocks": "open"})})
    strategy = Promof(config)
    vocabulary = strategy.proposing.policies.chemist.vocabulary
    tokens = np.array(vocabulary.encode("<BOS> [Zn] <SEP> C(( <EOS>"))
    asked_for = strategy.chemist.conditions.encode([TARGET])
    with torch.no_grad():
        before = log_probs(strategy.chemist.network, *padded([tokens.tolist()]), asked_for)
    bad = Draft(1, 0, tokens, before[0].numpy())
    (refused,), flight = strategy.proposing.assemble(ASKED, bad)
    assert flight is None
    assert refused.refusal == "unreadable_linker"
    assert refused.gate_score == 0.0
    proposals, judged = round_of
    trace = Trace.read(proposals.trace)
    mixed = Trace((trace.drafts[0], bad), tuple(f for f in trace.flights if f.group == 0))
    kept = [(p, j) for p, j in zip(proposals.items, judged, strict=True) if p.group == 0]
    items = (*(p for p, _ in kept), refused)
    signals = strategy.learn(ASKED, Proposals(items, mixed.columns()), [*(j for _, j in kept), Judged(-12.0)])
    with torch.no_grad():
        now = log_probs(strategy.chemist.network, *padded([tokens.tolist()]), asked_for)
    assert now.sum() < before.sum()
    assert signals["chemist_updates"] == 1
    assert not any(m.earned <= config.reward.floor for m in strategy.memory)


def test_other_components_than_those_proposed_stop_the_learning(config, round_of):
    proposals, judged = round_of
    trace = Trace.read(proposals.trace)
    false = Trace(trace.drafts, tuple(replace(f, digest="0" * 32) for f in trace.flights))
    with pytest.raises(PromofError, match=r"provenance\.json"):
        Promof(config).learn(ASKED, replace(proposals, trace=false.columns()), judged)


def test_trace_comes_back_from_a_shard_bit_by_bit(components, tmp_path):
    network = engineer()
    smaller = small_mofs()[0]

    groups = [flown(network, components), flown(network, crystal_components(smaller)[0], 2)]
    flights = [Flight(k, components_digest(g.fixed), g.rollout) for k, g in enumerate(groups)]
    drafts = [Draft(0, 0, np.array([2, 7, 9, 4]), np.array([0, -1.5, -0.1, -2], np.float32)),
              Draft(1, 0, np.array([2, 4]), np.array([0, -3], np.float32))]  # fmt: skip
    trace = Trace(tuple(drafts), tuple(flights))
    write_shard(tmp_path / "trace.h5", Shard(trace.columns()))
    back = Trace.read(read_shard(tmp_path / "trace.h5").arrays)
    assert Shard(back.columns()).digest() == Shard(trace.columns()).digest()
    for a, b in zip(back.flights, flights, strict=True):
        assert (a.group, a.digest) == (b.group, b.digest)
        for name, value in b.rollout.columns().items():
            np.testing.assert_array_equal(a.rollout.columns()[name], value)
    assert [d.tokens.tolist() for d in back.drafts] == [d.tokens.tolist() for d in drafts]
    empty = Trace((drafts[1],), ())
    write_shard(tmp_path / "empty.h5", Shard(empty.columns()))
    assert Trace.read(read_shard(tmp_path / "empty.h5").arrays).flights == ()


@pytest.fixture(scope="module")
def net_start_of(config: DesignConfig) -> tuple[Components, NetStart]:
    chain = Promof(config).proposing
    chosen = parse_sequence(easy_sequences()[0], chain.libraries.nodes.by_key)
    found = chain.libraries.realiser(50).realise(chosen, np.random.default_rng(0))
    return found, net_starts(found, chain.libraries.nets, 1, np.random.default_rng(0))[0]


def open_distances(components: Components, start: NetStart, positions: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """Distance of each node's centre from its partner's donors at the image that the contact names."""
    block, partner = components.block_of, start.solution.partner
    found = []
    for k, end in enumerate(components.node_ends):
        other = components.linker_ends[partner[k]]
        donors = np.flatnonzero(block == other.block)[other.donors]
        there = positions[donors].mean(0) + start.solution.shifts[k] @ cell
        found.append(np.linalg.norm(there - positions[block == end.block].mean(0)))
    return np.array(found)


def test_contacts_follow_their_blocks_to_other_images(net_start_of):
    components, start = net_start_of
    fixed = stack([components] * 8)
    begun = launch(fixed, [start] * 8, 1.0, torch.Generator().manual_seed(3))
    original = poses_of([start.solution] * 8, fixed)
    before = open_distances(components, start, place(fixed, original)[0].numpy(), original.cells[0].numpy())
    poses = begun.x0.poses()
    positions = place(fixed, poses).numpy()
    moved = False
    for k, net in enumerate(begun.nets):
        assert net is not None
        after = open_distances(components, net, positions[k], poses.cells[k].numpy())
        np.testing.assert_allclose(after, before, atol=1e-3)
        moved = moved or bool((net.solution.shifts != start.solution.shifts).any())
    assert moved


def test_mixed_starts_begin_at_their_own_times(net_start_of):
    components, start = net_start_of
    fixed = stack([components] * 4)
    begun = launch(fixed, [None, start, None, start], 0.6, torch.Generator().manual_seed(3))
    torch.testing.assert_close(begun.times, torch.tensor([0.0, 0.6, 0.0, 0.6]))
    noise = launch(fixed, [None] * 4, 0.6, torch.Generator().manual_seed(3))
    torch.testing.assert_close(begun.x0.lattice[0], noise.x0.lattice[0])
    assert begun.nets[0] is None
    assert begun.nets[1] is not None
    assert (noise.times == 0).all()


def test_equal_crystals_of_a_round_share_one_structure():
    rng = np.random.default_rng(0)
    cell = np.diag([8.0, 9.0, 10.0])
    first = Structure(np.array([30, 8, 8, 6], np.int32), rng.random((4, 3)) @ cell, cell)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    same = Structure(first.numbers, (first.positions + 1.7) @ turn + rng.normal(0, 1e-4, (4, 3)), cell @ turn)
    other = Structure(first.numbers, first.positions + np.diag([0.4, 0, 0, 0])[:, :3], cell)
    items = [Proposal(f"a{k}", 0, 0, "set", s) for k, s in enumerate((first, same, other, None))]
    items.append(replace(items[1], name="b", sequence="another set"))
    found = shared(items)
    assert found[1].structure is first
    assert found[2].structure is other
    assert found[3].structure is None
    assert found[4].structure is same
    assert [p.name for p in found] == [p.name for p in items]


def test_separate_normalisation_brings_both_parts_to_one_scale():
    judged = [Judged(3.0, 2.0, 1.0), Judged(1.5, 2.5, -1.0), Judged(-10.0), Judged(-12.0)]
    joint = learned_rewards(judged, RewardSettings())
    assert joint.tolist() == [3.0, 1.5, -10.0, -12.0]
    separate = learned_rewards(judged, RewardSettings(norm="separate"))
    energy, prop = np.array([2.0, 2.5, -5.0, -6.0]), np.array([1.0, -1.0, -5.0, -6.0])
    expected = (energy - energy.mean()) / energy.std() + (prop - prop.mean()) / prop.std()
    np.testing.assert_allclose(separate, expected, atol=1e-5)
    # one part without weight: nothing to bring to one scale
    assert learned_rewards(judged, RewardSettings(norm="separate", property_weight=0)).tolist() == joint.tolist()
    # costs belong to the energy
    charged = [Judged(2.0, 2.0, 1.0), Judged(1.5, 2.5, -1.0)]
    both = learned_rewards(charged, RewardSettings(norm="separate"))
    np.testing.assert_allclose(both, [0.0, 0.0], atol=1e-5)  # energy 1.0 < 2.5, property 1.0 > -1.0


def test_noise_only_in_the_window_that_slides_with_the_round(config):
    window = config.sde.model_copy(update={"window": 1})
    chain = Promof(config.model_copy(update={"sde": window})).proposing
    noisy = []
    for number in range(2):
        asked = replace(ASKED, number=number)
        _, flight = chain.assemble(asked, chain.drafts(asked)[0])
        assert flight is not None
        noisy.append(flight.rollout.noisy_steps)
    assert noisy == [[0], [1]]


def test_weights_are_missing(config, tmp_path: Path):
    nowhere = config.policy.model_copy(update={"weights": str(tmp_path)})
    with pytest.raises(UsageError, match="promof pretrain chemist"):
        Promof(config.model_copy(update={"policy": nowhere}))
