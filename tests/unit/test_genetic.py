"""The genetic algorithm and random search on a handful of small MOFs."""

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from promof_hpc.assembly.components import Solution
from promof_hpc.chem.sequence import parse_sequence
from promof_hpc.config import DesignConfig
from promof_hpc.design.libraries import Libraries
from promof_hpc.design.strategies import genetic
from promof_hpc.design.strategies.exchange import Exchange, linker_charge
from promof_hpc.design.strategies.genetic import Genetic, Individual, jitter, survivors, tournament
from promof_hpc.design.strategies.genome import Genome, genome_columns, genomes_of
from promof_hpc.design.strategies.random_search import RandomSearch
from promof_hpc.design.strategy import Judged, Proposals, Round
from promof_hpc.errors import UsageError
from tests.training_set import shipped_training, training_set

MOST_ATOMS = 26


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    small = [m for m in shipped_training() if len(m.decomposition.structure) <= MOST_ATOMS]
    return training_set(tmp_path_factory.mktemp("data") / "set", small)


@pytest.fixture(scope="module")
def config(data: Path) -> DesignConfig:
    return DesignConfig(
        strategy="genetic",
        rounds={"targets": 2, "sets": 2, "assemblies": 2},
        assembly={"atom_cap": MOST_ATOMS, "tries": 1},
        policy={"data": str(data)},
    )


def asked(number: int, seed: int = 0) -> Round:
    return Round(number, seed, 100, 0, [{"pld_ang": 4.0, "atoms": 20.0}] * 2)


def told(proposals: Proposals) -> list[Judged]:
    """Rewards that want dense crystals."""
    return [
        Judged(-100.0) if p.structure is None else Judged(-p.structure.volume / len(p.structure))
        for p in proposals.items
    ]


@pytest.fixture(scope="module")
def evolved(config: DesignConfig) -> tuple[Genetic, list[Proposals]]:
    strategy, rounds = Genetic(config), []
    for number in range(3):
        rounds.append(strategy.propose(asked(number)))
        strategy.learn(asked(number), rounds[-1], told(rounds[-1]))
    return strategy, rounds


def genome(sequence: str = "a", net: str = "n", blocks: int = 2, torsions: int = 1) -> Genome:
    rng = np.random.default_rng(len(sequence) + blocks)
    pose = Solution(rng.random((3, 3)), rng.random((blocks, 3, 3)), rng.random((blocks, 3)), rng.random(torsions),
                    rng.permutation(4), rng.integers(-1, 2, (4, 3)))  # fmt: skip
    return Genome(sequence, 7, net, pose)


def same(a: Genome, b: Genome) -> bool:
    arrays = all(np.array_equal(getattr(a.pose, n), getattr(b.pose, n)) for n in vars(a.pose))
    return (a.sequence, a.seed, a.net) == (b.sequence, b.seed, b.net) and arrays


def test_genomes_come_back_from_columns_to_the_bit():
    before = [genome(), genome("longer", "m", blocks=5, torsions=0), genome("b", blocks=1)]
    assert all(same(a, b) for a, b in zip(before, genomes_of(genome_columns(before)), strict=True))
    assert genomes_of(genome_columns([])) == []


def test_the_fittest_survive_and_no_niche_holds_more_than_its_share():
    pool = [Individual(genome(f"set {k // 5}"), float(k)) for k in range(200)]
    kept = survivors(pool)
    assert len(kept) == genetic.POPULATION
    assert kept[0].fitness == 199.0
    assert max(Counter(i.genome.niche for i in kept).values()) == genetic.NICHE
    # nobody outside is fitter than somebody inside, unless its niche is full of fitter ones
    inside = {id(i) for i in kept}
    for outside in (i for i in pool if id(i) not in inside):
        fitter = [i for i in kept if i.fitness >= outside.fitness]
        own = [i for i in fitter if i.genome.niche == outside.genome.niche]
        assert len(fitter) == len(kept) or len(own) == genetic.NICHE


def test_a_tournament_prefers_fitness_as_the_best_of_three_draws_would():
    population = [Individual(genome(str(k)), float(k)) for k in range(10)]
    rng = np.random.default_rng(0)
    wins = Counter(tournament(population, rng).sequence for _ in range(4000))
    expected = 1 - 0.9**genetic.TOURNAMENT  # the fittest wins whenever it is drawn
    assert wins["9"] / 4000 == pytest.approx(expected, abs=0.03)


def test_jitter_moves_everything_but_who_meets_whom():
    pose = genome(blocks=3, torsions=2).pose
    turned = Solution(pose.cell, np.tile(np.eye(3), (3, 1, 1)), *(getattr(pose, n) for n in ("centroids", "angles")),
                      pose.partner, pose.shifts)  # fmt: skip
    moved = jitter(turned, np.random.default_rng(0))
    assert np.allclose(moved.rotations @ moved.rotations.transpose(0, 2, 1), np.eye(3))
    assert np.allclose(np.linalg.det(moved.rotations), 1.0)
    for name in ("cell", "rotations", "centroids", "angles"):
        assert not np.allclose(getattr(moved, name), getattr(turned, name))
    assert moved.partner is pose.partner
    assert moved.shifts is pose.shifts


