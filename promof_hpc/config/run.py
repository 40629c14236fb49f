"""What runs of every kind share, and the configuration of a screening."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from promof_hpc.config.evaluation import EvaluationSettings
from promof_hpc.config.section import Optional_, Section


class ReadSettings(Section):
    """How a library is read."""

    primitive: bool = True
    """Reduce each structure to its primitive cell (nothing is symmetrised)."""
    max_atoms: int = Field(600, ge=1)
    """Structures with more atoms in the cell to be relaxed are refused as too large."""
    limit: Annotated[int | None, Optional_] = Field(None, ge=1)
    """Take only so many entries, drawn with `seed`."""
    names: Annotated[Path | None, Optional_] = None
    """Take only the entries listed in this file, one name a line."""
    seed: int = 0
    """Seed of every random choice of the run."""


class FarmSettings(Section):
    """How the work is spread."""

    ranks: int = Field(1, ge=1)
    """MPI ranks; one a core on CPUs (each with one thread), one a device on GPUs."""
    batch_structures: int = Field(4, ge=1)
    """Structures in a batch, the unit that is committed or lost; small on CPUs, 32 or more on a GPU."""
    batch_atoms: int = Field(20_000, ge=1)
    """Atoms in a batch at most."""
    hang_s: float = Field(1800.0, gt=0)
    """A rank that has not taken a step for so long is ended, and its batch becomes a suspect."""
    drain_s: float = Field(30.0, ge=0)
    """After a stop signal ranks finish the batch in hand if it takes no longer than this, else drop it uncharged.
    On a cluster they take half of the site's notice at most."""
    meeting_s: float = Field(300.0, gt=0)
    """Ranks that have not found each other after this are ended; on a cluster their job is queued again."""
    claim_expiry_s: float = Field(300.0, gt=0)
    """A claim by another job that was not renewed for so long is void."""


class RunConfig(Section):
    """What the farm and the ledger need to know of a run, whatever its kind."""

    budget: Annotated[int | None, Optional_] = Field(None, ge=1)
    """Evaluations at most; none takes the whole library."""
    evaluation: EvaluationSettings = EvaluationSettings()
    reference: str = "shipped"
    """Reference set for e_form and e_rel: shipped, none, or a file made by `promof reference build`."""
    farm: FarmSettings = FarmSettings()


class ScreenConfig(RunConfig):
    """Screening: a library in, a ranked table out."""

    library: str = "demo"
    """A folder or archive of CIFs, an extxyz file, an ASE database, our shards, coremof:2019-ASR, or demo."""
    read: ReadSettings = ReadSettings()
