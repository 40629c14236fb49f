"""Geometry of a contact seen from its two ends: where it points, and whether node and linker bite alike.

Everything here is a function of arrays, in Å, in any one frame: `sites` are donor positions [m, 3], `behind` the
mean positions of the donors' heavy neighbours [m, 3]. A node offers sites, a linker offers donors; both are given so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

FITTING_BITE_ANG = 0.4  # beyond this rms mismatch no assembly of a random node-linker pair ever closed (0 of 9 tried)
MOST_PERMUTED = 6  # donors of a contact up to which every order is tried


@dataclass(frozen=True)
class Site:
    """One end of a contact.

    Attributes:
        positions: donor positions in Å, [m, 3].
        behind: mean position of each donor's heavy neighbours in Å, [m, 3].
        elements: atomic numbers of the donors, int [m].
    """

    positions: np.ndarray
    behind: np.ndarray
    elements: np.ndarray


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors [..., 3] scaled to length 1; those shorter than 1e-6 stay near zero."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-6)


def directions(sites: np.ndarray, behind: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Unit vectors [2, 3] of one end: from `centre` [3] to the contact, and from the contact to what lies behind it.

    A monatomic linker has nothing behind its donor: both vectors then point from the centre to the contact.
    """
    contact = sites.mean(0)
    outward = contact - centre
    through = behind.mean(0) - contact
    if np.linalg.norm(through) < 1e-6:
        through = outward
    return unit(np.stack([outward, through]))


def bite(sites: np.ndarray, behind: np.ndarray) -> np.ndarray:
    """Internal distances [2m, 2m] in Å of a contact's donors and the points behind them."""
    points = np.concatenate([sites, behind])
    return np.linalg.norm(points[:, None] - points[None], axis=-1)


def bite_mismatch(node: Site, linker: Site) -> float:
    """Root mean square difference in Å between the bites of two ends, under the best order of equal elements.

    Infinite where the ends have different numbers or elements of donors. Beyond `MOST_PERMUTED` donors the sorted
    distances are compared, which is a lower bound.
    """
    m = len(node.positions)
    if sorted(node.elements.tolist()) != sorted(linker.elements.tolist()):
        return float("inf")
    upper = np.triu_indices(2 * m, 1)
    target, own = bite(node.positions, node.behind), bite(linker.positions, linker.behind)
    if m > MOST_PERMUTED:
        return _rms(np.sort(target[upper]) - np.sort(own[upper]))
    best = float("inf")
    for order in permutations(range(m)):
        chosen = np.array(order)
        if (linker.elements[chosen] != node.elements).any():
            continue
        both = np.concatenate([chosen, m + chosen])
        best = min(best, _rms((target - own[np.ix_(both, both)])[upper]))
    return best


def worst_bite(node_sites: Sequence[Site], linker_sites: Sequence[Site]) -> float:
    """The largest, over a linker's ends, of the smallest mismatch with any node end, in Å; 0 without ends.

    At most `FITTING_BITE_ANG` is the condition to pair a linker with a node.
    """
    return max((min((bite_mismatch(n, s) for n in node_sites), default=np.inf) for s in linker_sites), default=0.0)


def _rms(difference: np.ndarray) -> float:
    return float(np.sqrt(np.mean(difference**2)))
