"""Shards of prepared MOFs: HDF5 with flat arrays and offsets, read back as the same objects.

Crystal geometry is stored in float64, so that a MOF read back is the crystal within 1e-10 Å;
matched geometry, a model to some tenths of an ångström, and contacts, which follow from the rest, in float32.

Offsets nest: `mof_blocks` and `mof_contacts` by MOF, `block_atoms`, `block_bonds` and `block_torsions` by block,
`contact_donors` by contact; item i is `[ptr[i]:ptr[i + 1]]`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from rdkit import Chem

from promof_hpc.assembly.columns import flat, pointer
from promof_hpc.assembly.prepared import NO_TEMPLATE, MatchedBlock, PreparedMof
from promof_hpc.chem.blocks import Block, Contact, Decomposition, Kind
from promof_hpc.store.shard import Column, CorruptShard, Shard, read_shard, write_shard
from promof_hpc.structure import Structure

FORMAT = "prepared-mofs/1"
Attrs = Mapping[str, str | int | float | bool]


def write_prepared(path: Path, mofs: Sequence[PreparedMof], attrs: Attrs) -> bool:
    """Publish a shard of prepared MOFs; see `store.shard.publish` for what is returned and raised."""
    return write_shard(path, Shard(prepared_columns(mofs), {**attrs, "format": FORMAT}))


def read_prepared(path: Path, molecules: bool = True) -> list[PreparedMof]:
    """Read a shard written by `write_prepared`.

    Args:
        molecules: rebuild the RDKit molecule of each linker; without it `Block.mol` is None and reading is faster.

    Raises:
        CorruptShard: the file is damaged, or not a shard of prepared MOFs.
    """
    shard = read_shard(path)
    if shard.attrs.get("format") != FORMAT:
        raise CorruptShard(f"{path} is no shard of prepared MOFs ({FORMAT}); make one with `promof prep`.")
    return mofs_of_columns(shard.arrays, molecules)


def prepared_columns(mofs: Sequence[PreparedMof]) -> dict[str, Column]:
    """The columns of a shard, in the layout of the module's docstring."""
    decompositions = [m.decomposition for m in mofs]
    blocks = [b for d in decompositions for b in d.blocks]
    contacts = [c for d in decompositions for c in d.contacts]
    matched = [x for m in mofs for x in (m.matched or (None,) * len(m.decomposition.blocks))]
    return {
        **_mof_columns(mofs),
        **_block_columns(blocks),
        **_matched_columns(blocks, matched),
        **_contact_columns(contacts),
        "mof_blocks": pointer(len(d.blocks) for d in decompositions),
        "mof_contacts": pointer(len(d.contacts) for d in decompositions),
        "mof_edges": pointer(len(d.edges) for d in decompositions),
        "edges": np.array([(p, q, *s) for d in decompositions for p, q, s in d.edges], np.int32).reshape(-1, 5),
    }


def mofs_of_columns(columns: Mapping[str, Column], molecules: bool = True) -> list[PreparedMof]:
    """The inverse of `prepared_columns`."""
    keys = _texts(columns, "keys")
    blocks = [_block(columns, k, keys, molecules) for k in range(len(_numbers(columns, "block_kind")))]
    matched = [_matched(columns, k) for k in range(len(blocks))]
    contacts = [_contact(columns, k) for k in range(len(_numbers(columns, "contact_node")))]
    block_ptr, contact_ptr, edge_ptr = (_numbers(columns, f"mof_{n}").tolist() for n in ("blocks", "contacts", "edges"))
    names, sequences, signatures, net_keys = (_texts(columns, n) for n in ("name", "sequence", "signature", "net_key"))
    properties, property_names = _numbers(columns, "properties"), _texts(columns, "property_names")
    mofs = []
    for i, name in enumerate(names):
        mine = tuple(blocks[block_ptr[i] : block_ptr[i + 1]])
        edges = _numbers(columns, "edges")[edge_ptr[i] : edge_ptr[i + 1]].tolist()
        decomposition = Decomposition(
            structure=_structure(mine, _numbers(columns, "cell")[i]),
            blocks=mine,
            contacts=tuple(contacts[contact_ptr[i] : contact_ptr[i + 1]]),
            edges=tuple((p, q, (a, b, c)) for p, q, a, b, c in edges),
            dimensionality=int(_numbers(columns, "dimensionality")[i]),
            components=int(_numbers(columns, "components")[i]),
            split_metals=bool(_numbers(columns, "split_metals")[i]),
        )
        measured = {n: float(v) for n, v in zip(property_names, properties[i], strict=True) if np.isfinite(v)}
        fits = tuple(matched[block_ptr[i] : block_ptr[i + 1]])
        mofs.append(PreparedMof(name, decomposition, sequences[i], signatures[i], net_keys[i], measured, fits))
    return mofs


