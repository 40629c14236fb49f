"""Which tokens may follow: component sets of known blocks, in order of mass, within the cap of atoms, and nothing else.

A chemist that may only write what a library holds samples from its distribution restricted to these tokens and
normalised again; learned sequences get their log-probabilities under the same restriction, so ratios stay exact.
Sampling cannot run into a dead end: a token is allowed only if some block beyond it still fits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from promof_hpc.chem.sequence import EOS, SEP, Vocabulary, atom_count, sorted_set, tokenize

DOT = "."


@dataclass
class _Branch:
    """A place in the tree of blocks.

    Attributes:
        next: branch that each token leads to.
        ranks, atoms: place in the order of masses and size of every block at or beyond this branch.
        block: place in the order of masses and size of the block that ends here; None where none does.
    """

    next: dict[int, _Branch] = field(default_factory=dict)
    ranks: list[int] = field(default_factory=list)
    atoms: list[int] = field(default_factory=list)
    block: tuple[int, int] | None = None

    def fits(self, rank: int, room: int) -> bool:
        """Whether a block at or beyond this branch is not lighter than `rank` and has at most `room` atoms."""
        return any(r >= rank and a <= room for r, a in zip(self.ranks, self.atoms, strict=True))


class Grammar:
    """The component sets that may be written."""

    def __init__(self, vocabulary: Vocabulary, nodes: Iterable[str], linkers: Iterable[str], atom_cap: int):
        """Take in the blocks that `vocabulary` can spell; others are left out.

        Raises:
            ValueError: no node or no linker is left, or none fit together within the cap.
        """
        self.vocabulary, self.atom_cap = vocabulary, atom_cap
        number_of = vocabulary.number_of
        self._dot, self._sep, self._eos = number_of[DOT], number_of[SEP], number_of[EOS]
        spelled = [{k for k in keys if all(t in number_of for t in tokenize(k))} for keys in (nodes, linkers)]
        known = sorted_set(*spelled)
        self._nodes, self._linkers = _tree(known.nodes, number_of), _tree(known.linkers, number_of)
        self._least_linker = min(self._linkers.atoms, default=atom_cap + 1)
        if not self._nodes.fits(0, atom_cap - self._least_linker):
            raise ValueError(f"no node and linker of the library fit into {atom_cap} atoms together")

    def begin(self) -> Walk:
        """The place after `<BOS>`."""
        return Walk(self, self._nodes, self._nodes, self._sep, self.atom_cap - self._least_linker)

    def masks(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """True for tokens that could stand at each place after the first, [B, T - 1, V].

        Args:
            tokens: int64 [B, T] with `<BOS>` first, written under this grammar; after `lengths` [B] all is allowed.
        """
        rows, places = tokens.shape
        masks = np.ones((rows, max(0, places - 1), len(self.vocabulary)), bool)
        for i, (row, length) in enumerate(zip(tokens.tolist(), lengths.tolist(), strict=True)):
            walk = self.begin()
            for t in range(1, length):
                masks[i, t - 1] = walk.mask()
                walk.follow(row[t])
        return torch.from_numpy(masks)


@dataclass
class Walk:
    """A place in a sequence.

    Attributes:
        tree: of the part that is being written, `branch` the place in it.
        closing: token that ends the part.
        room: atoms that the part may still take.
        rank: place of the last block in the order of masses.
    """

    grammar: Grammar
    tree: _Branch
    branch: _Branch
    closing: int
    room: int
    rank: int = 0
    done: bool = False

    def mask(self) -> np.ndarray:
        """True for tokens that may follow, bool [V]."""
        allowed = np.zeros(len(self.grammar.vocabulary), bool)
        for token, branch in self.branch.next.items():
            allowed[token] = branch.fits(self.rank, self.room)
        if self.branch.block is not None:
            rank, atoms = self.branch.block
            if rank >= self.rank and atoms <= self.room:
                allowed[self.closing] = True
                allowed[self.grammar._dot] = self.tree.fits(rank, self.room - atoms)
        if self.done:
            allowed[self.grammar._eos] = True
        return allowed

    def follow(self, token: int) -> None:
        """Take a token.

        Raises:
            ValueError: it may not stand here.
        """
        if self.done:
            return
        if token in self.branch.next:
            self.branch = self.branch.next[token]
            return
        if self.branch.block is None or token not in (self.closing, self.grammar._dot):
            raise ValueError(f"the token '{self.grammar.vocabulary.tokens[token]}' may not stand here")
        rank, atoms = self.branch.block
        self.room -= atoms
        if token == self.grammar._dot:
            self.rank, self.branch = rank, self.tree
        elif self.tree is self.grammar._nodes:
            self.tree = self.branch = self.grammar._linkers
            self.closing, self.rank = self.grammar._eos, 0
            self.room += self.grammar._least_linker
        else:
            self.done = True


def _tree(keys: Sequence[str], number_of: dict[str, int]) -> _Branch:
    """Blocks in the order of their masses, by their tokens."""
    root = _Branch()
    for rank, key in enumerate(keys):
        branch, atoms = root, atom_count(key)
        for token in (None, *tokenize(key)):
            if token is not None:
                branch = branch.next.setdefault(number_of[token], _Branch())
            branch.ranks.append(rank)
            branch.atoms.append(atoms)
        branch.block = (rank, atoms)
    return root


def masked(log_p: Tensor, allowed: Tensor) -> Tensor:
    """Log-probabilities [..., V] restricted to the allowed tokens and normalised again."""
    return log_p.masked_fill(~allowed, -torch.inf).log_softmax(-1)


def stacked(walks: Sequence[Walk]) -> Tensor:
    """Masks of several places, bool [B, V]."""
    return torch.from_numpy(np.stack([walk.mask() for walk in walks]))
