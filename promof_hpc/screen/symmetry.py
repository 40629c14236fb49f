"""Symmetry of a CIF: operators from a list or a space-group name, and the atoms that they make of the sites."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import gemmi
import numpy as np

from promof_hpc.errors import Refused
from promof_hpc.screen.contacts import too_many
from promof_hpc.screen.refusals import ReadLimits, ReadReason

DENOMINATOR = gemmi.Op.DEN  # translations are whole multiples of 1/24
METRIC_TOLERANCE = 0.02  # relative change of the metric tensor under an operator; refined cells round to less


@dataclass(frozen=True)
class Operators:
    """A group of symmetry operators.

    Attributes:
        rotations: int [m, 3, 3], acting on fractional columns.
        translations: int [m, 3] in units of 1/24.
        origin: where they come from, for messages (`the operator list`, `the name 'F m -3 m'`).
    """

    rotations: np.ndarray
    translations: np.ndarray
    origin: str

    def __len__(self) -> int:
        return len(self.rotations)

    def keys(self) -> frozenset[tuple[int, ...]]:
        """The operators as a set of integers, to compare two groups."""
        rows = np.concatenate([self.rotations.reshape(-1, 9), self.translations % DENOMINATOR], axis=1)
        return frozenset(map(tuple, rows.tolist()))


def identity() -> Operators:
    """P1."""
    return Operators(np.eye(3, dtype=int)[None], np.zeros((1, 3), int), "P 1")


def operators_from_list(triplets: Sequence[str]) -> Operators:
    """Operators as a CIF lists them, for instance `['x,y,z', '-x,1/2+y,-z']`.

    Raises:
        Refused: one cannot be read, or together they are no group (an operator is missing or mistyped).
    """
    ops = []
    for triplet in triplets:
        try:
            if not re.fullmatch(r"[xyzXYZ\d+\-*/., ]+", triplet):
                raise ValueError("only x, y, z and fractions are allowed")
            op = gemmi.Op(triplet)
            if (np.array(op.rot) % DENOMINATOR).any():
                raise ValueError("x, y and z have no factors")
            ops.append(op)
        except (RuntimeError, ValueError) as error:
            raise Refused(
                ReadReason.SYMMETRY_UNKNOWN, f"the symmetry operator '{triplet}' cannot be read ({error}); correct it"
            ) from error
    operators = _as_arrays(ops, "the operator list")
    if not _is_group(operators):
        raise Refused(
            ReadReason.SYMMETRY_UNKNOWN,
            f"the {len(ops)} symmetry operators are no group: one is missing, doubled or mistyped; write all of them",
        )
    return operators


def operators_from_name(name: str, number: int | None, angles: tuple[float, float, float]) -> list[Operators]:
    """Operators of every setting that a Hermann-Mauguin name leaves open (two where the origin is not said).

    Old spellings (`Fm3m`, `F_m_3_m`, `P2(1)/c`, `F d -3 m Z`) are understood.

    Args:
        number: International Tables number beside the name; it must fit.
        angles: of the cell in degrees, to tell rhombohedral from hexagonal axes.

    Raises:
        Refused: the name is unknown, or another number stands beside it.
    """
    found = gemmi.find_spacegroup_by_name(_plain_name(name), alpha=angles[0], gamma=angles[2])
    if found is None:
        raise Refused(
            ReadReason.SYMMETRY_UNKNOWN,
            f"the space group '{name}' is unknown and no operators are listed; write _space_group_symop_operation_xyz",
        )
    if number is not None and found.number != number:
        raise Refused(
            ReadReason.CONTRADICTION,
            f"the space group '{name}' is number {found.number}, but number {number} stands beside it; correct one",
        )
    settings = [found]
    if found.ext in ("1", "2") and ":" not in _plain_name(name):
        settings = [s for s in gemmi.spacegroup_table() if s.hm == found.hm]
    return [_as_arrays(list(s.operations()), f"the name '{name}' ({s.xhm()})") for s in settings]


def operators_from_number(number: int) -> list[Operators]:
    """Operators of the one setting of an International Tables number, or of both its origins.

    Raises:
        Refused: no such number, or its settings differ by more than the origin.
    """
    settings = [s for s in gemmi.spacegroup_table() if s.number == number]
    if not settings or len({s.hm for s in settings}) > 1 or any(s.ext in ("H", "R") for s in settings):
        raise Refused(
            ReadReason.SYMMETRY_UNKNOWN,
            f"space group number {number} alone does not say which setting; write _space_group_symop_operation_xyz",
        )
    return [_as_arrays(list(s.operations()), f"space group number {number} ({s.xhm()})") for s in settings]


def operators_from_hall(symbol: str) -> Operators:
    """Operators of a Hall symbol, which leaves nothing open.

    Raises:
        Refused: the symbol is unknown.
    """
    try:
        return _as_arrays(list(gemmi.symops_from_hall(symbol)), f"the Hall symbol '{symbol}'")
    except RuntimeError as error:
        raise Refused(
            ReadReason.SYMMETRY_UNKNOWN,
            f"the Hall symbol '{symbol}' is unknown and there is no operator list; "
            "write _space_group_symop_operation_xyz",
        ) from error


def fits_cell(operators: Operators, cell: np.ndarray) -> bool:
    """Whether every operator maps the lattice [3, 3] (Å, rows) onto itself."""
    metric = cell @ cell.T
    turned = np.einsum("mki,kl,mlj->mij", operators.rotations, metric, operators.rotations)
    scale = np.sqrt(np.outer(np.diag(metric), np.diag(metric)))
    return bool((np.abs(turned - metric) / scale).max() < METRIC_TOLERANCE)


def expand(
    fractional: np.ndarray, cell: np.ndarray, operators: Operators, limits: ReadLimits
) -> tuple[np.ndarray, np.ndarray]:
    """All atoms of the cell.

    Images of one site closer than `limits.merge_ang` are one atom on a special position, put at their mean.

    Args:
        fractional: sites [n, 3].
        cell: lattice vectors in rows in Å [3, 3].

    Returns:
        Fractional coordinates [N, 3] and the site of each atom [N]. Under P1 both are as given.

    Raises:
        Refused: more than `limits.atoms` atoms; or a site so near a special position that its images
            cannot be grouped evenly.
    """
    if len(operators) == 1:
        return fractional, np.arange(len(fractional))
    atoms: list[np.ndarray] = []
    sites: list[int] = []
    for k, site in enumerate(fractional):
        images = operators.rotations @ site + operators.translations / DENOMINATOR
        merged = _merge_images(images, cell, limits.merge_ang)
        atoms.extend(merged)
        sites.extend([k] * len(merged))
        if len(atoms) > limits.atoms:
            raise too_many(len(atoms), limits)
    return np.array(atoms), np.array(sites)


def _merge_images(images: np.ndarray, cell: np.ndarray, tolerance_ang: float) -> np.ndarray:
    """One row for each group of coinciding images [m, 3], wrapped to [0, 1)."""
    step = images[:, None] - images[None]
    step -= np.round(step)
    near = np.linalg.norm(step @ cell, axis=-1) < tolerance_ang
    leader = near.argmax(axis=1)
    leaders, sizes = np.unique(leader, return_counts=True)
    if len(set(sizes.tolist())) > 1:
        raise Refused(
            ReadReason.OVERLAP,
            f"symmetry images of one site lie between 0 and {2 * tolerance_ang} Å apart in unequal groups; "
            "put the site on its special position",
        )
    # relative to the leader, so that the mean does not straddle the cell edge
    means = [images[k] - step[k][leader == k].mean(axis=0) for k in leaders]
    return np.array(means) % 1.0


def _as_arrays(ops: Sequence[gemmi.Op], origin: str) -> Operators:
    rotations = np.array([op.rot for op in ops]) // DENOMINATOR
    return Operators(rotations, np.array([op.tran for op in ops]) % DENOMINATOR, origin)


def _is_group(operators: Operators) -> bool:
    """Closed under products, without doubles."""
    keys = operators.keys()
    if len(keys) != len(operators) or (np.abs(np.round(np.linalg.det(operators.rotations))) != 1).any():
        return False
    products = np.einsum("aij,bjk->abik", operators.rotations, operators.rotations)
    shifts = np.einsum("aij,bj->abi", operators.rotations, operators.translations) + operators.translations[:, None]
    rows = np.concatenate([products.reshape(-1, 9), shifts.reshape(-1, 3) % DENOMINATOR], axis=1)
    return set(map(tuple, rows.tolist())) == set(keys)


def _plain_name(name: str) -> str:
    """A Hermann-Mauguin name as the table spells it."""
    plain = re.sub(r"\((\d)\)", r"\1", name.replace("_", " "))  # P2(1)/c -> P21/c
    plain = re.sub(r"\s*\(#?\d+\)\s*$", "", plain).strip()  # 'Fm-3m (225)' -> 'Fm-3m'
    origin = re.fullmatch(r"(.*\S)\s+:?([SZ12])", plain)
    if origin and gemmi.find_spacegroup_by_name(plain) is None:
        return f"{origin[1]}:{'1' if origin[2] in 'S1' else '2'}"
    return plain
