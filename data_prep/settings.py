"""What a preparation may be told, and why a MOF is left out of it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from enum import StrEnum


class PrepReason(StrEnum):
    """Why a MOF that was read (or not) is not in the training set; readers and the decomposer add their own reasons."""

    DISORDERED = "disordered"
    TOO_MANY_ATOMS = "too_many_atoms"
    TOO_MANY_BLOCKS = "too_many_blocks"
    BLOCK_TOO_LARGE = "block_too_large"
    LOW_DIMENSIONAL = "low_dimensional"
    HYDROGEN_MISSING = "hydrogen_missing"
    CONFORMER_TOO_DIFFERENT = "conformer_too_different"
    TIMED_OUT = "timed_out"
    CRASHED = "crashed"
    FAILED = "failed"


@dataclass(frozen=True)
class SplitSettings:
    """How MOFs are divided by linker skeleton.

    Attributes:
        seed: draws the held-out skeletons.
        test_share: share of the MOFs that the test part should reach.
        validation_share: the same for the validation part.
        kept_skeletons: so many of the commonest skeletons always stay in training.
    """

    seed: int = 0
    test_share: float = 0.08
    validation_share: float = 0.05
    kept_skeletons: int = 20


@dataclass(frozen=True)
class PrepSettings:
    """A preparation. Two runs into one folder must agree on it.

    Attributes:
        max_atoms: larger primitive cells are left out.
        max_blocks: the same for the blocks of a cell.
        max_block_atoms: the same for the atoms of one block.
        keep_disordered: take MOFs that their source marks as disordered.
        keep_low_dimensional: take MOFs whose net is not periodic in three directions; no gate would pass them.
        keep_hydrogen_missing: take MOFs that seem to lack hydrogen.
        conformers: match every linker with a conformer; without, only crystal geometry is stored.
        max_conformer_rmsd_ang: a MOF with a linker further from its conformer (heavy atoms, Å) is left out.
        seed: seeds the conformers.
        split: how the parts are drawn.
        chunk: entries that are prepared, and lost by a kill, together.
        shard: MOFs in a finished shard.
        time_limit_s: wall time in s after which one MOF is given up.
    """

    max_atoms: int = 300
    max_blocks: int = 20
    max_block_atoms: int = 200
    keep_disordered: bool = False
    keep_low_dimensional: bool = False
    keep_hydrogen_missing: bool = False
    conformers: bool = True
    max_conformer_rmsd_ang: float = 0.5
    seed: int = 0
    split: SplitSettings = field(default_factory=SplitSettings)
    chunk: int = 128
    shard: int = 512
    time_limit_s: int = 120

    def as_json(self) -> str:
        """The settings as one line of JSON, keys sorted."""
        return json.dumps(asdict(self), sort_keys=True)
