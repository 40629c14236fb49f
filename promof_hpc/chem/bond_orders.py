"""Bond orders and charges of an organic fragment from its connectivity, its bond lengths and its donor atoms.

Two small integer programs (scipy's HiGHS). The first uses bond lengths and donors to find the total charge, and
refuses what is no closed-shell molecule. The second knows only the graph and that charge, and works on a canonical
numbering: one fragment gets one Lewis structure, whatever crystal it comes from and however its atoms are numbered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from ase.data import chemical_symbols, covalent_radii
from rdkit import Chem
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from promof_hpc.chem.blocks import DecomposeReason
from promof_hpc.chem.valences import Pair, Valences, open_valences
from promof_hpc.errors import Refused

SOLVER_SECONDS = 5.0

# Costs of the integer programs, in units in which one ångström of bond length weighs 10. They are ordered rather than
# fitted: an anion on O, S or N is cheap, a cation on N costs more, a carbon left with an open valence is a last resort.
LENGTH_WEIGHT = 10.0
LENGTH_CAP = 1.5
DOUBLE_FRACTION = 0.935  # of the sum of single-bond radii: the length at which a multiple bond is neither good nor bad
SINGLE_CARBON_ANG = 1.45  # two carbons further apart are singly bonded: separates viologens from their quinoid form
SINGLE_CARBON_WEIGHT = 100.0
ANION_COST = {8: 0.5, 16: 0.5, 34: 0.5, 7: 1.0, 15: 2.0, 6: 14.0, 5: 14.0}
SPECTATOR_ANION_COST = {8: 2.0, 16: 2.0, 34: 2.0, 7: 12.0, 15: 12.0}  # not bonded to a metal
LAST_RESORT = 20.0
NITRILE_ANION_COST, AZIDE_ANION_COST = 0.5, -0.3  # on top, at an end atom: N#C[N-]C#N, but RN=[N+]=[N-]
CATION_COST, DONOR_CATION_COST, NATURAL_CATION_COST = 1.0, 9.0, -0.3
OXO_COST = 8.0  # a double bond away from O in CO2, CO2H, CO2R and NO2, or to O in an N-oxide
EXOCYCLIC_COST = 0.8  # a double bond that leaves a ring: keeps phenolates and azolates aromatic


@dataclass(frozen=True)
class Fragment:
    """A connected organic fragment without bond orders.

    Attributes:
        numbers: atomic numbers, int [n].
        pairs: bonded atoms, each pair once.
        lengths: bond lengths in Å, float [m].
        donors: True for atoms bonded to a metal, bool [n].
    """

    numbers: np.ndarray
    pairs: tuple[Pair, ...]
    lengths: np.ndarray
    donors: np.ndarray


@dataclass(frozen=True)
class Lewis:
    """Bond orders [m] of the pairs and formal charges [n] of the atoms."""

    orders: tuple[int, ...]
    charges: tuple[int, ...]


def skeleton(numbers: Sequence[int], pairs: Sequence[Pair]) -> tuple[str, list[int]]:
    """Canonical text of a bare graph (every bond single, every H an atom) and its atoms in the order of that text.

    Two fragments with equal text have the same graph once both are numbered in the returned order.
    """
    bare = _bare_molecule(numbers, pairs)
    text = Chem.MolToSmiles(bare, isomericSmiles=False, allHsExplicit=True)
    order = bare.GetPropsAsDict(includePrivate=True, includeComputed=True)["_smilesAtomOutputOrder"]
    return text, list(order)


def _bare_molecule(numbers: Sequence[int], pairs: Sequence[Pair]) -> Chem.Mol:
    """RDKit molecule with single bonds and without implicit H; rings are known, nothing else is."""
    mol = Chem.RWMol()
    for z in numbers:
        atom = Chem.Atom(int(z))
        atom.SetNoImplicit(True)
        mol.AddAtom(atom)
    for a, b in pairs:
        mol.AddBond(int(a), int(b), Chem.BondType.SINGLE)
    bare = mol.GetMol()
    bare.UpdatePropertyCache(strict=False)
    Chem.FastFindRings(bare)
    return bare


def perceive(fragment: Fragment) -> Lewis:
    """Bond orders and formal charges of a fragment.

    Raises:
        Refused: with a `DecomposeReason` and the place; hydrogen missing in the file is the usual cause.
    """
    valences = open_valences(fragment.numbers, fragment.pairs)
    charge = _total_charge(fragment, valences)
    text, order = skeleton(fragment.numbers.tolist(), fragment.pairs)
    place = {atom: k for k, atom in enumerate(order)}
    renamed = [tuple(sorted((place[a], place[b]))) for a, b in fragment.pairs]
    canonical = tuple(sorted((p[0], p[1]) for p in renamed))
    solved = _canonical_lewis(text, tuple(int(fragment.numbers[k]) for k in order), canonical, charge)
    order_of = dict(zip(canonical, solved.orders, strict=True))
    return Lewis(
        orders=tuple(order_of[(p[0], p[1])] for p in renamed),
        charges=tuple(solved.charges[place[k]] for k in range(len(order))),
    )


def _total_charge(fragment: Fragment, valences: Valences) -> int:
    """Charge of the fragment from its geometry.

    Raises:
        Refused: an atom other than a donor or a chalcogen or nitrogen keeps an open valence.
    """
    if not valences.open.any():
        return int(valences.charge.sum())
    numbers, donors = fragment.numbers, fragment.donors
    anion_cost = _anion_cost(numbers, fragment.pairs, valences, donors)
    cation_cost = np.where(donors & ~valences.natural, DONOR_CATION_COST, _cation_cost(valences))
    pair_cost = _length_cost(numbers, fragment.pairs, fragment.lengths)
    pair_cost += _oxo_cost(numbers, fragment.pairs, valences)
    pair_cost += _exocyclic_cost(numbers.tolist(), fragment.pairs)
    _, anions, cations = _solve(numbers, fragment.pairs, valences, pair_cost, anion_cost, cation_cost, None)
    allowed = donors | np.isin(numbers, (7, 8, 16, 34)) | _cyanide_carbons(numbers, fragment.pairs, valences)
    radicals = (anions > 0) & ~allowed
    if radicals.any():
        where = ", ".join(sorted({chemical_symbols[z] for z in numbers[radicals]}))
        raise Refused(DecomposeReason.RADICAL, f"{int(radicals.sum())} open valence at {where} (hydrogen missing?)")
    return int((valences.charge + cations - anions).sum())


@lru_cache(maxsize=4096)
def _canonical_lewis(text: str, numbers: tuple[int, ...], pairs: tuple[Pair, ...], charge: int) -> Lewis:
    """The Lewis structure that a canonically numbered graph gets with a total charge; `text` only names it."""
    z = np.array(numbers)
    valences = open_valences(z, pairs)
    if not valences.open.any() and charge == valences.charge.sum():
        return Lewis((1,) * len(pairs), tuple(valences.charge.tolist()))
    # slopes along the canonical numbering pick one of equivalent structures
    anion_cost = _anion_cost(z, pairs, valences, np.ones(len(z), bool)) + 1e-3 * np.arange(len(z)) / len(z)
    pair_cost = _oxo_cost(z, pairs, valences) + 1e-3 * np.arange(len(pairs)) / len(pairs)
    pair_cost += _exocyclic_cost(numbers, pairs)
    orders, anions, cations = _solve(z, pairs, valences, pair_cost, anion_cost, _cation_cost(valences), charge)
    return Lewis(tuple(orders.tolist()), tuple((valences.charge + cations - anions).tolist()))


def _cation_cost(valences: Valences) -> np.ndarray:
    """Cost [n] of a positive N."""
    return np.where(valences.natural, NATURAL_CATION_COST, CATION_COST)


def _anion_cost(numbers: np.ndarray, pairs: Sequence[Pair], valences: Valences, donors: np.ndarray) -> np.ndarray:
    """Cost [n] of leaving one valence open at an atom: cheap at donors, and between equals where it is written."""
    cost = np.array(
        [
            (ANION_COST if donor else SPECTATOR_ANION_COST).get(int(z), LAST_RESORT)
            for z, donor in zip(numbers, donors, strict=True)
        ]
    )
    for a, b in (*pairs, *((b, a) for a, b in pairs)):
        if numbers[a] == 7 and valences.degree[a] == 1:
            cost[a] += AZIDE_ANION_COST if numbers[b] == 7 else NITRILE_ANION_COST
    return cost


def _cyanide_carbons(numbers: np.ndarray, pairs: Sequence[Pair], valences: Valences) -> np.ndarray:
    """Mask [n] of carbons whose only neighbour is N: cyanide and isocyanide may carry the charge on carbon."""
    mask = np.zeros(len(numbers), bool)
    for a, b in (*pairs, *((b, a) for a, b in pairs)):
        mask[a] |= bool(numbers[a] == 6 and valences.degree[a] == 1 and numbers[b] == 7)
    return mask


def _length_cost(numbers: np.ndarray, pairs: Sequence[Pair], lengths: np.ndarray) -> np.ndarray:
    """Cost [m] of each extra bond order: short bonds ask for it, long ones refuse it."""
    ends = np.array(pairs, int).reshape(-1, 2)
    neutral = DOUBLE_FRACTION * covalent_radii[numbers[ends]].sum(1)
    cost = np.clip(LENGTH_WEIGHT * (lengths - neutral), -LENGTH_CAP, LENGTH_CAP)
    carbons = (numbers[ends] == 6).all(1)
    return cost + np.where(carbons, SINGLE_CARBON_WEIGHT * np.clip(lengths - SINGLE_CARBON_ANG, 0, 0.04), 0.0)


def _oxo_cost(numbers: np.ndarray, pairs: Sequence[Pair], valences: Valences) -> np.ndarray:
    """Cost [m] that keeps carboxylates, acids, esters, nitro groups and N-oxides as they are written.

    A C or N with a terminal O and a second O has its double bond to a terminal O; an N with one O has none to it.
    """
    cost = np.zeros(len(pairs))
    oxygens = np.zeros(len(numbers), int)
    for a, b in pairs:
        oxygens[a] += numbers[b] == 8
        oxygens[b] += numbers[a] == 8
    for k, (a, b) in enumerate(pairs):
        for centre, other in ((a, b), (b, a)):
            to_terminal = numbers[other] == 8 and valences.degree[other] == 1
            terminal = valences.terminal_oxygens[centre]
            acid = numbers[centre] in (6, 7) and oxygens[centre] >= 2 and terminal >= 1
            n_oxide = valences.natural[centre] and oxygens[centre] == 1
            if (acid and not to_terminal) or (n_oxide and to_terminal):
                cost[k] += OXO_COST
    return cost


def _exocyclic_cost(numbers: Sequence[int], pairs: Sequence[Pair]) -> np.ndarray:
    """Cost [m] of a double bond between a ring atom and an atom outside that ring."""
    leaving = [
        not b.IsInRing() and (b.GetBeginAtom().IsInRing() or b.GetEndAtom().IsInRing())
        for b in _bare_molecule(numbers, pairs).GetBonds()
    ]
    return EXOCYCLIC_COST * np.array(leaving, float)


def _solve(
    numbers: np.ndarray,
    pairs: Sequence[Pair],
    valences: Valences,
    pair_cost: np.ndarray,
    anion_cost: np.ndarray,
    cation_cost: np.ndarray,
    charge: int | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cheapest bond orders [m], anions [n] and cations [n] that leave no valence open.

    Variables: extra order x of each bond (0 to 2), u of each atom (1 where its valence stays open: an anion), p of
    each N (1 where it is a cation). For every atom, sum of x at it + u - p = its open valence.
    """
    n, m = len(numbers), len(pairs)
    ends = np.array(pairs, int).reshape(-1, 2)
    can_extend = valences.open + valences.cation > 0
    # one charge at most on an electronegative atom; elsewhere any number, so that missing H is named as such
    most = np.where(np.isin(numbers, (7, 8, 16, 34)), 1, valences.open)
    anions = np.minimum(valences.open + valences.cation, most)
    upper = np.concatenate([2.0 * can_extend[ends].all(1), anions, valences.cation]).astype(float)
    bond, atom = np.arange(m), np.arange(n)
    rows = np.concatenate([ends[:, 0], ends[:, 1], atom, atom])
    columns = np.concatenate([bond, bond, m + atom, m + n + atom])
    values = np.concatenate([np.ones(2 * m + n), -np.ones(n)])
    balance = coo_array((values, (rows, columns)), shape=(n, m + 2 * n)).tocsr()
    constraints = [LinearConstraint(balance, valences.open, valences.open)]
    constraints += [LinearConstraint(row, low, high) for row, low, high in _anion_rules(numbers, ends, valences)]
    if charge is not None:
        total = np.concatenate([np.zeros(m), -np.ones(n), np.ones(n)])
        missing = charge - int(valences.charge.sum())
        constraints.append(LinearConstraint(total, missing, missing))
    result = milp(
        np.concatenate([pair_cost, anion_cost, cation_cost]),
        constraints=constraints,
        bounds=Bounds(0, upper),
        integrality=np.ones(m + 2 * n),
        options={"time_limit": SOLVER_SECONDS, "mip_rel_gap": 0.0},
    )
    if result.x is None:
        raise Refused(DecomposeReason.UNSOLVED, f"no bond orders satisfy the valences of {n} atoms (hydrogen missing?)")
    x = np.round(result.x).astype(int)
    return 1 + x[:m], x[m : m + n], x[m + n :]


