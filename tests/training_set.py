"""A training set of a few shipped MOFs with all its libraries, as `promof prep` would leave it."""

import json
import shutil
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

from data_prep.libraries import net_library
from promof_hpc.assembly.linker_library import LinkerLibrary
from promof_hpc.assembly.prepared import PreparedMof
from promof_hpc.assembly.prepared_shard import read_prepared, write_prepared
from promof_hpc.chem.sequence import build_vocabulary

SHIPPED = Path(str(files("promof_hpc"))) / "data" / "small_mofs"


@lru_cache
def shipped_training() -> tuple[PreparedMof, ...]:
    return tuple(m for p in sorted((SHIPPED / "train").glob("*.h5")) for m in read_prepared(p))


def training_set(folder: Path, mofs: list[PreparedMof]) -> Path:
    """Write the set; nodes are those of all shipped MOFs, because matched blocks refer to them by number."""
    (folder / "train").mkdir(parents=True)
    shutil.copy(SHIPPED / "nodes.h5", folder)
    write_prepared(folder / "train" / "00000.h5", mofs, {"part": "train"})
    net_library(mofs).write(folder / "nets.h5", {})
    LinkerLibrary.of(mofs).write(folder / "linkers.h5", {})
    (folder / "vocabulary.json").write_text(json.dumps(list(build_vocabulary(m.sequence for m in mofs).tokens)))
    return folder
