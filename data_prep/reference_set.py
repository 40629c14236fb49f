"""Which real MOFs the reference set is made of: H-complete, small, stratified by metal, drawn with a seed."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import TYPE_CHECKING

from promof_hpc.errors import Refused
from promof_hpc.physics.energies import LEAST_STRUCTURES
from promof_hpc.structure import Structure

if TYPE_CHECKING:
    from promof_hpc.screen.library import Entry as LibraryEntry


@dataclass(frozen=True)
class Member:
    """A MOF that may enter the reference set.

    Attributes:
        name: its name in the library.
        elements: symbols of its elements.
        metals: symbols of its metals, sorted.
    """

    name: str
    elements: tuple[str, ...]
    metals: tuple[str, ...]


def eligible(name: str, structure: Structure, max_atoms: int) -> Member | None:
    """The member that a structure makes, or None: too large, without a metal or carbon, or with hydrogen missing."""
    from promof_hpc.chem.bonds import is_metal
    from promof_hpc.chem.validity import check

    if len(structure) > max_atoms:
        return None
    elements = tuple(sorted(structure.counts))
    metals = tuple(sorted(e for e in elements if is_metal(_number(e))))
    if not metals or "C" not in elements or "H" not in elements:
        return None
    checks = check(structure)
    return Member(name, elements, metals) if checks.h_complete and not checks.failed else None


def stratified(members: Iterable[Member], count: int, seed: int, at_least: int = 10) -> list[Member]:
    """Draw `count` members so that rare metals are there at all and common ones stand for their share.

    Every element first gets up to `at_least` members (5 that converge are needed for a baseline), the rest is
    drawn evenly from what is left, so that common metals keep their weight. The result depends only on the
    set of members and the seed.
    """
    pool = sorted(members, key=lambda m: m.name)
    random.Random(seed).shuffle(pool)
    chosen: dict[str, Member] = {}
    have: dict[str, int] = defaultdict(int)

    def take(member: Member) -> None:
        chosen[member.name] = member
        for element in member.elements:
            have[element] += 1

    rarity: dict[str, int] = defaultdict(int)
    for member in pool:
        for element in member.elements:
            rarity[element] += 1
    for element in sorted(rarity, key=lambda e: (rarity[e], e)):
        if rarity[element] < LEAST_STRUCTURES:
            continue  # too rare for a baseline, whatever is drawn
        for member in pool:
            if have[element] >= at_least or len(chosen) >= count:
                break
            if element in member.elements and member.name not in chosen:
                take(member)
    for member in pool:
        if len(chosen) >= count:
            break
        if member.name not in chosen:
            take(member)
    return sorted(chosen.values(), key=lambda m: m.name)


def _number(symbol: str) -> int:
    from ase.data import atomic_numbers

    return int(atomic_numbers[symbol])


def find_members(library: str, max_atoms: int, workers: int, tick: Callable[[int, int], None]) -> list[Member]:
    """Every entry of a library that may enter a reference set.

    Args:
        tick: called with entries looked at and entries in all.
    """
    from promof_hpc.screen.library import scan

    entries = list(scan(library).entries)
    members = []
    jobs = [(entry, max_atoms) for entry in entries]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for done, member in enumerate(pool.map(_look, jobs, chunksize=32), 1):
            if member is not None:
                members.append(member)
            tick(done, len(entries))
    return members


def _look(job: tuple[LibraryEntry, int]) -> Member | None:
    entry, max_atoms = job
    try:
        return eligible(entry.name, entry.read(), max_atoms)
    except Refused:
        return None
