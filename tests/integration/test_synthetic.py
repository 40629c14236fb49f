"""Synthetic MOFs: new pairs, balanced charges, shards that read like real ones, and the same files after a SIGKILL."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from data_prep.pairing import exchanged
from data_prep.synthetic import SyntheticSettings, synthesise
from hpc.cli import app
from promof_hpc.assembly.components import crystal_components, matched_components
from promof_hpc.assembly.gate import expect, gate
from promof_hpc.assembly.node_library import NodeLibrary
from promof_hpc.assembly.prepared import PreparedMof
from promof_hpc.assembly.prepared_shard import read_prepared
from promof_hpc.chem.blocks import Kind
from promof_hpc.chem.sequence import component_set, parse_sequence
from promof_hpc.errors import UsageError
from promof_hpc.store.shard import list_names, read_shard
from tests.processes import wait_for

DATA = Path(str(files("promof_hpc"))) / "data" / "small_mofs"
SETTINGS = SyntheticSettings(count=3, seed=1, chunk=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("synthetic") / "set"
    summary = synthesise(DATA, out, SETTINGS)
    assert summary.made == SETTINGS.count
    assert summary.outcomes["made"] == SETTINGS.count
    assert "a CPU hour" in summary.lines()[0]
    return out


def made(folder: Path) -> list[PreparedMof]:
    return [m for name in list_names(folder / "train", ".h5") for m in read_prepared(folder / "train" / name)]


def digests(folder: Path) -> dict[str, str]:
    return {name: read_shard(folder / "train" / name).digest() for name in list_names(folder / "train", ".h5")}


def real() -> list[PreparedMof]:
    return read_prepared(DATA / "train" / "00000.h5")


def test_synthetic_mofs_are_frameworks_that_pass_the_gate(folder: Path) -> None:
    mofs = made(folder)
    assert len({m.name for m in mofs}) == SETTINGS.count
    for mof in mofs:
        assert mof.name.startswith("synthetic-")
        found = mof.decomposition
        images = np.zeros((len(found.structure), 3), np.int32)
        order = np.argsort(np.concatenate([b.atoms for b in found.blocks]))
        images = np.concatenate([b.images for b in found.blocks])
        expected = expect(found.blocks, found.contacts)
        straight = found.structure.positions + images[order] @ found.structure.cell
        in_blocks = np.concatenate([b.atoms for b in found.blocks])
        structure = type(found.structure)(found.structure.numbers[in_blocks], straight[in_blocks], found.structure.cell)
        assert gate(structure, expected).passed
        assert found.dimensionality == 3
        assert found.components == 1


def test_the_pairs_are_new_and_the_charge_is_that_of_a_real_mof_with_these_nodes(folder: Path) -> None:
    known = {
        (n, q)
        for m in real()
        for n in component_set(m.decomposition).nodes
        for q in component_set(m.decomposition).linkers
    }
    charges: dict[tuple[str, ...], set[int]] = {}
    for mof in real():
        nodes = component_set(mof.decomposition).nodes
        charges.setdefault(nodes, set()).add(sum(b.charge for b in mof.decomposition.blocks))
    for mof in made(folder):
        parts = component_set(mof.decomposition)
        assert any((n, q) not in known for n in parts.nodes for q in parts.linkers)
        assert sum(b.charge for b in mof.decomposition.blocks) in charges[parts.nodes]
        assert parse_sequence(mof.sequence) == parts


def test_pretraining_reads_them_like_real_ones(folder: Path) -> None:
    library = NodeLibrary.read(folder / "nodes.h5")
    for mof in made(folder):
        assert mof.fully_matched
        components, solution = matched_components(mof, library)
        assert components.sequence == mof.sequence
        assert sorted(solution.partner) == list(range(len(components.linker_ends)))
        linkers = [f for f, b in zip(mof.matched, mof.decomposition.blocks, strict=True) if b.kind is Kind.ORGANIC]
        assert max(f.rmsd_ang for f in linkers if f is not None) < 0.5


def test_a_killed_and_repeated_run_makes_the_same_files(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    script = tmp_path / "driver.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\nfrom data_prep.synthetic import synthesise\n"
        "from tests.integration.test_synthetic import DATA, SETTINGS\n"
        "if __name__ == '__main__':\n    synthesise(DATA, Path(sys.argv[1]), SETTINGS)\n"
    )
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen([sys.executable, str(script), str(out)], cwd=root, env=environment)
    wait_for(lambda: (out / "train").is_dir() and list_names(out / "train", ".h5"), 180, "a chunk")
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert len(list_names(out / "train", ".h5")) < SETTINGS.count, "the run ended before it could be killed"
    summary = synthesise(DATA, out, SETTINGS, workers=2)
    assert summary.made == SETTINGS.count
    assert digests(out) == digests(folder)


def test_running_again_does_nothing(folder: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
    assert synthesise(DATA, folder, SETTINGS).outcomes == {}
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()} == before


def test_other_settings_other_data_and_no_data_are_refused_with_a_remedy(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"another settings.*choose another folder"):
        synthesise(DATA, folder, SyntheticSettings(count=3, seed=2, chunk=1))
    with pytest.raises(UsageError, match="make a training set with `promof prep`"):
        synthesise(tmp_path, tmp_path / "out", SETTINGS)
    with pytest.raises(UsageError, match="positive number"):
        synthesise(DATA, tmp_path / "out", SyntheticSettings(count=0))
    other = tmp_path / "data"
    shutil.copytree(DATA, other)
    (other / "vocabulary.json").write_text("[]\n")
    with pytest.raises(UsageError, match="another data"):
        synthesise(other, folder, SETTINGS)
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="choose another one"):
        synthesise(DATA, tmp_path / "file" / "out", SETTINGS)


def test_the_verb_goes_on_with_a_folder_and_needs_data(folder: Path) -> None:
    runner = CliRunner()
    assert isinstance(runner.invoke(app, ["prep", "synthetic", "--out", "x"]).exception, UsageError)
    plan = json.loads((folder / "plan.json").read_text())
    assert plan["settings"]["seed"] == 1
    # the verb's chunks are larger than this folder's: that is another set
    asked = ["prep", "synthetic", "--data", str(DATA), "--out", str(folder), "--count", "3", "--seed", "1"]
    assert isinstance(runner.invoke(app, asked).exception, UsageError)


def test_an_exchanged_linker_brings_its_ends_and_sorts_the_set_anew() -> None:
    mofs = {m.name: m for m in real()}
    pair = next(
        (a, b)
        for a in mofs.values()
        for b in mofs.values()
        if len(set(component_set(a.decomposition).linkers)) == 1
        and contacts(a) == contacts(b)
        and component_set(a.decomposition).linkers[0] not in component_set(b.decomposition).linkers
    )
    host, source = (crystal_components(m)[0] for m in pair)
    block = next(k for k, b in enumerate(source.blocks) if b.kind is Kind.ORGANIC)
    leaves = next(b.key for b in host.blocks if b.kind is Kind.ORGANIC)
    new = exchanged(host, leaves, source, block)
    assert Counter(b.key for b in new.blocks)[source.blocks[block].key] == Counter(b.key for b in host.blocks)[leaves]
    assert new.signature() == host.signature()
    assert parse_sequence(new.sequence).sequence == new.sequence
    for end in new.linker_ends:
        assert end.site.positions == pytest.approx(new.blocks[end.block].local[end.donors])


def contacts(mof: PreparedMof) -> list[list[tuple[int, ...]]]:
    """Donor elements of the contacts of every linker, sorted."""
    found = mof.decomposition
    return sorted(
        sorted(tuple(sorted(c.elements.tolist())) for c in found.contacts if c.linker == k)
        for k, b in enumerate(found.blocks)
        if b.kind is Kind.ORGANIC
    )
