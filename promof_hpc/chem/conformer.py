"""Linker geometry without a crystal: seeded conformers, and the conformer that best fits a linker of a crystal.

A sampler knows a linker only by its SMILES, so it gets `embed`. A generator is trained on `match`: the same
conformer with the crystal's torsions, because torsions (and poses) are what it predicts.
Conformers: ETKDGv3 (Wang et al., J. Chem. Inf. Model. 60 (2020) 2044) and MMFF94 through RDKit.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any

import numpy as np
from rdkit import Chem, rdBase
from rdkit.Chem import rdDistGeom, rdForceFieldHelpers
from scipy.optimize import minimize

from promof_hpc.chem.numbering import Graph, numberings, settle_siblings
from promof_hpc.errors import Refused
from promof_hpc.geometry.rotation import Superposition, superpose
from promof_hpc.geometry.torsion import Torsions, derivatives, measure, set_angles, turn, wrap

FORCE_FIELD_STEPS = 200
EMBED_ITERATIONS = 50  # attempts of ETKDG before it starts from random coordinates
EMBED_TIMEOUT_S = 60  # a cage that cannot be embedded would otherwise search for hours
TORSION_STEPS = 15
GOOD_RMSD_ANG = 0.1  # no further attempt below it
REFINED_NUMBERINGS = 2  # of the symmetric numberings, the best so many go on to torsion refinement


class ConformerReason(StrEnum):
    """Why a linker has no conformer."""

    NOT_A_MOLECULE = "not_a_molecule"
    NOT_EMBEDDED = "not_embedded"


@dataclass(frozen=True)
class Conformers:
    """Geometries of one molecule.

    Attributes:
        mol: RDKit molecule with explicit H; heavy atoms in the order of the SMILES, H last.
        positions: coordinates in Å with the centroid at the origin, float64 [c, n, 3].
    """

    mol: Chem.Mol
    positions: np.ndarray


@dataclass(frozen=True)
class Match:
    """A conformer in the atom order of a crystal's linker, with the crystal's torsions.

    Attributes:
        local: coordinates in Å with the centroid at the origin, float64 [n, 3].
        fit: the rigid motion that lays `local` on the crystal's linker (heavy atoms).
        angles: torsion angles of `local` in rad, [t]; near the crystal's.
    """

    local: np.ndarray
    fit: Superposition
    angles: np.ndarray

    @property
    def rmsd_ang(self) -> float:
        """Root mean square distance of the heavy atoms from the crystal's, in Å."""
        return self.fit.rmsd_ang


def embed(smiles: str, seed: int, count: int = 1, *, timeout_s: int = EMBED_TIMEOUT_S) -> Conformers:
    """Seeded conformers of a linker; equal arguments give equal coordinates (with one RDKit version).

    Args:
        smiles: SMILES of the linker, H implied; charges as in the framework.
        count: how many conformers.
        timeout_s: for each of the two ways to start (plain, random coordinates).

    Raises:
        Refused: the SMILES is no molecule, or no coordinates were found.
    """
    with rdBase.BlockLogs():
        bare = Chem.MolFromSmiles(smiles)
        if bare is None:
            raise Refused(ConformerReason.NOT_A_MOLECULE, f"{smiles} cannot be parsed; check brackets and valences")
        mol = Chem.AddHs(bare)
        if not _embed(mol, seed, count, timeout_s):
            raise Refused(ConformerReason.NOT_EMBEDDED, f"no 3D coordinates found for {smiles}; try another seed")
        if rdForceFieldHelpers.MMFFHasAllMoleculeParams(mol):
            rdForceFieldHelpers.MMFFOptimizeMoleculeConfs(mol, maxIters=FORCE_FIELD_STEPS)
    positions = np.stack([c.GetPositions() for c in mol.GetConformers()])
    return Conformers(mol, positions - positions.mean(1, keepdims=True))


def match(mol: Chem.Mol, crystal: np.ndarray, quads: np.ndarray, seed: int, attempts: int = 4) -> Match:
    """The best of some seeded conformers after its torsions were set to those of the crystal.

    The torsions are copied analytically, then refined by a few L-BFGS steps on the RMSD of the heavy atoms.
    Symmetric numberings are compared, since a conformer does not know which of two like branches is which.

    Args:
        mol: the linker with explicit H, bond orders and charges.
        crystal: its coordinates in Å in one piece, [n, 3], in a right-handed frame.
        quads: its rotatable bonds as atom quadruples, int [t, 4].
        attempts: conformers tried; the search stops at one closer than `GOOD_RMSD_ANG`.

    Raises:
        Refused: no conformer could be built for this molecule.
    """
    smiles = stereo_smiles(mol, crystal)
    bonds = np.array([(b.GetBeginAtomIdx(), b.GetEndAtomIdx()) for b in mol.GetBonds()], int).reshape(-1, 2)
    torsions = Torsions.of(len(crystal), bonds, quads)
    best: Match | None = None
    for attempt in range(attempts):
        found = _best_fit(_cached_embed(smiles, seed + attempt), mol, crystal, torsions)
        if found is None:
            break
        if best is None or found.rmsd_ang < best.rmsd_ang:
            best = found
        if best.rmsd_ang < GOOD_RMSD_ANG:
            break
    if best is None:
        raise Refused(ConformerReason.NOT_A_MOLECULE, f"the conformer of {smiles} has other atoms than the linker")
    return best