def _anion_rules(numbers: np.ndarray, ends: np.ndarray, valences: Valences) -> list[tuple[np.ndarray, float, float]]:
    """Rows [m + 2n] with bounds that fix what delocalised bond lengths cannot tell.

    Oxocarbons CnOn (squarate, croconate, rhodizonate) are dianions. Of the pyrrole rings of a fragment at least half
    have a negative N or a substituted one: a porphyrin without H is a dianion, a dipyrrin an anion.
    """
    n, m = len(numbers), len(ends)
    rules = []
    carbon, oxygen = numbers == 6, numbers == 8
    ring = valences.degree == 3
    one_oxygen = valences.terminal_oxygens == 1
    if n >= 8 and 2 * carbon.sum() == n and bool((np.where(carbon, ring & one_oxygen, oxygen)).all()):
        rules.append((_anions_of(oxygen, m), 2.0, 2.0))
    pyrrole = _pyrrole_nitrogens(numbers, ends, valences)
    bare = pyrrole & (valences.degree == 2)
    needed = (int(pyrrole.sum()) + 1) // 2 - int((pyrrole & ~bare).sum())
    if bare.any() and needed > 0:
        rules.append((_anions_of(bare, m), float(needed), float(bare.sum())))
    return rules


def _anions_of(atoms: np.ndarray, bond_count: int) -> np.ndarray:
    """Row [m + 2n] that counts the anions among `atoms`, bool [n]."""
    return np.concatenate([np.zeros(bond_count), atoms.astype(float), np.zeros(len(atoms))])


def _pyrrole_nitrogens(numbers: np.ndarray, ends: np.ndarray, valences: Valences) -> np.ndarray:
    """Mask [n] of N in five-membered rings with four three-connected carbons that bear no terminal O."""
    partners: list[set[int]] = [set() for _ in numbers]
    for a, b in ends.tolist():
        partners[a].add(b)
        partners[b].add(a)
    plain = (numbers == 6) & (valences.degree == 3) & (valences.terminal_oxygens == 0)
    mask = np.zeros(len(numbers), bool)
    for k in np.nonzero(numbers == 7)[0].tolist():
        alpha = [a for a in partners[k] if plain[a]]
        beta = {a: {c for c in partners[a] if plain[c]} for a in alpha}
        mask[k] = any(partners[c] & beta[b] for a in alpha for b in alpha if a < b for c in beta[a] - {b})
    return mask