def _mof_columns(mofs: Sequence[PreparedMof]) -> dict[str, Column]:
    names = sorted({n for m in mofs for n in m.properties})
    properties = [[m.properties.get(n, np.nan) for n in names] for m in mofs]
    decompositions = [m.decomposition for m in mofs]
    return {
        "name": [m.name for m in mofs],
        "sequence": [m.sequence for m in mofs],
        "signature": [m.signature for m in mofs],
        "net_key": [m.net_key for m in mofs],
        "cell": np.array([d.structure.cell for d in decompositions], np.float64).reshape(-1, 3, 3),
        "dimensionality": np.array([d.dimensionality for d in decompositions], np.int8),
        "components": np.array([d.components for d in decompositions], np.int16),
        "split_metals": np.array([d.split_metals for d in decompositions], np.bool_),
        "properties": np.array(properties, np.float64).reshape(len(mofs), len(names)),
        "property_names": names,
    }


def _block_columns(blocks: Sequence[Block]) -> dict[str, Column]:
    keys = sorted({b.key for b in blocks})
    index = {key: k for k, key in enumerate(keys)}
    bonds = [_bonds_of(b) for b in blocks]
    return {
        "keys": keys,
        "block_kind": np.array([b.kind for b in blocks], np.int8),
        "block_key": np.array([index[b.key] for b in blocks], np.int32),
        "block_charge": np.array([b.charge for b in blocks], np.int16),
        "block_centroid": np.array([b.centroid for b in blocks], np.float64).reshape(-1, 3),
        "block_rotation": np.array([b.rotation for b in blocks], np.float64).reshape(-1, 3, 3),
        "block_atoms": pointer(len(b.numbers) for b in blocks),
        "block_bonds": pointer(len(x) for x in bonds),
        "block_torsions": pointer(len(b.torsions) for b in blocks),
        "atom_index": flat([b.atoms for b in blocks], np.int32),
        "atom_image": flat([b.images for b in blocks], np.int16, 3),
        "atom_number": flat([b.numbers for b in blocks], np.int16),
        "atom_local": flat([b.local for b in blocks], np.float64, 3),
        "atom_charge": flat([_charges_of(b) for b in blocks], np.int8),
        "bonds": flat(bonds, np.int16, 3),
        "torsions": flat([b.torsions for b in blocks], np.int16, 4),
    }


def _matched_columns(blocks: Sequence[Block], matched: Sequence[MatchedBlock | None]) -> dict[str, Column]:
    """Matched geometry; rows of NaN stand for a block without one."""

    def take(of: Callable[[MatchedBlock], np.ndarray | float], *shape: int) -> list[np.ndarray]:
        return [np.full(shape, np.nan) if m is None else np.asarray(of(m)) for m in matched]

    local = [
        np.full((len(b.numbers), 3), np.nan) if m is None else m.local for b, m in zip(blocks, matched, strict=True)
    ]
    return {
        "matched_local": flat(local, np.float32, 3),
        "matched_rotation": np.array(take(lambda m: m.rotation, 3, 3), np.float32).reshape(-1, 3, 3),
        "matched_centroid": np.array(take(lambda m: m.centroid, 3), np.float32).reshape(-1, 3),
        "matched_rmsd_ang": np.array(take(lambda m: m.rmsd_ang), np.float32),
        "matched_template": np.array([NO_TEMPLATE if m is None else m.template for m in matched], np.int32),
    }


def _contact_columns(contacts: Sequence[Contact]) -> dict[str, Column]:
    return {
        "contact_node": np.array([c.node for c in contacts], np.int16),
        "contact_linker": np.array([c.linker for c in contacts], np.int16),
        "contact_shift": np.array([c.shift for c in contacts], np.int16).reshape(-1, 3),
        "contact_donors": pointer(len(c.donors) for c in contacts),
        "donor_atom": flat([c.donors for c in contacts], np.int16),
        "donor_element": flat([c.elements for c in contacts], np.int16),
        "donor_site": flat([c.sites for c in contacts], np.float32, 3),
        "donor_behind": flat([c.behind for c in contacts], np.float32, 3),
        "donor_linker_behind": flat([c.linker_behind for c in contacts], np.float32, 3),
    }


