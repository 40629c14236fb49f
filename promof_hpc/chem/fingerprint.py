"""Fingerprint of a component set: what its linkers look like and which metals it has, to measure how diverse sets are.

The distance of two sets is 1 - Tanimoto over linker Morgan bits and metal identity. Bits are not folded, so none
collide; how many copies of a block a set has does not matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from rdkit import Chem, rdBase
from rdkit.Chem import rdFingerprintGenerator
from scipy.sparse import csr_array

from promof_hpc.chem.bonds import IS_METAL
from promof_hpc.chem.decompose import decompose
from promof_hpc.chem.sequence import ATOM, ComponentSet, SequenceReason, component_set
from promof_hpc.errors import Refused
from promof_hpc.structure import Structure

RADIUS = 2  # Morgan fingerprint of diameter 4 (ECFP4; Rogers & Hahn, J. Chem. Inf. Model. 50, 742, 2010)
ROWS_AT_ONCE = 1024

Fingerprint = frozenset[int]


def fingerprint(components: ComponentSet) -> Fingerprint:
    """Bits of a component set: Morgan bits (0 and above) of its linkers, and the negative atomic numbers of its metals.

    Raises:
        Refused: a linker is no SMILES, or a node names no element.
    """
    bits = [_linker_bits(key) for key in set(components.linkers)] + [_metal_bits(key) for key in set(components.nodes)]
    return frozenset().union(*bits)


def structure_fingerprint(structure: Structure) -> Fingerprint:
    """Bits of the component set that a structure is made of.

    Raises:
        Refused: it cannot be taken apart into nodes and linkers.
    """
    return fingerprint(component_set(decompose(structure)))


def distance(a: Fingerprint, b: Fingerprint) -> float:
    """1 - Tanimoto, in [0, 1]; 0 between two empty fingerprints."""
    union = len(a | b)
    return 1.0 - len(a & b) / union if union else 0.0


def distances(fingerprints: Sequence[Fingerprint]) -> np.ndarray:
    """`distance` of every pair, [n, n]."""
    column = {bit: k for k, bit in enumerate(sorted(frozenset().union(*fingerprints)))}
    indices = [column[bit] for f in fingerprints for bit in f]
    offsets = np.cumsum([0, *[len(f) for f in fingerprints]])
    table = csr_array((np.ones(len(indices)), indices, offsets), shape=(len(fingerprints), len(column)))
    sizes = np.diff(offsets)
    result = np.zeros((len(fingerprints), len(fingerprints)))
    for start in range(0, len(fingerprints), ROWS_AT_ONCE):  # bounds the memory of the product
        rows = slice(start, start + ROWS_AT_ONCE)
        common = (table[rows] @ table.T).toarray()
        union = sizes[rows, None] + sizes - common
        result[rows] = 1.0 - np.divide(common, union, out=np.ones_like(common), where=union > 0)
    return result


@lru_cache(maxsize=65536)
def _linker_bits(key: str) -> Fingerprint:
    with rdBase.BlockLogs():
        mol = Chem.MolFromSmiles(key) if key else None
    if mol is None:
        raise Refused(SequenceReason.UNREADABLE_LINKER, f"'{key}' is no valid SMILES")
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=RADIUS)
    return frozenset(generator.GetSparseFingerprint(mol).GetOnBits())


def _metal_bits(key: str) -> Fingerprint:
    table = Chem.GetPeriodicTable()
    try:
        numbers = [table.GetAtomicNumber(symbol) for symbol in ATOM.findall(key)]
    except RuntimeError:  # RDKit's complaint about a symbol that is no element
        numbers = []
    if not numbers:
        raise Refused(SequenceReason.UNKNOWN_NODE, f"'{key}' is no bag of bracket atoms such as [Zn][Zn][O]")
    return frozenset(-z for z in numbers if IS_METAL[z])
