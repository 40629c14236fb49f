"""Beginning a run and doing what is missing of it, whatever its kind."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpc.kinds import config_of, kind_of
from hpc.worker import load_run_potential
from promof_hpc.config import DesignConfig, RunConfig, ScreenConfig, dump_config, load_config
from promof_hpc.errors import UsageError
from promof_hpc.physics.registry import chosen_potential
from promof_hpc.store.run_dir import RunDir, is_ingested
from promof_hpc.store.shard import list_names, publish_text, replace_text

if TYPE_CHECKING:
    from promof_hpc.physics.potential import Potential

PACKAGES = ("promof-hpc", "torch", "sevenn", "chgnet", "ase", "gemmi", "spglib", "rdkit", "numpy", "h5py", "mpi4py")
NAMED = ("demo", "shipped", "none")  # names that win over files called like them


def begin_run(path: Path, config: ScreenConfig, kind: str = "screen") -> RunDir:
    """Make the run directory with its configuration, or check that an existing one has this configuration."""
    config = config.model_copy(update={"library": anchored(config.library), "reference": anchored(config.reference)})
    run = open_same(path, config, kind)
    if run is not None:
        return run
    from promof_hpc.screen.library import scan

    scan(config.library)  # a library that cannot be used leaves nothing behind
    return create_run(path, config, potential_of(config), {"kind": kind, "library": config.library})


def open_same(path: Path, config: RunConfig, kind: str) -> RunDir | None:
    """The run that is at `path` already; None if there is none.

    It goes on with as many processes as `config` says, and with this way of theirs to learn together: whoever begins to
    work on it from now on reads that in its configuration, whose other keys stay as they were.

    Raises:
        UsageError: it is of another kind, or was begun with another configuration.
    """
    if "config.yaml" not in list_names(path.absolute()):
        return None
    run = RunDir.open(path)
    remedy = f"choose another --run, or go on with that one: promof resume {path}"
    if kind_of(run) != kind:
        raise UsageError(f"{path} holds a run of kind {kind_of(run)}, not {kind}; {remedy}")
    begun = load_config(type(config), run.config)
    if differing := list(_differing(_fixed(begun), _fixed(config))):
        raise UsageError(
            f"{path} was begun with another configuration: {', '.join(differing)} in {run.config}; {remedy}"
        )
    now = config_of(run).budget
    if config.budget not in (begun.budget, now):
        if kind == "design":
            remedy = (
                f"another one needs an act of its own, which is recorded: promof resume {path} --raise-budget N "
                f"(N > {now})"
            )
        raise UsageError(f"{path} has a budget of {now}, the configuration says {config.budget}; {remedy}")
    if (going_on := _with_processes_of(config, begun)) != begun:
        replace_text(run.config, dump_config(going_on))
    return run


def _fixed(config: RunConfig) -> dict[str, Any]:
    """What of a configuration a run keeps from its beginning; the budget has rules of its own, and how many processes
    work on it may change, how they share the work of learning, and on which devices; not with which precision."""
    kept = config.model_dump(exclude={"budget": True, "farm": {"ranks"}, "training": True})
    policies = {"training": {"precision": config.training.precision}} if isinstance(config, DesignConfig) else {}
    return kept | policies


def _differing(one: Mapping[str, Any], other: Mapping[str, Any], section: str = "") -> Iterator[str]:
    """The keys in which two dumped configurations of one class differ."""
    for key in {**one, **other}:
        here, there = one.get(key, ...), other.get(key, ...)
        if isinstance(here, dict) and isinstance(there, dict):
            yield from _differing(here, there, f"{section}{key}.")
        elif here != there:
            yield f"{section}{key}"


def _with_processes_of(config: RunConfig, begun: RunConfig) -> RunConfig:
    """What `_fixed` leaves out, but the budget, of one configuration as far as it says so itself, since a default is no
    wish, and everything else of the other.
    """
    ranks = {"ranks": config.farm.ranks} if "ranks" in config.farm.model_fields_set else {}
    changed: dict[str, Any] = {"farm": begun.farm.model_copy(update=ranks)}
    if isinstance(config, DesignConfig) and isinstance(begun, DesignConfig):
        said = {key: getattr(config.training, key) for key in config.training.model_fields_set}
        changed["training"] = begun.training.model_copy(update=said)
    return begun.model_copy(update=changed)


def create_run(path: Path, config: RunConfig, potential: Potential, record: Mapping[str, Any]) -> RunDir:
    """Make a run directory with provenance and configuration."""
    run = RunDir.create(path)
    record_provenance(run, config, potential, record)
    publish_text(run.config, dump_config(config))  # last: a directory with a configuration is a run
    return run


def potential_of(config: RunConfig) -> Potential:
    """The potential that a configuration names, on the CPU: for its identity."""
    return chosen_potential(config.evaluation.potential)


def anchored(name: str) -> str:
    """The absolute path of what lies on disk; names such as `demo` or `coremof:2019-ASR` stay as they are.

    A run must find its files again from wherever `resume` is called.
    """
    on_disk = "/" in name or (name not in NAMED and Path(name).exists())
    return str(Path(name).absolute()) if name and on_disk else name


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


def record_provenance(run: RunDir, config: RunConfig, potential: Potential, record: Mapping[str, Any]) -> None:
    """What the numbers of the run come from; written once, at its first start.

    Args:
        record: what is special to its kind, and the kind.
    """
    content: dict[str, Any] = {
        **record,
        "begun": now(),
        "command": sys.argv[1:],
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
    publish_text(run.provenance, json.dumps(content, indent=1))


def now() -> str:
    """Date and time for records."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


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
