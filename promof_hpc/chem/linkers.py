"""RDKit molecules of linkers: Lewis structure to molecule, canonical key, sanity of the chemistry, rotatable bonds."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from rdkit import Chem, rdBase
from rdkit.Chem.rdMolDescriptors import CalcMolFormula

from promof_hpc.chem.blocks import DecomposeReason
from promof_hpc.chem.bond_orders import Lewis, Pair
from promof_hpc.errors import Refused

BOND_TYPES = (Chem.BondType.SINGLE, Chem.BondType.DOUBLE, Chem.BondType.TRIPLE)
DONOR_ELEMENTS = frozenset({7, 8, 15, 16, 34})
ODD_GROUPS = [
    (Chem.MolFromSmarts(pattern), name)
    for pattern, name in (
        ("[R]=[R;C]=[R]", "cumulated double bonds in a ring (hydrogen missing?)"),
        ("[R]#[R]", "triple bond in a ring (hydrogen missing?)"),
        ("[O-]C([O-])=[!#8]", "ene-diolate (hydrogen missing?)"),
        ("[C-]#[C-]", "bare acetylide"),
        ("[C-;!$([C-]#[N,C,O])]", "carbanion"),
        ("[#6]=[C;!R]=[#6]", "allene (hydrogen missing?)"),
        ("[O+;!$([O+]#[C-])]", "oxonium (one H too many?)"),
        ("[C;-2,-3]", "carbon with two open valences (hydrogen missing?)"),
        ("[CX4]([O-])[O-]", "geminal diolate (hydrogen on a carboxylate?)"),
        ("[N-]([CX4])[CX4]", "amide ion between saturated carbons (hydrogen missing?)"),
        ("[r3;!R0;!R1]~[r3;!R0;!R1]", "fused three-membered rings (two models on top of each other?)"),
        ("C1OO1", "dioxirane (two models of a carboxylate on top of each other?)"),
        ("[P]=[#6]", "phosphorus-carbon double bond (hydrogen missing?)"),
    )
]


@dataclass(frozen=True)
class LinkerMolecule:
    """What all copies of a linker share.

    Attributes:
        mol: sanitised molecule with explicit H and no conformer.
        key: canonical SMILES without H and stereo.
        charge: formal charge in e.
        torsions: rotatable bonds as atom quadruples, int32 [t, 4].
    """

    mol: Chem.Mol
    key: str
    charge: int
    torsions: np.ndarray


@lru_cache(maxsize=4096)
def linker_molecule(text: str, numbers: tuple[int, ...], pairs: tuple[Pair, ...], lewis: Lewis) -> LinkerMolecule:
    """The molecule of a linker whose skeleton is `text`.

    The key carries no stereo marks: E/Z and R/S are a matter of the pose, and crystals average over them.

    Raises:
        Refused: RDKit does not accept the molecule, its key does not read back as the same molecule, or it has a group
            that only appears where hydrogen is missing.
    """
    mol = Chem.RWMol()
    for z, charge in zip(numbers, lewis.charges, strict=True):
        atom = Chem.Atom(z)
        atom.SetFormalCharge(charge)
        atom.SetNoImplicit(True)
        mol.AddAtom(atom)
    for (a, b), order in zip(pairs, lewis.orders, strict=True):
        mol.AddBond(a, b, BOND_TYPES[order - 1])
    plain = mol.GetMol()
    with rdBase.BlockLogs():  # RDKit prints what it refuses; the refusal carries the text already
        try:
            Chem.SanitizeMol(plain)
        except ValueError as error:  # RDKit's sanitisation errors derive from it
            raise Refused(DecomposeReason.ODD_CHEMISTRY, f"{text}: {error}") from error
        key = _key(plain)
    for pattern, name in ODD_GROUPS:
        if plain.HasSubstructMatch(pattern):
            raise Refused(DecomposeReason.ODD_CHEMISTRY, f"{name} in {key}")
    return LinkerMolecule(plain, key, Chem.GetFormalCharge(plain), rotatable_bonds(plain))


def _key(mol: Chem.Mol) -> str:
    """Canonical SMILES without H, read back once so that text and molecule agree."""
    text = Chem.MolToSmiles(Chem.RemoveHs(mol), isomericSmiles=False)
    again = Chem.MolFromSmiles(text)
    if again is None or CalcMolFormula(again) != CalcMolFormula(mol):
        raise Refused(DecomposeReason.ODD_CHEMISTRY, f"{text} does not read back as {CalcMolFormula(mol)}")
    return Chem.MolToSmiles(again, isomericSmiles=False)


def with_positions(mol: Chem.Mol, positions: np.ndarray) -> Chem.Mol:
    """A copy of the molecule with one conformer at `positions` [n, 3] in Å."""
    copy = Chem.Mol(mol)
    conformer = Chem.Conformer(len(positions))
    conformer.SetPositions(np.ascontiguousarray(positions, np.float64))
    copy.RemoveAllConformers()
    copy.AddConformer(conformer)
    return copy


def rotatable_bonds(mol: Chem.Mol) -> np.ndarray:
    """Rotatable bonds as quadruples (i, a, b, j): the torsion about a-b, int32 [t, 4].

    Bonds outside rings that have a heavy atom beyond both ends, or hydrogen beyond a donor element: where the H of an
    OH or NH2 points decides whether a metal fits beside it. Double bonds count, because the key does not tell E
    from Z. Bonds at a linear atom have no torsion. i and j are the lowest-numbered heavy neighbours, else hydrogens.
    """
    linear = {a.GetIdx() for a in mol.GetAtoms() if a.GetHybridization() == Chem.HybridizationType.SP}
    quadruples = []
    for bond in mol.GetBonds():
        a, b = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
        if bond.IsInRing() or a in linear or b in linear:
            continue
        ends = [_outer(mol, a, b), _outer(mol, b, a)]
        if ends[0] is not None and ends[1] is not None:
            quadruples.append((ends[0], a, b, ends[1]))
    return np.array(quadruples, np.int32).reshape(-1, 4)


def _outer(mol: Chem.Mol, atom: int, other: int) -> int | None:
    """The lowest-numbered heavy neighbour of `atom` other than `other`; of a donor element without any, a hydrogen."""
    end = mol.GetAtomWithIdx(atom)
    beyond = [n for n in end.GetNeighbors() if n.GetIdx() != other]
    heavy = [n for n in beyond if n.GetAtomicNum() > 1]
    chosen = beyond if not heavy and end.GetAtomicNum() in DONOR_ELEMENTS else heavy
    return min((n.GetIdx() for n in chosen), default=None)
