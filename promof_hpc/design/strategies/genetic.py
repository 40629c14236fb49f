"""Strategy `genetic`: a genetic algorithm over blocks, nets and poses, with the campaign's reward as fitness.

A child comes from parents that won a tournament: the linker of one in the other (crossover), another linker or node
that offers the same contacts and charge, another net of the same signature, or jittered poses (mutation); now and then
it is a random newcomer. Whatever it is made of goes through the same finisher and gate as every strategy's assemblies.
The population keeps the fittest genomes, a few at most of each component set on each net.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from promof_hpc.assembly.assembler import Assembled, finish
from promof_hpc.assembly.components import Components, Solution
from promof_hpc.assembly.net_library import NetLibrary
from promof_hpc.assembly.net_start import NetStart, net_starts
from promof_hpc.assembly.stack import poses_of, stack
from promof_hpc.chem.sequence import ComponentSet, parse_sequence
from promof_hpc.config import DesignConfig
from promof_hpc.design.libraries import Libraries
from promof_hpc.design.proposing.by_net import NetAssembly, proposal_of
from promof_hpc.design.proposing.sharing import shared
from promof_hpc.design.strategies.exchange import Exchange, bites_fit
from promof_hpc.design.strategies.genome import Genome, genome_columns, genomes_of
from promof_hpc.design.strategy import Judged, Proposal, Proposals, Round
from promof_hpc.errors import Refused
from promof_hpc.store.checkpoint import Write
from promof_hpc.store.shard import Shard, read_shard, write_shard

POPULATION = 32
NICHE = 2  # genomes of one component set on one net that the population keeps
TOURNAMENT = 3
NEWCOMERS = 0.1  # share of children that owe nothing to the population
MOST_DRAWS = 20  # ways tried to make one child, before a newcomer takes its place
STARTS = 2  # net starts tried for a child that needs a new assembly
OPERATORS = {"crossover": 0.3, "linker": 0.25, "node": 0.15, "net": 0.1, "pose": 0.2}
JITTER_ANG, JITTER_RAD, TORSION_RAD, STRAIN = 0.5, 0.35, 1.0, 0.03  # where snap still finds the contacts
STATE = "population.h5"


@dataclass(frozen=True)
class Individual:
    """A genome and the reward of its structure."""

    genome: Genome
    fitness: float


class Genetic:
    """A steady-state genetic algorithm; a round's children are judged together."""

    def __init__(self, config: DesignConfig):
        self._per_target = config.rounds.sets * config.rounds.assemblies
        self._assembly = NetAssembly(config, Libraries.read(config.policy.data))
        self._breeder = Breeder(self._assembly)
        self.population: list[Individual] = []

    def propose(self, asked: Round) -> Proposals:
        """A child for every proposal of the round, each a group of its own."""
        count = self._per_target * len(asked.targets)
        drawn = [self._breeder.sketch(self.population, asked.generator("genetic", k)) for k in range(count)]
        seed = int(asked.generator("finish").integers(2**31))
        children = self._breeder.finish([s for s in drawn if s is not None], seed)
        items = [_proposal(asked, k, k // self._per_target, *child) for k, child in enumerate(children)]
        return Proposals(tuple(shared(items)), genome_columns([genome for genome, _ in children]))

    def learn(self, asked: Round, proposals: Proposals, judged: Sequence[Judged]) -> dict[str, float]:
        """Children enter the population by their rewards."""
        born = [
            Individual(genome, j.reward)
            for genome, j in zip(genomes_of(proposals.trace), judged, strict=True)
            if np.isfinite(j.reward)
        ]
        self.population = survivors([*self.population, *born])
        fitness = np.array([i.fitness for i in self.population] or [np.nan])
        return {
            "population": float(len(self.population)),
            "fitness_best": float(fitness.max()),
            "fitness_mean": float(fitness.mean()),
            "niches": float(len({i.genome.niche for i in self.population})),
        }

    def save(self, folder: Path) -> Write:
        """The population."""
        columns = genome_columns([i.genome for i in self.population])
        fitness = np.array([i.fitness for i in self.population], np.float64)
        shard = Shard({**columns, "fitness": fitness})
        return lambda: write_shard(folder / STATE, shard)

    def load(self, folder: Path) -> None:
        """Take up a population."""
        arrays = read_shard(folder / STATE).arrays
        fitness = np.asarray(arrays["fitness"]).tolist()
        self.population = [Individual(g, f) for g, f in zip(genomes_of(arrays), fitness, strict=True)]


def survivors(pool: Sequence[Individual]) -> list[Individual]:
    """The fittest `POPULATION` of a pool, of each niche at most `NICHE`; among equals the older stay."""
    kept: list[Individual] = []
    taken: Counter[tuple[str, str]] = Counter()
    for individual in sorted(pool, key=lambda i: -i.fitness):
        if taken[individual.genome.niche] < NICHE and len(kept) < POPULATION:
            taken[individual.genome.niche] += 1
            kept.append(individual)
    return kept


def tournament(population: Sequence[Individual], generator: np.random.Generator) -> Genome:
    """The fittest of `TOURNAMENT` random members."""
    drawn = generator.integers(len(population), size=TOURNAMENT)
    return population[int(min(drawn, key=lambda k: (-population[k].fitness, k)))].genome


@dataclass(frozen=True)
class Sketch:
    """A child before it is finished.

    Attributes:
        components: its blocks.
        seed: of their realisation.
        starts: nets and contacts that it may be put together on, the most promising first.
        poses: where its blocks are put at first, for each start.
    """

    components: Components
    seed: int
    starts: tuple[NetStart, ...]
    poses: tuple[Solution, ...]


class Breeder:
    """Makes children of a population."""

    def __init__(self, assembly: NetAssembly):
        self._assembly = assembly
        self._exchange = Exchange(assembly.libraries)
        self._operators: dict[str, Callable[[Genome, Genome, np.random.Generator], Sketch | None]] = {
            "crossover": self._crossover,
            "linker": self._other_linker,
            "node": self._other_node,
            "net": self._other_net,
            "pose": self._jittered,
        }

    def sketch(self, population: Sequence[Individual], generator: np.random.Generator) -> Sketch | None:
        """One child of the population; a newcomer where there is none; None where the libraries yield nothing."""
        names, shares = list(OPERATORS), list(OPERATORS.values())
        if population and generator.random() >= NEWCOMERS:
            for _ in range(MOST_DRAWS):
                parent, other = tournament(population, generator), tournament(population, generator)
                made = self._operators[str(generator.choice(names, p=shares))](parent, other, generator)
                if made is not None:
                    return made
        return self._newcomer(generator)

    def finish(self, sketches: Sequence[Sketch], seed: int) -> list[tuple[Genome, Assembled]]:
        """The children, all snapped in one batch; of the starts of each the first that passes the gate is kept."""
        fixed = stack([s.components for s in sketches for _ in s.starts])
        starts = [start for s in sketches for start in s.starts]
        poses = poses_of([pose for s in sketches for pose in s.poses], fixed)
        done = iter(finish(fixed, poses, self._assembly.finisher, starts=starts, seed=seed))
        children = []
        for s in sketches:
            tried = [(next(done), start) for start in s.starts]
            best, start = max(tried, key=lambda pair: pair[0].gate.score)
            children.append((Genome(s.components.sequence, s.seed, start.net_key, best.pose), best))
        return children

    def _newcomer(self, generator: np.random.Generator) -> Sketch | None:
        for _ in range(MOST_DRAWS):
            chosen = self._exchange.known_set(generator)
            if generator.random() < 0.5:
                chosen = self._exchange.neighbour(chosen, generator) or chosen
            made = self._on_nets(chosen, int(generator.integers(2**31)), lambda net: True, generator)
            if made is not None:
                return made
        return None

    def _crossover(self, parent: Genome, other: Genome, generator: np.random.Generator) -> Sketch | None:
        """The parent with a linker of the other in place of one that offers the same contacts."""
        own, offered = parse_sequence(parent.sequence), set(parse_sequence(other.sequence).linkers)
        pairs = [(a, b) for a in sorted(set(own.linkers)) for b in self._exchange.linkers_like(a) if b in offered - {a}]
        if not pairs:
            return None
        key, new = pairs[int(generator.integers(len(pairs)))]
        return self._rebuilt(parent, self._exchange.with_linker(own, key, [new], generator), generator)

    def _other_linker(self, parent: Genome, other: Genome, generator: np.random.Generator) -> Sketch | None:
        chosen = self._exchange.other_linker(parse_sequence(parent.sequence), generator)
        return self._rebuilt(parent, chosen, generator)

    def _other_node(self, parent: Genome, other: Genome, generator: np.random.Generator) -> Sketch | None:
        chosen = self._exchange.other_node(parse_sequence(parent.sequence), generator)
        return self._rebuilt(parent, chosen, generator)

    def _other_net(self, parent: Genome, other: Genome, generator: np.random.Generator) -> Sketch | None:
        chosen = parse_sequence(parent.sequence)
        return self._on_nets(chosen, parent.seed, lambda net: net != parent.net, generator)

    def _jittered(self, parent: Genome, other: Genome, generator: np.random.Generator) -> Sketch | None:
        """The parent's poses, disturbed, on its contacts."""
        components = self._components(parse_sequence(parent.sequence), parent.seed)
        if components is None:
            return None
        start = NetStart(parent.pose, float("nan"), parent.net, "")
        return Sketch(components, parent.seed, (start,), (jitter(parent.pose, generator),))

    def _rebuilt(self, parent: Genome, chosen: ComponentSet | None, generator: np.random.Generator) -> Sketch | None:
        """Other blocks on the parent's net."""
        if chosen is None:
            return None
        return self._on_nets(chosen, parent.seed, lambda net: net == parent.net, generator)

    def _on_nets(
        self, chosen: ComponentSet, seed: int, wanted: Callable[[str], bool], generator: np.random.Generator
    ) -> Sketch | None:
        """A component set on the most promising of some nets; None where it cannot be built or has no start."""
        components = self._components(chosen, seed)
        if components is None or not bites_fit(components):
            return None
        nets = NetLibrary(tuple(d for d in self._assembly.libraries.nets.donors if wanted(d.net_key)))
        starts = tuple(net_starts(components, nets, STARTS, generator))
        return Sketch(components, seed, starts, tuple(s.solution for s in starts)) if starts else None

    def _components(self, chosen: ComponentSet, seed: int) -> Components | None:
        try:
            return self._assembly.realise(chosen, np.random.default_rng(seed))
        except Refused:
            return None


def jitter(pose: Solution, generator: np.random.Generator) -> Solution:
    """Poses with noise on all that an engineer decides; who meets whom stays."""
    strain = np.eye(3) + generator.normal(0.0, STRAIN, (3, 3))
    turns = Rotation.from_rotvec(generator.normal(0.0, JITTER_RAD, (len(pose.rotations), 3))).as_matrix()
    return Solution(
        cell=pose.cell @ strain,
        rotations=turns @ pose.rotations,
        centroids=pose.centroids @ strain + generator.normal(0.0, JITTER_ANG, pose.centroids.shape),
        angles=pose.angles + generator.normal(0.0, TORSION_RAD, pose.angles.shape),
        partner=pose.partner,
        shifts=pose.shifts,
    )


def _proposal(asked: Round, group: int, target: int, genome: Genome, done: Assembled) -> Proposal:
    return proposal_of(f"r{asked.number:05d}-s{group:02d}-a00", group, target, genome.sequence, done)
