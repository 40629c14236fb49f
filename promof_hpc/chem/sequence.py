"""Blocks of a cell as text: `<BOS> m1.m2 <SEP> o1.o2 <EOS>`, its tokens, and the way back to block keys."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from promof_hpc.chem.blocks import Decomposition, Kind
from promof_hpc.errors import Refused

PAD, UNK, BOS, SEP, EOS = "<PAD>", "<UNK>", "<BOS>", "<SEP>", "<EOS>"
SPECIALS = (PAD, UNK, BOS, SEP, EOS)

# SMILES tokens after Schwaller et al. (2019): bracket atoms, two-letter halogens, organic atoms, bonds, rings
TOKEN = re.compile(
    r"<[A-Z]+>|\[[^\]]+\]|Br|Cl|[BCNOPSFI]|[bcnops]|%[0-9]{2}|[0-9]|[()]|[.=#\-+\\/:~@?>*$]",
)
ATOM = re.compile(r"\[([A-Z][a-z]?)\]")


class SequenceReason(StrEnum):
    """Why a text is not a component set."""

    UNKNOWN_TOKEN = "unknown_token"
    MALFORMED = "malformed"
    NO_METAL = "no_metal"
    NO_LINKER = "no_linker"
    UNKNOWN_NODE = "unknown_node"
    UNREADABLE_LINKER = "unreadable_linker"
    UNSORTED = "unsorted"


@dataclass(frozen=True)
class ComponentSet:
    """The blocks of one cell without their geometry: keys with multiplicity, sorted by molecular mass, then key."""

    nodes: tuple[str, ...]
    linkers: tuple[str, ...]

    @property
    def sequence(self) -> str:
        """The text of the set."""
        return f"{BOS} {'.'.join(self.nodes)} {SEP} {'.'.join(self.linkers)} {EOS}"


def component_set(decomposition: Decomposition) -> ComponentSet:
    """The component set of a decomposed structure (its blocks are sorted already)."""
    keys = [(b.kind, b.key) for b in decomposition.blocks]
    return ComponentSet(
        tuple(key for kind, key in keys if kind is Kind.METAL),
        tuple(key for kind, key in keys if kind is Kind.ORGANIC),
    )


def sorted_set(nodes: Iterable[str], linkers: Iterable[str]) -> ComponentSet:
    """A component set from keys in any order.

    Raises:
        Refused: a key cannot be read.
    """
    return ComponentSet(tuple(sorted(nodes, key=_node_rank)), tuple(sorted(linkers, key=_linker_rank)))


def tokenize(text: str) -> list[str]:
    """Tokens of a sequence or of a SMILES; blanks separate tokens and are dropped.

    Raises:
        Refused: `unknown_token`, with the place.
    """
    tokens = []
    for word in text.split():
        position = 0
        for match in TOKEN.finditer(word):
            if match.start() != position:
                break
            tokens.append(match.group())
            position = match.end()
        if position != len(word):
            raise Refused(SequenceReason.UNKNOWN_TOKEN, f"'{word[position:][:12]}' begins no SMILES token in '{word}'")
    return tokens


def detokenize(tokens: Sequence[str]) -> str:
    """The text of tokens: special tokens stand alone between blanks, the rest is joined."""
    text = "".join(f" {t} " if t in SPECIALS else t for t in tokens)
    return " ".join(text.split())


def parse_sequence(text: str, known_nodes: Collection[str] | None = None) -> ComponentSet:
    """The component set that a sequence names, linkers made canonical.

    Args:
        known_nodes: node keys that have a template; any bag of atoms with a metal is taken where None.

    Raises:
        Refused: with a `SequenceReason`; to a policy that sampled the text this is an invalid action.
    """
    tokens = tokenize(text)
    frame = [t for t in tokens if t in SPECIALS]
    if frame != [BOS, SEP, EOS] or tokens[0] != BOS or tokens[-1] != EOS:
        raise Refused(SequenceReason.MALFORMED, f"a sequence reads {BOS} nodes {SEP} linkers {EOS}")
    cut = tokens.index(SEP)
    nodes, linkers = "".join(tokens[1:cut]), "".join(tokens[cut + 1 : -1])
    if not nodes:
        raise Refused(SequenceReason.NO_METAL, "no metal node before <SEP>")
    if not linkers:
        raise Refused(SequenceReason.NO_LINKER, "no linker after <SEP>")
    node_keys = nodes.split(".")
    unknown = [k for k in node_keys if known_nodes is not None and k not in known_nodes]
    if unknown:
        raise Refused(SequenceReason.UNKNOWN_NODE, f"'{unknown[0]}' is not in the node library")
    given = ComponentSet(tuple(node_keys), tuple(canonical_key(k) for k in linkers.split(".")))
    if given != sorted_set(given.nodes, given.linkers):
        raise Refused(SequenceReason.UNSORTED, "blocks must be sorted by molecular mass, then key")
    return given


def canonical_key(smiles: str) -> str:
    """The key of a linker written as SMILES: canonical, without stereo.

    Raises:
        Refused: RDKit cannot read it.
    """
    from rdkit import Chem, rdBase

    with rdBase.BlockLogs():
        mol = Chem.MolFromSmiles(smiles) if smiles else None
    if mol is None:
        raise Refused(SequenceReason.UNREADABLE_LINKER, f"'{smiles}' is no valid SMILES")
    return Chem.MolToSmiles(mol, isomericSmiles=False)


def atom_count(key: str) -> int:
    """Atoms of a block, H included.

    Raises:
        Refused: neither a bag of bracket atoms nor a SMILES.
    """
    from rdkit import Chem, rdBase

    symbols = ATOM.findall(key)
    if symbols and not ATOM.sub("", key):
        return len(symbols)
    with rdBase.BlockLogs():
        mol = Chem.MolFromSmiles(key)
    if mol is None:
        raise Refused(SequenceReason.UNREADABLE_LINKER, f"'{key}' is no valid SMILES")
    return int(Chem.AddHs(mol).GetNumAtoms())


def _node_rank(key: str) -> tuple[float, str]:
    """Mass and key of a node.

    Raises:
        Refused: not a bag of bracket atoms with a metal first.
    """
    from ase.data import atomic_masses, atomic_numbers

    from promof_hpc.chem.bonds import is_metal

    symbols = ATOM.findall(key)
    if not symbols or ATOM.sub("", key) or any(s not in atomic_numbers for s in symbols):
        raise Refused(SequenceReason.UNKNOWN_NODE, f"'{key}' is no bag of bracket atoms such as [Zn][Zn][O]")
    numbers = [atomic_numbers[s] for s in symbols]
    if not is_metal(numbers[0]):
        raise Refused(SequenceReason.UNKNOWN_NODE, f"'{key}' does not begin with a metal")
    return round(float(atomic_masses[numbers].sum()), 3), key


def _linker_rank(key: str) -> tuple[float, str]:
    """Mass and key of a linker, H included.

    Raises:
        Refused: RDKit cannot read it.
    """
    from ase.data import atomic_masses
    from rdkit import Chem, rdBase

    with rdBase.BlockLogs():
        mol = Chem.MolFromSmiles(key)
    if mol is None:
        raise Refused(SequenceReason.UNREADABLE_LINKER, f"'{key}' is no valid SMILES")
    numbers = [a.GetAtomicNum() for a in Chem.AddHs(mol).GetAtoms()]
    return round(float(atomic_masses[numbers].sum()), 3), key


@dataclass(frozen=True)
class Vocabulary:
    """Tokens with their numbers; the special ones come first."""

    tokens: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def number_of(self) -> dict[str, int]:
        """Token to number."""
        return {token: k for k, token in enumerate(self.tokens)}

    def encode(self, text: str) -> list[int]:
        """Numbers of the tokens of a text; tokens outside the vocabulary become `<UNK>`."""
        number_of = self.number_of
        return [number_of.get(token, number_of[UNK]) for token in tokenize(text)]

    def decode(self, numbers: Sequence[int]) -> str:
        """The text of token numbers, padding dropped."""
        return detokenize([self.tokens[k] for k in numbers if self.tokens[k] != PAD])


def build_vocabulary(sequences: Iterable[str]) -> Vocabulary:
    """The special tokens and every token of the sequences, sorted."""
    found = {token for text in sequences for token in tokenize(text)}
    return Vocabulary(SPECIALS + tuple(sorted(found - set(SPECIALS))))
