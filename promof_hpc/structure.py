"""A structure: elements, Cartesian positions and cell of one crystal, its canonical form and its digest."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ase import Atoms

POSITION_DECIMALS = 8  # canonical arrays are rounded here, so that two descriptions of one crystal hash alike


@dataclass(frozen=True)
class Structure:
    """A three-periodic crystal.

    Attributes:
        numbers: atomic numbers, int32 [N].
        positions: Cartesian coordinates in Å, float64 [N, 3].
        cell: lattice vectors in rows in Å, float64 [3, 3].
    """

    numbers: np.ndarray
    positions: np.ndarray
    cell: np.ndarray

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def volume(self) -> float:
        """Volume in Å³, positive whatever the handedness of the cell."""
        return float(abs(np.linalg.det(self.cell)))

    @property
    def fractional(self) -> np.ndarray:
        """Fractional coordinates [N, 3], not wrapped."""
        return np.linalg.solve(self.cell.T, self.positions.T).T

    @property
    def density(self) -> float:
        """Mass density in g/cm³."""
        from ase.data import atomic_masses

        return float(atomic_masses[self.numbers].sum() / self.volume * 1.66053906660)

    @property
    def formula(self) -> str:
        """Hill formula of the cell, for instance `C24H12O13Zn4`."""
        from ase.formula import Formula

        return Formula.from_dict(self.counts).format("hill")

    @property
    def counts(self) -> dict[str, int]:
        """Atoms of each element in the cell, by symbol."""
        from ase.data import chemical_symbols

        numbers, counts = np.unique(self.numbers, return_counts=True)
        return {chemical_symbols[z]: int(c) for z, c in zip(numbers, counts, strict=True)}

    def digest(self) -> str:
        """SHA-256 (hex) of the stored arrays in a fixed byte order; canonicalise first."""
        h = hashlib.sha256()
        h.update(np.ascontiguousarray(self.numbers, dtype="<i4").tobytes())
        # adding 0.0 turns -0.0 into 0.0, which would hash differently
        h.update((np.ascontiguousarray(self.positions, dtype="<f8") + 0.0).tobytes())
        h.update((np.ascontiguousarray(self.cell, dtype="<f8") + 0.0).tobytes())
        return h.hexdigest()

    def to_ase(self) -> Atoms:
        """The same crystal as `ase.Atoms` with full periodicity."""
        from ase import Atoms

        return Atoms(numbers=self.numbers, positions=self.positions, cell=self.cell, pbc=True)

    @classmethod
    def from_ase(cls, atoms: Atoms) -> Structure:
        """Take numbers, positions and cell of an `ase.Atoms` as they are."""
        return cls(
            np.asarray(atoms.numbers, np.int32),
            np.asarray(atoms.positions, np.float64),
            np.asarray(atoms.cell[:], np.float64),
        )


def primitive(structure: Structure, symprec_ang: float = 1e-3) -> Structure:
    """The primitive cell of the same crystal; atoms move by less than `symprec_ang`, nothing is symmetrised.

    Args:
        symprec_ang: distance in Å within which two translated atoms count as the same.

    Raises:
        ValueError: a coordinate is not a number.
    """
    import spglib

    _require_numbers(structure)

    cell: Any = (structure.cell, structure.fractional, structure.numbers)
    spglib.error.OLD_ERROR_HANDLING = False
    try:
        found = spglib.standardize_cell(cell, to_primitive=True, no_idealize=True, symprec=symprec_ang)
    except spglib.error.SpglibError:
        return structure
    if found is None or len(found[2]) >= len(structure):
        return structure
    lattice, fractional, numbers = (np.asarray(part) for part in found)
    return Structure(numbers.astype(np.int32), fractional @ lattice, lattice.astype(np.float64))


def canonical(structure: Structure) -> Structure:
    """The same crystal in a right-handed Niggli-reduced cell, a along x, b in xy, fractions wrapped to [0, 1).

    Atom order is kept. Among the cells that describe the reduced lattice equally well, the one with the
    lexicographically smallest fractional coordinates is taken, so that swapped or negated lattice vectors
    give the same arrays (to `POSITION_DECIMALS`).

    Raises:
        ValueError: a coordinate is not a number.
    """
    import spglib

    _require_numbers(structure)

    spglib.error.OLD_ERROR_HANDLING = False
    try:
        lattice = np.asarray(spglib.niggli_reduce(structure.cell, eps=1e-6), np.float64)
    except spglib.error.SpglibError:  # a cell so flat that the reduction does not end stays as it is
        lattice = np.asarray(structure.cell, np.float64)
    fractional = np.linalg.solve(lattice.T, structure.positions.T).T
    best: tuple[tuple[float, ...], np.ndarray, np.ndarray] | None = None
    for basis in _equivalent_bases(lattice):
        f = _wrap(fractional @ np.linalg.inv(basis))
        key = tuple((np.round(f, 4) % 1.0).ravel())
        if best is None or key < best[0]:
            best = (key, basis @ lattice, f)
    assert best is not None  # the identity is always among the bases
    upright = _lower_triangular(best[1])
    cell = np.round(upright, POSITION_DECIMALS)
    return Structure(np.asarray(structure.numbers, np.int32), np.round(best[2] @ upright, POSITION_DECIMALS), cell)


def _require_numbers(structure: Structure) -> None:
    """Keep NaN away from spglib, which takes the process down with it."""
    if not (np.isfinite(structure.positions).all() and np.isfinite(structure.cell).all()):
        raise ValueError("a coordinate or cell vector is not a number")


def _wrap(fractional: np.ndarray) -> np.ndarray:
    """Wrap to [0, 1), treating a hair below 1 as 0 so that rounding noise cannot flip a coordinate."""
    wrapped = fractional % 1.0
    return np.where(wrapped > 1.0 - 1e-7, 0.0, wrapped)


def _equivalent_bases(lattice: np.ndarray) -> list[np.ndarray]:
    """Unimodular matrices M [3, 3] for which M @ lattice is right-handed with the same metric tensor."""
    metric = lattice @ lattice.T
    lengths = np.diag(metric)
    grid = np.array(np.meshgrid(*[[-1, 0, 1]] * 3, indexing="ij")).reshape(3, -1).T
    norms = np.einsum("ni,ij,nj->n", grid, metric, grid)
    tolerance = 1e-4 * lengths.max()
    rows = [grid[np.abs(norms - lengths[k]) < tolerance] for k in range(3)]
    hand = np.sign(np.linalg.det(lattice))
    bases = []
    for a in rows[0]:
        for b in rows[1]:
            if abs(a @ metric @ b - metric[0, 1]) > tolerance:
                continue
            for c in rows[2]:
                m = np.array([a, b, c], float)
                if round(np.linalg.det(m)) != hand:
                    continue
                if abs(a @ metric @ c - metric[0, 2]) < tolerance and abs(b @ metric @ c - metric[1, 2]) < tolerance:
                    bases.append(m)
    return bases


def _lower_triangular(lattice: np.ndarray) -> np.ndarray:
    """The right-handed `lattice` rotated so that a lies along x and b in the xy plane."""
    _, r = np.linalg.qr(lattice.T)
    return (r * np.sign(np.diag(r))[:, None]).T