def test_exchange_keeps_contacts_and_charge(data: Path):
    libraries = Libraries.read(data)
    exchange, rng = Exchange(libraries), np.random.default_rng(0)
    made = 0
    for _ in range(60):
        before = exchange.known_set(rng)
        for after in (exchange.other_linker(before, rng), exchange.other_node(before, rng)):
            if after is None:
                continue
            made += 1
            assert after != before
            assert sum(map(linker_charge, after.linkers)) == sum(map(linker_charge, before.linkers))
            assert (len(after.nodes), len(after.linkers)) == (len(before.nodes), len(before.linkers))
            for key in set(after.linkers) - set(before.linkers):
                offers = {libraries.linkers.options(k)[0].offers for k in set(before.linkers)}
                assert libraries.linkers.options(key)[0].offers in offers
            patterns = [
                {libraries.nodes.templates[k].pattern for n in set(s.nodes) for k in libraries.nodes.by_key[n]}
                for s in (before, after)
            ]
            assert patterns[0] & patterns[1]
    assert made > 20


def test_the_first_round_draws_newcomers_and_later_ones_breed(evolved: tuple[Genetic, list[Proposals]]):
    strategy, rounds = evolved
    first, last = ({p.sequence for p in proposals.items} for proposals in (rounds[0], rounds[2]))
    assert len(first) > 3
    known = {i.genome.sequence for i in strategy.population}
    assert last <= known | last
    assert any(p.refusal == "" for proposals in rounds for p in proposals.items)
    assert all(p.start.startswith("net:") for proposals in rounds for p in proposals.items)
    assert [p.target for p in rounds[0].items] == [0] * 4 + [1] * 4
    assert [p.group for p in rounds[0].items] == list(range(8))


def test_the_best_that_was_ever_born_is_never_lost(evolved: tuple[Genetic, list[Proposals]]):
    strategy, rounds = evolved
    best = max((j.reward, p.sequence) for made in rounds for p, j in zip(made.items, told(made), strict=True))
    fittest = max(strategy.population, key=lambda i: i.fitness)
    assert (fittest.fitness, fittest.genome.sequence) == best


def test_a_state_that_was_saved_goes_on_with_the_same_children(
    evolved: tuple[Genetic, list[Proposals]], config: DesignConfig, tmp_path: Path
):
    strategy, _ = evolved
    strategy.save(tmp_path)()
    again = Genetic(config)
    again.load(tmp_path)
    assert [i.fitness for i in again.population] == [i.fitness for i in strategy.population]
    assert all(same(a.genome, b.genome) for a, b in zip(again.population, strategy.population, strict=True))
    one, other = (s.propose(asked(3)) for s in (strategy, again))
    assert [p.name for p in one.items] == [p.name for p in other.items]
    digests = [[p.structure.digest() for p in made.items if p.structure is not None] for made in (one, other)]
    assert digests[0] == digests[1]


def test_proposing_changes_nothing_and_another_seed_proposes_otherwise(evolved: tuple[Genetic, list[Proposals]]):
    strategy, _ = evolved
    before = list(strategy.population)
    one = strategy.propose(asked(3))
    other = strategy.propose(asked(3, seed=1))
    assert strategy.population == before
    assert [p.sequence for p in one.items] != [p.sequence for p in other.items]


def test_what_the_budget_cut_off_is_not_learned(config: DesignConfig):
    strategy = Genetic(config)
    proposals = strategy.propose(asked(0))
    judged = told(proposals)
    judged[2] = Judged(math.nan)
    strategy.learn(asked(0), proposals, judged)
    assert len(strategy.population) <= len(judged) - 1
    assert all(math.isfinite(i.fitness) for i in strategy.population)


def test_random_search_assembles_sets_that_the_libraries_can_build(config: DesignConfig, data: Path):
    strategy, one_target = RandomSearch(config), Round(0, 0, 100, 0, [{}])
    items = strategy.propose(one_target).items
    assert len({p.name for p in items}) == len(items)
    assert {p.group for p in items} <= {0, 1}
    assert all(parse_sequence(p.sequence, Libraries.read(data).nodes.by_key) for p in items)
    assert any(p.refusal == "" for p in items)
    again = strategy.propose(one_target).items
    assert [p.structure.digest() for p in again if p.structure] == [p.structure.digest() for p in items if p.structure]


def test_a_training_set_without_libraries_says_what_makes_them(tmp_path: Path):
    (tmp_path / "nodes.h5").touch()
    with pytest.raises(UsageError, match=r"has no linkers\.h5, nets\.h5; make the libraries with `promof prep`"):
        Libraries.read(tmp_path)
