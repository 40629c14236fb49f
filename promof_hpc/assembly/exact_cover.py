"""Which option every block takes so that nodes and linkers offer equally many contacts of every pattern.

Small sums are tabled; what they cannot meet is an integer programme of some dozens of variables, which HiGHS solves
(through SciPy) in milliseconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from operator import add

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

TIME_LIMIT_S = 5.0  # a safety net only: which cover is found must not depend on the machine
MOST_SUMS = 20_000  # ways to choose for one side that are looked at before the integer programme is asked

Pattern = tuple[int, ...]
Taken = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Choice:
    """Equal blocks and the options that each of them has.

    Attributes:
        copies: how many such blocks there are.
        offers: of each option, the patterns of its contacts (sorted donor elements).
        log_weights: of each option, how much it is wanted.
    """

    copies: int
    offers: tuple[tuple[Pattern, ...], ...]
    log_weights: tuple[float, ...]


def exact_cover(nodes: Sequence[Choice], linkers: Sequence[Choice]) -> tuple[Taken, Taken] | None:
    """The likeliest options with which both sides offer the same; None where there are none.

    Covers in which equal blocks all take one option come first: in crystals mostly they do. The log weight of an
    option counts once then; in mixed covers each copy has its share of it.

    Returns:
        For each choice of the nodes, and of the linkers, the option of every copy, in ascending order.
    """
    usable = _usable(nodes, linkers)
    if any(not options for options in usable):
        return None
    return _alike(nodes, linkers, usable) or _mixed(nodes, linkers, usable)


def _alike(
    nodes: Sequence[Choice], linkers: Sequence[Choice], usable: Sequence[Sequence[int]]
) -> tuple[Taken, Taken] | None:
    """The likeliest cover in which equal blocks take one option: sums of both sides are tabled and compared."""
    order = sorted({p for c in (*nodes, *linkers) for offer in c.offers for p in offer})
    sides = []
    for side, options in ((nodes, usable[: len(nodes)]), (linkers, usable[len(nodes) :])):
        sums: dict[tuple[int, ...], tuple[float, tuple[int, ...]]] = {(0,) * len(order): (0.0, ())}
        for choice, mine in zip(side, options, strict=True):
            if len(sums) * len(mine) > MOST_SUMS:
                return None
            longer: dict[tuple[int, ...], tuple[float, tuple[int, ...]]] = {}
            vectors = [[choice.copies * choice.offers[o].count(p) for p in order] for o in mine]
            for total, (weight, taken) in sums.items():
                for o, vector in zip(mine, vectors, strict=True):
                    key = tuple(map(add, total, vector))
                    new = weight + choice.log_weights[o]
                    if key not in longer or new > longer[key][0]:
                        longer[key] = new, (*taken, o)
            sums = longer
        sides.append(sums)
    common = sides[0].keys() & sides[1].keys()
    if not common:
        return None
    best = max(common, key=lambda total: (sides[0][total][0] + sides[1][total][0], total))
    of_nodes, of_linkers = (
        tuple((o,) * c.copies for o, c in zip(sums[best][1], side, strict=True))
        for sums, side in zip(sides, (nodes, linkers), strict=True)
    )
    return of_nodes, of_linkers


def _mixed(
    nodes: Sequence[Choice], linkers: Sequence[Choice], usable: Sequence[Sequence[int]]
) -> tuple[Taken, Taken] | None:
    """Any cover, by an integer programme: how many copies take an option is a variable, a pattern an equation."""
    choices = [*nodes, *linkers]
    columns = [(c, o) for c, options in enumerate(usable) for o in options]
    rows = {p: r for r, p in enumerate(sorted({p for c, o in columns for p in choices[c].offers[o]}))}
    sums = np.zeros((len(rows) + len(choices), len(columns)))
    for k, (c, o) in enumerate(columns):
        for pattern, count in Counter(choices[c].offers[o]).items():
            sums[rows[pattern], k] = count if c < len(nodes) else -count
        sums[len(rows) + c, k] = 1
    wanted = np.array([0] * len(rows) + [c.copies for c in choices])
    found = milp(
        np.array([-choices[c].log_weights[o] / choices[c].copies for c, o in columns]),
        integrality=np.ones(len(columns)),
        bounds=Bounds(0, np.array([choices[c].copies for c, _ in columns])),
        constraints=LinearConstraint(sums, wanted, wanted),
        options={"time_limit": TIME_LIMIT_S},
    )
    if found.x is None:
        return None
    taken: list[tuple[int, ...]] = [() for _ in choices]
    for (c, o), count in zip(columns, np.rint(found.x).astype(int).tolist(), strict=True):
        taken[c] += (o,) * count
    return tuple(taken[: len(nodes)]), tuple(taken[len(nodes) :])


def _usable(nodes: Sequence[Choice], linkers: Sequence[Choice]) -> list[list[int]]:
    """Options of each choice whose every pattern the other side offers as well: mostly few of many."""
    sides = [[list(range(len(c.offers))) for c in side] for side in (nodes, linkers)]
    while True:
        offered = [
            {p for c, options in zip(side, left, strict=True) for o in options for p in c.offers[o]}
            for side, left in zip((nodes, linkers), sides, strict=True)
        ]
        fewer = [
            [
                [o for o in options if offered[1 - s].issuperset(c.offers[o])]
                for c, options in zip(side, left, strict=True)
            ]
            for s, (side, left) in enumerate(zip((nodes, linkers), sides, strict=True))
        ]
        if fewer == sides:
            return [*sides[0], *sides[1]]
        sides = fewer
