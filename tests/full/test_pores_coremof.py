from __future__ import annotations

import csv
import io
import random
import tarfile
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from ase.io import read

from promof_hpc.physics.pores import pores
from promof_hpc.structure import Structure

pytestmark = [pytest.mark.full, pytest.mark.timeout(1800)]

SAMPLE, SEED = 100, 20190101


def _core_mof() -> Path:
    spec = find_spec("CoRE_MOF")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("core-mof is not installed")
    return Path(spec.submodule_search_locations[0]) / "data"


def _sampled_rows() -> dict[str, dict[str, str]]:
    with open(_core_mof() / "2019-ASR.csv", encoding="utf-8-sig") as table:
        rows = {row["filename"]: row for row in csv.DictReader(table) if row["LCD"]}
    return {name: rows[name] for name in random.Random(SEED).sample(sorted(rows), SAMPLE)}


def test_hundred_random_mofs_agree_with_zeopp_in_core_mof() -> None:
    rows = _sampled_rows()
    errors, seconds = [], []
    with tarfile.open(_core_mof() / "2019-ASR.tar.xz") as archive:
        for member in archive:
            name = Path(member.name).stem
            if name not in rows:
                continue
            file = archive.extractfile(member)
            assert file is not None
            structure = Structure.from_ase(read(io.StringIO(file.read().decode()), format="cif"))
            start = time.process_time()
            found = pores(structure)
            seconds.append(time.process_time() - start)
            errors.append([found.lcd_ang - float(rows[name]["LCD"]), found.pld_ang - float(rows[name]["PLD"])])
    assert len(errors) == SAMPLE
    difference = np.abs(errors)
    for column, label in enumerate(("LCD", "PLD")):
        print(f"{label}: median {np.median(difference[:, column]):.4f}, max {difference[:, column].max():.4f} Å")
    print(f"time: median {np.median(seconds):.2f}, max {max(seconds):.2f} s on one core")
    assert (np.median(difference, axis=0) <= 0.05).all()
    assert (difference.max(axis=0) <= 0.3).all()