def _block(columns: Mapping[str, Column], k: int, keys: Sequence[str], molecules: bool) -> Block:
    atoms, bonds, torsions = (_span(columns, f"block_{name}", k) for name in ("atoms", "bonds", "torsions"))
    kind = Kind(int(_numbers(columns, "block_kind")[k]))
    numbers = _numbers(columns, "atom_number")[atoms].astype(np.int32)
    local = _numbers(columns, "atom_local")[atoms]
    mol = None
    if molecules and kind == Kind.ORGANIC:
        mol = _molecule(numbers, _numbers(columns, "atom_charge")[atoms], _numbers(columns, "bonds")[bonds], local)
    return Block(
        kind=kind,
        key=keys[int(_numbers(columns, "block_key")[k])],
        atoms=_numbers(columns, "atom_index")[atoms],
        images=_numbers(columns, "atom_image")[atoms].astype(np.int32),
        numbers=numbers,
        centroid=_numbers(columns, "block_centroid")[k],
        rotation=_numbers(columns, "block_rotation")[k],
        local=local,
        mol=mol,
        charge=int(_numbers(columns, "block_charge")[k]),
        torsions=_numbers(columns, "torsions")[torsions].astype(np.int32),
    )


def _matched(columns: Mapping[str, Column], k: int) -> MatchedBlock | None:
    rmsd = float(_numbers(columns, "matched_rmsd_ang")[k])
    if np.isnan(rmsd):
        return None
    atoms = _span(columns, "block_atoms", k)
    local, rotation, centroid = (
        _numbers(columns, f"matched_{name}")[at].astype(np.float64)
        for name, at in (("local", atoms), ("rotation", k), ("centroid", k))
    )
    return MatchedBlock(local, rotation, centroid, rmsd, int(_numbers(columns, "matched_template")[k]))


def _contact(columns: Mapping[str, Column], k: int) -> Contact:
    donors = _span(columns, "contact_donors", k)
    return Contact(
        node=int(_numbers(columns, "contact_node")[k]),
        linker=int(_numbers(columns, "contact_linker")[k]),
        shift=_numbers(columns, "contact_shift")[k].astype(np.int32),
        donors=_numbers(columns, "donor_atom")[donors].astype(np.int32),
        elements=_numbers(columns, "donor_element")[donors].astype(np.int32),
        sites=_numbers(columns, "donor_site")[donors].astype(np.float64),
        behind=_numbers(columns, "donor_behind")[donors].astype(np.float64),
        linker_behind=_numbers(columns, "donor_linker_behind")[donors].astype(np.float64),
    )


def _structure(blocks: Sequence[Block], cell: np.ndarray) -> Structure:
    """The decomposed cell: its atoms are those of the blocks, put back in their order and images."""
    count = sum(len(b.atoms) for b in blocks)
    numbers, positions = np.zeros(count, np.int32), np.zeros((count, 3))
    for block in blocks:
        numbers[block.atoms] = block.numbers
        positions[block.atoms] = block.positions - block.images @ cell
    return Structure(numbers, positions, np.array(cell, np.float64))


def _bonds_of(block: Block) -> np.ndarray:
    """Bonds of a linker as (atom, atom, order) of its Kekulé form, int [b, 3]."""
    if block.mol is None:
        return np.zeros((0, 3), int)
    kekule = Chem.Mol(block.mol)
    Chem.Kekulize(kekule, clearAromaticFlags=True)
    rows = [(b.GetBeginAtomIdx(), b.GetEndAtomIdx(), int(b.GetBondTypeAsDouble())) for b in kekule.GetBonds()]
    return np.array(rows, int).reshape(-1, 3)


def _charges_of(block: Block) -> np.ndarray:
    if block.mol is None:
        return np.zeros(len(block.numbers), int)
    return np.array([atom.GetFormalCharge() for atom in block.mol.GetAtoms()])


def _molecule(numbers: np.ndarray, charges: np.ndarray, bonds: np.ndarray, local: np.ndarray) -> Chem.Mol:
    """The linker's RDKit molecule with explicit H and one conformer, as decomposed."""
    mol = Chem.RWMol()
    for number, charge in zip(numbers.tolist(), charges.tolist(), strict=True):
        atom = Chem.Atom(number)
        atom.SetFormalCharge(charge)
        atom.SetNoImplicit(True)
        mol.AddAtom(atom)
    order_of = {1: Chem.BondType.SINGLE, 2: Chem.BondType.DOUBLE, 3: Chem.BondType.TRIPLE}
    for a, b, order in bonds.tolist():
        mol.AddBond(a, b, order_of[order])
    conformer = Chem.Conformer(len(numbers))
    conformer.SetPositions(np.ascontiguousarray(local, np.float64))
    finished = mol.GetMol()
    finished.AddConformer(conformer)
    Chem.SanitizeMol(finished)
    return finished


def _span(columns: Mapping[str, Column], pointer: str, k: int) -> slice:
    ptr = _numbers(columns, pointer)
    return slice(int(ptr[k]), int(ptr[k + 1]))


def _numbers(columns: Mapping[str, Column], name: str) -> np.ndarray:
    column = columns[name]
    assert not isinstance(column, list)  # the format fixes which columns are text
    return column


def _texts(columns: Mapping[str, Column], name: str) -> list[str]:
    return [str(text) for text in columns[name]]
