"""The screening journey: library in, candidate shards, farm, table and report out."""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpc import exit_codes
from hpc.worker import load_run_potential
from promof_hpc.config import ScreenConfig, dump_config, load_config
from promof_hpc.errors import UsageError
from promof_hpc.store.run_dir import RunDir, is_ingested
from promof_hpc.store.shard import list_names, publish_text

if TYPE_CHECKING:
    from promof_hpc.physics.potential import Potential

PACKAGES = ("promof-hpc", "torch", "sevenn", "chgnet", "ase", "gemmi", "spglib", "rdkit", "numpy", "h5py", "mpi4py")


def screening_config(path: Path | None, overrides: Sequence[str], where: Sequence[str]) -> ScreenConfig:
    """The configuration of a screening from a file, flags and `--set`."""
    gates = [f"evaluation.where={json.dumps(list(where))}"] if where else []
    return load_config(ScreenConfig, path, [*overrides, *gates])


def screen_library(config: ScreenConfig, run_path: Path | None, as_json: bool) -> int:
    """Screen a library into a run directory; an existing run with the same configuration goes on.

    Returns:
        exit code.

    Raises:
        UsageError: the run exists with another configuration, or the library cannot be used.
    """
    path = run_path or Path("runs") / _default_name(config.library)
    begin_run(path, config)
    return resume_run(path, 0, as_json)


def begin_run(path: Path, config: ScreenConfig, kind: str = "screen") -> RunDir:
    """Make the run directory with its configuration, or check that an existing one has this configuration."""
    if "config.yaml" in list_names(path.absolute()):
        run = RunDir.open(path)
        before = load_config(ScreenConfig, run.config)
        if before.model_dump(exclude={"farm": {"ranks"}}) != config.model_dump(exclude={"farm": {"ranks"}}):
            raise UsageError(
                f"{path} was begun with another configuration ({run.config}); choose another --run, "
                f"or go on with that one: promof resume {path}"
            )
        return run
    from promof_hpc.screen.library import scan

    scan(config.library)  # a library that cannot be used leaves nothing behind
    potential = _load(config)
    run = RunDir.create(path)
    record_provenance(run, config, potential, kind)
    publish_text(run.config, dump_config(config))  # last: a directory with a configuration is a run
    return run


def resume_run(path: Path, ranks: int, as_json: bool = False) -> int:
    """Do what is missing of a run of any kind, then write its table and report."""
    from hpc.console import say
    from hpc.inspection import summary, write_report

    run = RunDir.open(path)
    code = complete(run, ranks, quiet=as_json)
    if code == exit_codes.DONE and run.provenance_record()["kind"] == "reference":
        from hpc.reference import finish_reference

        code = finish_reference(run, ranks)
    page = write_report(run)
    if as_json:
        print(json.dumps(summary(run)))
    else:
        say(run, code, page)
    return code


def complete(run: RunDir, ranks: int = 0, quiet: bool = False) -> int:
    """Read what has not been read of the library and evaluate every open batch; returns the exit code."""
    from hpc.console import Progress
    from hpc.local import leading, run_to_the_end
    from promof_hpc.screen.ingest import ingest

    config = load_config(ScreenConfig, run.config)
    ranks = ranks or config.farm.ranks
    with leading(run, config.farm.claim_expiry_s), Progress(run, config.budget, quiet) as progress:
        if not is_ingested(run):
            potential = load_run_potential(run, config.evaluation)
            ingest(run, config, potential, progress.reading, workers=ranks)
            del potential
        return run_to_the_end(run, ranks, progress.evaluating, config.farm.claim_expiry_s)


def record_provenance(run: RunDir, config: ScreenConfig, potential: Potential, kind: str) -> None:
    """What the numbers of the run come from; written once, at its first start."""
    record: dict[str, Any] = {
        "kind": kind,
        "begun": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv[1:],
        "library": config.library,
        "potential": {
            "id": potential.id,
            "weights_sha256": potential.weights_sha256,
            "task": config.evaluation.potential.task if potential.id.startswith("uma") else "",
            "notes": potential.notes,
        },
        "settings_sha256": config.evaluation.digest(),
        "versions": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "commit": _commit(),
    }
    publish_text(run.provenance, json.dumps(record, indent=1))


def evaluate_files(files: Sequence[str], config: ScreenConfig, as_json: bool) -> int:
    """Score files in this process and print a row each; refusals are rows too.

    Returns:
        0 if every structure was scored, 1 if any was refused or failed.
    """
    from hpc.console import print_rows
    from promof_hpc.errors import Refused
    from promof_hpc.physics.energies import load_reference, score
    from promof_hpc.physics.evaluate import evaluate, evaluation_id
    from promof_hpc.screen.library import scan
    from promof_hpc.store.schema import FAILED, Candidate, Outcome, Row

    entries = [entry for file in files for entry in scan(file).entries]
    potential = _load(config)
    reference = load_reference(config.reference, potential.id, potential.weights_sha256)
    rows: list[tuple[str, Row]] = []
    for entry in entries:
        try:
            structure = entry.read(primitive=config.read.primitive)
        except Refused as refusal:
            rows.append((entry.name, Row("", Outcome.REFUSED, f"{refusal.reason}: {refusal.detail}")))
            continue
        key = evaluation_id(structure, potential, config.evaluation)
        row = evaluate([Candidate(key, structure)], config.evaluation, potential)[0].row
        rows.append((entry.name, score(row, reference)))
    print_rows(rows, as_json, potential.id, config.evaluation)
    bad = any(row.outcome in FAILED or row.outcome is Outcome.REFUSED for _, row in rows)
    return exit_codes.FAILED if bad else exit_codes.DONE


def _load(config: ScreenConfig) -> Potential:
    from promof_hpc.physics.potential import load_potential

    chosen = config.evaluation.potential
    return load_potential(chosen.name, weights=chosen.weights, task=chosen.task, device=chosen.device)


def _default_name(library: str) -> str:
    stem = re.sub(r"[^\w.-]+", "-", Path(library).name or library).strip("-.")
    return stem[:60] or "screen"


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    """Commit of the checkout that this code runs from; empty outside one."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=False).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""
