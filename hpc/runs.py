"""Beginning a run and doing what is missing of it, whatever its kind."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpc.worker import load_run_potential
from promof_hpc.config import ScreenConfig, dump_config, load_config
from promof_hpc.errors import UsageError
from promof_hpc.physics.registry import load_potential
from promof_hpc.store.run_dir import RunDir, is_ingested
from promof_hpc.store.shard import list_names, publish_text

if TYPE_CHECKING:
    from promof_hpc.physics.potential import Potential

PACKAGES = ("promof-hpc", "torch", "sevenn", "chgnet", "ase", "gemmi", "spglib", "rdkit", "numpy", "h5py", "mpi4py")
NAMED = ("demo", "shipped", "none")  # names that win over files called like them


def begin_run(path: Path, config: ScreenConfig, kind: str = "screen") -> RunDir:
    """Make the run directory with its configuration, or check that an existing one has this configuration."""
    # a run must find its files again from wherever `resume` is called
    config = config.model_copy(update={"library": _anchored(config.library), "reference": _anchored(config.reference)})
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
    chosen = config.evaluation.potential
    potential = load_potential(chosen.name, weights=chosen.weights, task=chosen.task)  # for its identity
    run = RunDir.create(path)
    record_provenance(run, config, potential, kind)
    publish_text(run.config, dump_config(config))  # last: a directory with a configuration is a run
    return run


def _anchored(name: str) -> str:
    """The absolute path of what lies on disk; names such as `demo` or `coremof:2019-ASR` stay as they are."""
    on_disk = "/" in name or (name not in NAMED and Path(name).exists())
    return str(Path(name).absolute()) if on_disk else name


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
        return run_to_the_end(run, ranks, progress.evaluating)


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
