import json
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from data_prep.split import linker_skeleton
from promof_hpc.assembly.build import assemble
from promof_hpc.assembly.net_library import NetLibrary
from promof_hpc.assembly.node_library import NodeLibrary
from promof_hpc.assembly.prepared import PreparedMof, crystal_parts
from promof_hpc.assembly.prepared_shard import read_prepared
from promof_hpc.chem.blocks import Kind
from promof_hpc.chem.sequence import UNK, Vocabulary, parse_sequence
from promof_hpc.chem.validity import check

FOLDER = Path(str(files("promof_hpc"))) / "data" / "small_mofs"


@pytest.fixture(scope="module")
def parts() -> dict[str, list[PreparedMof]]:
    return {
        part: [m for p in sorted((FOLDER / part).glob("*.h5")) for m in read_prepared(p)]
        for part in ("train", "val", "test", "mixed")
    }


def test_a_few_hundred_small_h_complete_mofs_ship_in_two_megabytes(parts):
    mofs = [m for found in parts.values() for m in found]
    assert 300 <= len(mofs) <= 900
    assert all(len(m.decomposition.structure) <= 50 for m in mofs)
    assert all(check(m.decomposition.structure).h_complete for m in mofs)
    assert all(m.decomposition.dimensionality == 3 and m.properties["lcd_ang"] > 0 for m in mofs)
    assert sum(p.stat().st_size for p in FOLDER.rglob("*") if p.is_file()) < 2.2e6


def test_shipped_mofs_are_sound_crystals_when_assembled(parts):
    for mof in parts["train"][::10]:
        built = assemble(crystal_parts(mof.decomposition), mof.decomposition.structure.cell)
        atoms = np.concatenate([b.atoms for b in mof.decomposition.blocks])
        assert built.formula == mof.decomposition.structure.formula
        assert sorted(atoms) == list(range(len(built)))
        assert not check(built).overlap


def test_every_training_mof_is_matched_and_readable_by_a_chemist(parts):
    nodes = NodeLibrary.read(FOLDER / "nodes.h5")
    vocabulary = Vocabulary(tuple(json.loads((FOLDER / "vocabulary.json").read_text())))
    for mof in parts["train"]:
        assert mof.fully_matched
        assert UNK not in [vocabulary.tokens[k] for k in vocabulary.encode(mof.sequence)]
        assert parse_sequence(mof.sequence, nodes.by_key).sequence == mof.sequence


def test_training_and_its_libraries_know_no_held_out_linker(parts):
    held_out = set(json.loads((FOLDER / "split.json").read_text())["held_out_skeletons"])
    used = {linker_skeleton(b.key) for m in parts["train"] for b in m.decomposition.blocks if b.kind is Kind.ORGANIC}
    nets = NetLibrary.read(FOLDER / "nets.h5")
    assert held_out
    assert not used & held_out
    assert not {s for d in nets.donors for s in d.skeletons} & held_out
    assert {d.name for d in nets.donors} <= {m.name for m in parts["train"]}


def test_the_card_tells_the_numbers_of_the_shards(parts):
    card = (FOLDER / "README.md").read_text()
    for part, mofs in parts.items():
        assert f"| {part} | {len(mofs)} |" in card
    assert "CC BY 4.0" in card
    assert "promof prep coremof:2019-ASR" in card