def stereo_smiles(mol: Chem.Mol, positions: np.ndarray) -> str:
    """Canonical SMILES without explicit H, with the stereochemistry of these coordinates [n, 3] (Å)."""
    with rdBase.BlockLogs():
        copy = Chem.Mol(mol)
        copy.RemoveAllConformers()
        conformer = Chem.Conformer(copy.GetNumAtoms())
        conformer.SetPositions(np.asarray(positions, np.float64))
        conformer.Set3D(True)
        copy.AddConformer(conformer)
        Chem.AssignStereochemistryFrom3D(copy)
        smiles: str = Chem.MolToSmiles(Chem.RemoveHs(copy))
    return smiles


@lru_cache(maxsize=4096)
def _cached_embed(smiles: str, seed: int) -> Conformers:
    """One conformer; the same linker comes back many times in one library."""
    return embed(smiles, seed)


def _embed(mol: Chem.Mol, seed: int, count: int, timeout_s: int) -> bool:
    """Give `mol` conformers; random starting coordinates help where distance geometry alone fails."""
    parameters: Any = rdDistGeom.ETKDGv3()  # its stubs type every attribute as the class
    parameters.randomSeed = seed
    parameters.maxIterations = EMBED_ITERATIONS
    parameters.timeout = timeout_s
    for random_start in (False, True):
        parameters.useRandomCoords = random_start
        if len(rdDistGeom.EmbedMultipleConfs(mol, count, parameters)) == count:
            return True
    return False


def _best_fit(conformer: Conformers, mol: Chem.Mol, crystal: np.ndarray, torsions: Torsions) -> Match | None:
    """Compare the symmetric numberings with copied torsions; refine the torsions of the better ones."""
    graph = Graph.of(mol)
    orders = numberings(graph, Graph.of(conformer.mol))
    if not orders:
        return None
    heavy, angles = heavy_mask(mol), measure(crystal, torsions.quads)
    stack = set_angles(np.stack([conformer.positions[0][order] for order in orders]), torsions, angles)
    fits = [superpose(positions[heavy], crystal[heavy]) for positions in stack]
    matches = []
    for k in sorted(range(len(fits)), key=lambda k: fits[k].rmsd_ang)[:REFINED_NUMBERINGS]:
        moved = fits[k].apply(stack[k])
        squares = ((crystal[:, None] - moved[None]) ** 2).sum(-1)
        positions = stack[k][settle_siblings(graph, squares)]
        if len(torsions) and superpose(positions[heavy], crystal[heavy]).rmsd_ang > 0.5 * GOOD_RMSD_ANG:
            positions = _refine(positions, crystal, heavy, torsions)
        local = positions - positions.mean(0)
        fit = superpose(local[heavy], crystal[heavy])
        matches.append(Match(local, fit, wrap(measure(local, torsions.quads))))
    return min(matches, key=lambda m: m.rmsd_ang)


def heavy_mask(mol: Chem.Mol) -> np.ndarray:
    """True for atoms that count in an RMSD [n]: the heavy ones, or all where there are none."""
    heavy = np.array([atom.GetAtomicNum() > 1 for atom in mol.GetAtoms()])
    return heavy if heavy.any() else np.ones(len(heavy), bool)


def _refine(start: np.ndarray, crystal: np.ndarray, heavy: np.ndarray, torsions: Torsions) -> np.ndarray:
    """A few L-BFGS steps on the mean square distance; its gradient needs no derivative of the best rotation."""
    count = int(heavy.sum())

    def objective(change: np.ndarray) -> tuple[float, np.ndarray]:
        moved = turn(start, torsions, change)
        fit = superpose(moved[heavy], crystal[heavy])
        residual = (fit.apply(moved) - crystal)[heavy] @ fit.rotation
        gradient = 2.0 / count * np.einsum("nx,tnx->t", residual, derivatives(moved, torsions)[:, heavy])
        return fit.rmsd_ang**2, gradient

    zero = np.zeros(len(torsions))
    result = minimize(objective, zero, jac=True, method="L-BFGS-B", options={"maxiter": TORSION_STEPS})
    return turn(start, torsions, result.x) if result.fun < objective(zero)[0] else start
