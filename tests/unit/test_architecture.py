"""The house rules that a machine can check: who may import whom, and how fast the command answers."""

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FORBIDDEN = {
    "promof_hpc": {"hpc", "data_prep", "submitit", "mpi4py", "deepspeed"},
    "data_prep": {"hpc", "submitit", "mpi4py", "deepspeed"},
    "hpc": {"rdkit", "spglib", "gemmi", "pymatgen"},
}


def _imports(path):
    """Every module that a file imports, those inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module


def _files(package):
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_point_one_way(package):
    files = _files(package)
    assert files
    for path in files:
        for module in _imports(path):
            assert module.split(".")[0] not in FORBIDDEN[package], f"{path.relative_to(ROOT)} imports {module}"


def test_mpi_and_torch_distributed_never_meet_in_a_module():
    for package in ("hpc", "promof_hpc", "data_prep"):
        for path in _files(package):
            roots = set(_imports(path))
            assert not ({"mpi4py"} & {m.split(".")[0] for m in roots} and "torch.distributed" in roots)


def test_no_module_is_a_drawer():
    for package in ("hpc", "promof_hpc", "data_prep"):
        for path in _files(package):
            assert path.stem not in {"utils", "helpers", "misc", "common", "manager"}
            assert len(path.read_text(encoding="utf-8").splitlines()) <= 420, path


def test_nothing_of_a_certain_machine_stands_in_the_repository():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    for name in tracked:
        path = ROOT / name
        if path.suffix in {".py", ".md", ".txt", ".toml", ".yaml", ".j2", ""} and path.is_file():
            text = path.read_text(encoding="utf-8", errors="replace")
            for word in ("/ro" + "ot/", "/wo" + "rk/", "+c" + "pu"):
                assert word not in text, f"{name} contains {word}"


def test_help_answers_within_half_a_second():
    best = 9.0
    for _ in range(3):
        begin = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "hpc.cli", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        best = min(best, time.perf_counter() - begin)
    assert "screen" in done.stdout
    assert best < 0.5
