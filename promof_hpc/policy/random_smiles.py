"""Component sets with their linkers written from random atoms: more text to learn from for the same molecules."""

from __future__ import annotations

from promof_hpc.chem.sequence import BOS, EOS, SEP, UNK, Vocabulary


def rewritten(sequence: str, seed: int, vocabulary: Vocabulary) -> str:
    """The same component set; equal linkers stay equal. Unchanged where a new text needs unknown tokens."""
    from rdkit import Chem

    head, tail = sequence.removesuffix(EOS).split(SEP)
    linkers = tail.strip().split(".")
    new = {}
    for number, key in enumerate(dict.fromkeys(linkers)):
        found = Chem.MolToRandomSmilesVect(Chem.MolFromSmiles(key), 1, randomSeed=seed + number)
        new[key] = found[0]
    text = f"{BOS} {head.removeprefix(BOS).strip()} {SEP} {'.'.join(new[k] for k in linkers)} {EOS}"
    return sequence if vocabulary.number_of[UNK] in vocabulary.encode(text) else text
