"""From starts to judged assemblies: crystals pass, junk is graded with reasons, batches do not matter."""

from dataclasses import replace
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch

from promof_hpc.assembly.assembler import Assembled, FinishSettings, assemble_by_net, finish
from promof_hpc.assembly.components import Components, Solution, crystal_components
from promof_hpc.assembly.gate import GateReason, gate
from promof_hpc.assembly.net_library import NetLibrary
from promof_hpc.assembly.net_start import NetStart
from promof_hpc.assembly.prepared_shard import read_prepared
from promof_hpc.assembly.snap import SnapSettings
from promof_hpc.assembly.stack import Poses, poses_of, stack

FOLDER = Path(str(files("promof_hpc"))) / "data" / "small_mofs"
RAW = FinishSettings(snap=None)


@lru_cache
def library() -> NetLibrary:
    return NetLibrary.read(FOLDER / "nets.h5")


@lru_cache
def crystals() -> tuple[tuple[Components, Solution], ...]:
    names = {d.name for d in library().donors}
    mofs = [m for m in read_prepared(FOLDER / "train" / "00000.h5") if m.name in names]
    return tuple(crystal_components(m) for m in mofs[:12:3])


def finished(sets: list[tuple[Components, Solution]], settings: FinishSettings, **more: object) -> list[Assembled]:
    fixed = stack([c for c, _ in sets])
    return finish(fixed, poses_of([s for _, s in sets], fixed), settings, **more)  # type: ignore[arg-type]


def shaken(solution: Solution, seed: int) -> Solution:
    generator = np.random.default_rng(seed)
    return replace(solution, centroids=solution.centroids + 0.2 * generator.normal(size=solution.centroids.shape))


def reasons(assembled: Assembled) -> set[GateReason]:
    return {f.reason for f in assembled.gate.failures}


def test_crystals_pass_raw_and_snapped_and_snap_hardly_moves_them() -> None:
    for settings in (RAW, FinishSettings()):
        for (components, solution), got in zip(crystals(), finished(list(crystals()), settings), strict=True):
            assert got.gate.passed, got.gate
            assert got.start == "poses"
            assert np.isnan(got.misfit)
            assert got.pose.cell == pytest.approx(solution.cell, abs=0.3)
            assert (got.structure.numbers == components.numbers).all()
    snapped = finished(list(crystals()), FinishSettings())
    assert max(g.displacement_ang for g in snapped) < 0.2
    assert all(np.isnan(g.snap_energy_ang2) for g in finished(list(crystals()), RAW))


def test_shaken_crystals_fail_raw_and_pass_after_snap() -> None:
    sets = [(c, shaken(s, k)) for k, (c, s) in enumerate(crystals())]
    raw, closed = finished(sets, RAW), finished(sets, FinishSettings())
    assert sum(g.gate.passed for g in closed) > sum(g.gate.passed for g in raw)
    assert all(g.gate.passed for g in closed)
    assert all(0.05 < g.displacement_ang < 1.0 for g in closed)


def test_an_assembly_does_not_depend_on_its_neighbours_in_the_batch() -> None:
    sets = [(c, shaken(s, k)) for k, (c, s) in enumerate(crystals())]
    together = finished(sets, FinishSettings(), seed=1)
    for one, got in zip(sets, together, strict=True):
        alone = finished([one], FinishSettings(), seed=1)[0]
        assert got.structure.positions == pytest.approx(alone.structure.positions, abs=1e-3)
        assert got.gate.passed == alone.gate.passed


def test_the_gate_is_asked_about_the_structure_that_is_returned() -> None:
    components, solution = crystals()[0]
    got = finished([(components, shaken(solution, 3))], FinishSettings())[0]
    assert gate(got.structure, components.expected) == got.gate


def test_the_pose_of_an_assembly_builds_its_structure_again() -> None:
    components, solution = crystals()[1]
    got = finished([(components, shaken(solution, 3))], FinishSettings())[0]
    again = finished([(components, got.pose)], RAW)[0]
    assert again.structure.positions == pytest.approx(got.structure.positions, abs=1e-3)
    assert sorted(got.pose.partner) == list(range(len(components.linker_ends)))


def test_a_hopeless_assembly_is_graded_without_being_decomposed(monkeypatch: pytest.MonkeyPatch) -> None:
    components, solution = crystals()[0]
    far = replace(solution, centroids=np.random.default_rng(0).normal(size=solution.centroids.shape) * 10.0)
    settings = FinishSettings(hopeless_ang2=0.0)

    def never(*args: object, **more: object) -> None:
        raise AssertionError("decomposed")

    monkeypatch.setattr("promof_hpc.assembly.gate.decompose", never)
    got = finished([(components, far)], settings)[0]
    assert got.snap_energy_ang2 > 0.0
    assert GateReason.MISSING_CONTACTS in reasons(got)
    assert not got.gate.passed
    assert 0.0 <= got.gate.score < 0.95


def test_volume_outside_the_window_is_a_reason() -> None:
    got = finished([crystals()[0]], FinishSettings(snap=None, volume_per_atom_ang3=(30.0, 45.0)))[0]
    assert GateReason.CROWDED in reasons(got)
    assert got.gate.score <= 0.95
    got = finished([crystals()[0]], FinishSettings(snap=None, volume_per_atom_ang3=(1.0, 5.0)))[0]
    assert reasons(got) == {GateReason.DENSITY}


def test_poses_that_are_no_numbers_are_refused_without_an_error() -> None:
    fixed = stack([crystals()[0][0]] * 2)
    good = poses_of([crystals()[0][1]] * 2, fixed)
    broken = Poses(good.cells, good.rotations, good.centroids.clone(), good.angles)
    broken.centroids[0, 0] = torch.nan
    for settings in (RAW, FinishSettings()):
        got = finish(fixed, broken, settings)
        assert not got[0].gate.passed
        assert got[0].gate.score == 0.0
        assert got[1].gate.passed


def test_a_net_start_keeps_its_net_or_not_as_asked() -> None:
    components, solution = crystals()[2]
    start = NetStart(solution, 0.25, "abc", "nobody")
    for keep in (True, False):
        got = finished([(components, solution)], FinishSettings(keep_net=keep), starts=[start])[0]
        assert got.start == "net:abc"
        assert got.misfit == 0.25
        assert got.gate.passed
    mixed = finished([(components, solution)] * 2, FinishSettings(), starts=[start, None])
    assert [g.start for g in mixed] == ["net:abc", "poses"]


def test_assembly_by_net_finds_crystals_again_and_stops_when_it_has_enough() -> None:
    components, _ = crystals()[0]
    done = assemble_by_net(components, library(), 24, FinishSettings(), np.random.default_rng(0), enough=1)
    assert any(a.gate.passed for a in done)
    assert len(done) < 24
    again = assemble_by_net(components, library(), 24, FinishSettings(), np.random.default_rng(0), enough=1)
    assert [a.structure.digest() for a in done] == [a.structure.digest() for a in again]
    assert all(a.start.startswith("net:") and a.misfit >= 0 for a in done)


def test_no_known_net_means_no_assembly() -> None:
    components, _ = crystals()[0]
    assert assemble_by_net(components, NetLibrary(()), 8, FinishSettings(), np.random.default_rng(0)) == []


def test_more_tries_of_snap_are_passed_on() -> None:
    components, solution = crystals()[0]
    far = replace(solution, centroids=solution.centroids * 1.3)
    one, four = (finished([(components, far)], FinishSettings(snap=SnapSettings(tries=n)), seed=2)[0] for n in (1, 4))
    assert four.snap_energy_ang2 <= one.snap_energy_ang2
