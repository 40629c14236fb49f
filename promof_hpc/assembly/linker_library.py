"""The linker library: into which contacts the donors of a linker were split, by linker and by kind of donor group.

A linker of the training part is looked up by its key. Another one is taken apart into donor groups (carboxylate,
azolate, pyridine N, chelates of several), each of which is bound as such groups were in training; a group that was
never seen is divided further, in the end into single atoms, and an atom like none that was ever bound stays free.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from math import log
from pathlib import Path

import numpy as np

from promof_hpc.assembly.columns import flat, pointer, spans
from promof_hpc.assembly.prepared import PreparedMof
from promof_hpc.chem.blocks import Block, Contact, Kind
from promof_hpc.chem.donors import (
    REACHES,
    DonorGraph,
    DonorGroup,
    Split,
    donor_graph,
    environment_split_key,
    patterns,
    restricted,
    smiles_molecule,
    sorted_split,
)
from promof_hpc.chem.numbering import Graph, numberings
from promof_hpc.store.shard import Column, CorruptShard, Shard, read_shard, write_shard

FORMAT = "linker-library/1"
RULE_COUNT = 1.0  # MOFs that a rule counts for, beside those in which a linker or a group was seen
ALIKE = 0.5  # how often equal groups of one linker do the same, beyond chance (in CoRE MOF 0.65 do, by chance 0.36)
MOST_OPTIONS = 256  # splits of different patterns that are kept of one linker

Pattern = tuple[int, ...]
Offers = tuple[Pattern, ...]
Ways = tuple[tuple[Split, int], ...]
Chances = dict[Offers, tuple[Split, float]]  # what is offered, a split that offers it, and how likely that is
FREE: Chances = {(): ((), 1.0)}


@dataclass(frozen=True)
class Option:
    """One way to split a linker's donors into contacts.

    Attributes:
        split: donors of each contact, atoms numbered as in the SMILES with H last; a donor may be in several.
        offers: sorted donor elements of each contact, sorted.
        log_weight: logarithm of how likely it is, as far as training tells.
    """

    split: Split
    offers: Offers
    log_weight: float


@dataclass(frozen=True, eq=False)  # compared by identity, so that results can be cached by library
class LinkerLibrary:
    """Splits seen in training.

    Attributes:
        linkers: by key, the splits of the whole linker with how often each was seen, the commonest first; splits
            that a symmetry of the linker carries into each other are one.
        environments: the same for donor groups, by (reach, environment) of `chem.donors.DonorGroup`; atoms are
            positions in the group, and the empty split stands for a group left free.
    """

    linkers: Mapping[str, Ways]
    environments: Mapping[tuple[int, str], Ways]

    def options(self, key: str) -> tuple[Option, ...]:
        """Ways to split a linker, the likeliest first, one for every multiset of patterns that it can offer.

        Empty where the linker has no donor that training knows, or is no molecule.
        """
        graph = donor_graph(key)
        if graph is None:
            return ()
        by_rule = self._of_donors(graph, graph.donors, REACHES)
        found = _backed_by(self.linkers.get(key, ()), by_rule, graph.numbers)
        options = [Option(sorted_split(split), offers, log(p)) for offers, (split, p) in found.items() if split]
        return tuple(sorted(options, key=lambda o: (-o.log_weight, o.split)))

    def _of_donors(self, graph: DonorGraph, donors: Sequence[int], reaches: Sequence[int]) -> Chances:
        """What these donors do, from what their groups do: equal groups often do the same, others are independent."""
        if not reaches:
            return FREE
        kinds: dict[str, list[DonorGroup]] = defaultdict(list)
        for group in graph.groups(reaches[0], donors):
            kinds[group.environment].append(group)
        total = FREE
        for groups in kinds.values():
            ways = self._of_group(graph, groups[0], reaches)
            alone = FREE
            for group in groups:
                alone = _joined(alone, {offers: (_placed(s, [group]), p) for offers, (s, p) in ways.items()})
            mixed: Chances = {}
            for offers, (places, chance) in ways.items():
                _add(mixed, tuple(sorted(offers * len(groups))), _placed(places, groups), ALIKE * chance)
            for offers, (split, chance) in alone.items():
                _add(mixed, offers, split, (1.0 - ALIKE) * chance)
            total = _joined(total, mixed)
        return total

    def _of_group(self, graph: DonorGraph, group: DonorGroup, reaches: Sequence[int]) -> Chances:
        """What a group does, atoms as positions in the group."""
        number_of = {atom: p for p, atom in enumerate(group.atoms)}
        finer: Chances = {
            offers: (tuple(tuple(number_of[k] for k in contact) for contact in split), chance)
            for offers, (split, chance) in self._of_donors(graph, group.atoms, reaches[1:]).items()
        }
        seen = self.environments.get((reaches[0], group.environment), ())
        return _backed_by(seen, finer, [graph.numbers[k] for k in group.atoms])

    @classmethod
    def of(cls, mofs: Iterable[PreparedMof]) -> LinkerLibrary:
        """The library of some MOFs, which must come with molecules."""
        seen: dict[str, Counter[Split]] = defaultdict(Counter)
        places: dict[tuple[str, bytes], np.ndarray | None] = {}
        for mof in mofs:
            contacts: dict[int, list[Contact]] = defaultdict(list)
            for contact in mof.decomposition.contacts:
                contacts[contact.linker].append(contact)
            here: dict[tuple[str, str], Split] = {}  # a MOF counts once, however many copies of a linker its cell has
            for k, block in enumerate(mof.decomposition.blocks):
                if block.kind is Kind.ORGANIC:
                    place = _cached_place(block, places)
                    if place is not None:
                        split = sorted_split(place[c.donors] for c in contacts[k])
                        here.setdefault((block.key, _split_key(block.key, split)), split)
            for (key, _), split in here.items():
                seen[key][split] += 1
        linkers: dict[str, Ways] = {}
        environments: dict[tuple[int, str], Counter[Split]] = defaultdict(Counter)
        for key in sorted(seen):
            graph = donor_graph(key)
            if graph is None:
                continue
            linkers[key] = _ways(seen[key], partial(_split_key, key))
            for reach in REACHES:
                for group in graph.groups(reach):
                    number_of = {atom: p for p, atom in enumerate(group.atoms)}
                    for split, count in seen[key].items():
                        inside = restricted(split, group.atoms)
                        renamed = sorted_split([number_of[k] for k in contact] for contact in inside)
                        environments[reach, group.environment][renamed] += count
        return cls(
            linkers,
            {
                (reach, text): _ways(found, partial(environment_split_key, text))
                for (reach, text), found in sorted(environments.items())
            },
        )

    def write(self, path: Path, attrs: dict[str, str | int | float | bool]) -> bool:
        """Publish the library; see `store.shard.publish` for what is returned and raised."""
        columns: dict[str, Column] = {
            "key": list(self.linkers),
            "environment": [text for _, text in self.environments],
            "reach": np.array([reach for reach, _ in self.environments], np.int8),
            **_columns("linker", list(self.linkers.values())),
            **_columns("environment", list(self.environments.values())),
        }
        return write_shard(path, Shard(columns, {**attrs, "format": FORMAT}))

    @classmethod
    def read(cls, path: Path) -> LinkerLibrary:
        """Read a library.

        Raises:
            CorruptShard: the file is damaged, or no linker library.
        """
        shard = read_shard(path)
        if shard.attrs.get("format") != FORMAT:
            raise CorruptShard(f"{path} is no linker library ({FORMAT}); make one with `promof prep`.")
        keys, texts = ([str(t) for t in shard.arrays[name]] for name in ("key", "environment"))
        reaches = np.asarray(shard.arrays["reach"]).tolist()
        return cls(
            dict(zip(keys, _read_ways(shard, "linker"), strict=True)),
            dict(zip(zip(reaches, texts, strict=True), _read_ways(shard, "environment"), strict=True)),
        )


def _backed_by(seen: Ways, rule: Chances, numbers: Sequence[int]) -> Chances:
    """Chances from counts and from a rule that stands for `RULE_COUNT` further observations."""
    total = sum(count for _, count in seen) + RULE_COUNT
    chances: Chances = {}
    for split, count in seen:
        _add(chances, patterns(split, numbers), split, count / total)
    for offers, (split, chance) in rule.items():
        _add(chances, offers, split, RULE_COUNT / total * chance)
    return chances


def _add(chances: Chances, offers: Offers, split: Split, chance: float) -> None:
    """Add a chance to what is offered; the split that stands for it is the first, so add the likelier first."""
    before = chances.get(offers)
    chances[offers] = (split, chance) if before is None else (before[0], before[1] + chance)


def _joined(chances: Chances, others: Chances) -> Chances:
    """Both together, if independent; only the likeliest are kept."""
    joined: Chances = {}
    for offers, (split, chance) in chances.items():
        for more, (other, factor) in others.items():
            _add(joined, tuple(sorted(offers + more)), split + other, chance * factor)
    return dict(sorted(joined.items(), key=lambda item: (-item[1][1], item[0]))[:MOST_OPTIONS])


def _placed(places: Split, groups: Sequence[DonorGroup]) -> Split:
    """The split in which each of these groups does the same."""
    return tuple(tuple(group.atoms[p] for p in contact) for group in groups for contact in places)


@lru_cache(maxsize=16384)
def _split_key(key: str, split: Split) -> str:
    graph = donor_graph(key)
    return "" if graph is None else graph.split_key(split)


def _cached_place(block: Block, done: dict[tuple[str, bytes], np.ndarray | None]) -> np.ndarray | None:
    """Number in the SMILES of every atom of a linker, int [n]; None where its key is another molecule."""
    assert block.mol is not None  # linkers come with molecules
    bonds = np.array([(b.GetBeginAtomIdx(), b.GetEndAtomIdx()) for b in block.mol.GetBonds()], np.int16)
    mark = block.key, block.numbers.tobytes() + bonds.tobytes()
    if mark not in done:
        written = smiles_molecule(block.key)
        orders = [] if written is None else numberings(Graph.of(written), Graph.of(block.mol))
        done[mark] = np.argsort(orders[0]) if orders else None
    return done[mark]


def _ways(seen: Counter[Split], key_of: Callable[[Split], str]) -> Ways:
    """Splits with symmetric ones counted as one, the commonest first."""
    total: Counter[str] = Counter()
    first: dict[str, Split] = {}
    for split, count in sorted(seen.items()):
        key = key_of(split)
        total[key] += count
        first.setdefault(key, split)
    return tuple((first[key], count) for key, count in sorted(total.items(), key=lambda item: (-item[1], item[0])))


def _columns(name: str, ways: Sequence[Ways]) -> dict[str, np.ndarray]:
    splits = [split for way in ways for split, _ in way]
    contacts = [contact for split in splits for contact in split]
    return {
        f"{name}_ways": pointer(len(way) for way in ways),
        f"{name}_count": np.array([count for way in ways for _, count in way], np.int32),
        f"{name}_contacts": pointer(len(split) for split in splits),
        f"{name}_donors": pointer(len(contact) for contact in contacts),
        f"{name}_donor": flat([np.array(c) for c in contacts], np.int16),
    }


def _read_ways(shard: Shard, name: str) -> list[Ways]:
    a = {c: np.asarray(shard.arrays[f"{name}_{c}"]) for c in ("ways", "count", "contacts", "donors", "donor")}
    contacts = [tuple(a["donor"][s:e].tolist()) for s, e in spans(a["donors"])]
    splits = [tuple(contacts[s:e]) for s, e in spans(a["contacts"])]
    counts = a["count"].tolist()
    return [tuple(zip(splits[s:e], counts[s:e], strict=True)) for s, e in spans(a["ways"])]
