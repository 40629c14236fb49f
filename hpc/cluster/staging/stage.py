"""`promof stage`: put weights, policies, data and, if wanted, the environment where compute nodes find them.

This copies them on a login node to a shared folder; `staging.node` makes one copy a node on the nodes' own disks.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hpc.cluster.staging.record import (
    DIGITS,
    ENVIRONMENT,
    RECORD,
    File,
    Item,
    Staged,
    digest_of,
    put,
    read_staged,
    refused,
    remove_left,
    write_staged,
)
from hpc.exit_codes import DONE
from promof_hpc.config import DesignConfig, RunConfig, ScreenConfig, load_config
from promof_hpc.errors import PromofError, UsageError
from promof_hpc.store.shard import flush, replace

LOCK = ".stage.lock"
SHIPPED = ("shipped", "none")
POLICY_FILES = (".safetensors", ".json", ".md")
Tell = Callable[[str], None]


def stage(config: RunConfig, target: Path, environment: bool = False, tell: Tell = lambda text: None) -> Staged:
    """Copy what a configuration names to a folder that compute nodes see; what is there already is only compared.

    Every item lies in a folder named after its content, so that staging another one takes nothing from a run at work.
    Each file appears whole (temporary name, flushed, renamed) and is read back; the record, last of all, names what
    this configuration needs.

    Args:
        environment: pack the running Python environment too.
        tell: is told what is done, a line each.

    Raises:
        UsageError: something that the configuration names is not there, or the folder cannot be this one.
        PromofError: the folder cannot be written, another process stages into it, or a copy differs.
    """
    target = target.absolute()
    sources, notes = _sources(config)
    for one in sources:
        _check_apart(one, target)
    with _alone(target):
        items = [_copy(one, target, tell) for one in sources]
        if environment:
            items.append(_pack(target, tell))
        staged = Staged(target, tuple(items), tuple(notes))
        with _writing(target / RECORD):
            write_staged(staged)
    return staged


# what is needed


@dataclass(frozen=True)
class Source:
    """A file, or some files of a folder, that a configuration names."""

    key: str
    kind: str
    path: Path
    names: tuple[str, ...]

    @property
    def folder(self) -> Path:
        """The folder that the names are in."""
        return self.path if self.path.is_dir() else self.path.parent


def _sources(config: RunConfig) -> tuple[list[Source], list[str]]:
    """What has to be copied, and notes on what has not."""
    found, notes = [], []
    potential = config.evaluation.potential
    second = config.second_opinion if isinstance(config, DesignConfig) else None
    if potential.weights is not None:
        found.append(_one("evaluation.potential.weights", "potential", potential.weights))
    elif "uma" in (potential.name, second):
        from promof_hpc.physics.uma import GET_WEIGHTS

        raise UsageError(f"evaluation.potential.weights is not set, and UMA needs it: {GET_WEIGHTS}.")
    elif ":" in potential.name:
        notes.append(f"{potential.name} is code of your own: it must be installed, or in PYTHONPATH, where jobs run")
    else:
        notes.append(f"{potential.name} comes with its package and needs nothing")
    if isinstance(config, DesignConfig):
        places = (("policy.weights", "policies", config.policy.weights), ("policy.data", "data", config.policy.data))
        for key, kind, name in places:
            if name in SHIPPED:
                notes.append(f"{key} is {name} and needs nothing")
            else:
                found.append(_many(key, kind, Path(name)))
    if config.reference in SHIPPED:
        notes.append(f"reference is {config.reference} and needs nothing")
    else:
        found.append(_one("reference", "reference", Path(config.reference)))
    if isinstance(config, ScreenConfig) and Path(config.library).exists():
        notes.append(f"library {config.library} is read where it lies: the nodes must see it")
    return found, notes


def _one(key: str, kind: str, path: Path) -> Source:
    with _reading(path):
        there = path.is_file()
    if not there:
        raise UsageError(f"{key} is {path}, where no file is; correct it in the configuration or with --set.")
    return Source(key, kind, path.absolute(), (path.name,))


def _many(key: str, kind: str, folder: Path) -> Source:
    with _reading(folder):
        if not folder.is_dir():
            raise UsageError(f"{key} is {folder}, which is no folder; correct it in the configuration or with --set.")
        deep = kind == "data"  # a folder of weights also holds its training: checkpoints, curves
        paths = sorted(_visible(folder) if deep else (p for p in folder.iterdir() if p.suffix in POLICY_FILES))
        names = tuple(str(path.relative_to(folder)) for path in paths if path.is_file())
    if not names:
        raise UsageError(
            f"{key} is {folder}, which has no files for it; correct it in the configuration or with --set."
        )
    return Source(key, kind, folder.absolute(), names)


def _visible(folder: Path) -> Iterator[Path]:
    """Files below a folder, and below what links in it lead to."""
    seen = set()
    for here, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(here)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and real not in seen)
        seen.add(real)
        yield from (Path(here, name) for name in names if not name.startswith(".") and not name.endswith(".tmp"))


def _check_apart(source: Source, target: Path) -> None:
    if len(source.names) > 1 and target.resolve().is_relative_to(source.path.resolve()):
        raise UsageError(
            f"--to {target} lies in {source.path}, which is to be copied ({source.key}); choose a folder outside."
        )


# copying


def _copy(source: Source, target: Path, tell: Tell) -> Item:
    with _reading(source.path):
        content = {name: File.of(source.folder / name) for name in source.names}
    own = f"{source.kind}-{digest_of(content)[:DIGITS]}"
    with _writing(target / own):
        for folder in {(target / own / name).parent for name in content}:
            remove_left(folder)
        copied = [name for name, file in content.items() if put(source.folder / name, target / own / name, file)]
    size = sum(file.bytes for file in content.values())
    tell(f"{source.key}: {len(copied)} of {len(content)} files copied to {target / own} ({size / 1e6:.1f} MB in all)")
    path = own if source.path.is_dir() else f"{own}/{source.path.name}"
    return Item(source.key, str(source.path), path, {f"{own}/{name}": file for name, file in content.items()})


def _pack(target: Path, tell: Tell) -> Item:
    """The running environment as an archive, unless it is there already as the last record has it."""
    from hpc.cluster.staging.environment import Interpreter, pack

    interpreter = Interpreter.here()
    name = f"{ENVIRONMENT}-{interpreter.fingerprint()[:DIGITS]}.tar.gz"
    known = next((item for item in _recorded(target) if item.path == name), None)
    with _writing(target / name):
        if known is not None and (target / name).is_file() and File.of(target / name) == known.files[name]:
            tell(f"{ENVIRONMENT}: {target / name} is there already")
            return known
        began, unpacked = time.monotonic(), 0

        def write(temporary: Path) -> None:
            nonlocal unpacked
            unpacked = pack(interpreter, temporary)

        replace(target / name, write)
        flush(target)
        file = File.of(target / name)
    took = time.monotonic() - began
    tell(f"{ENVIRONMENT}: {interpreter.prefix} packed into {target / name} ({file.bytes / 1e6:.0f} MB, {took:.0f} s)")
    return Item(ENVIRONMENT, str(interpreter.prefix), name, {name: file}, unpacked)


def _recorded(target: Path) -> Sequence[Item]:
    with contextlib.suppress(PromofError):
        return read_staged(target).items
    return ()


@contextlib.contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Be the only process that stages into a folder."""
    with contextlib.ExitStack() as stack:
        with _writing(target):
            target.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context((target / LOCK).open("ab"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PromofError(
                f"Another `promof stage` is at work in {target}; wait for it, or choose another --to."
            ) from error
        except OSError:
            pass  # a disk without locks: two at a time would only do the work twice
        remove_left(target)
        yield


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Say what staging could not write, whatever of the store was used for it."""
    try:
        yield
    except (OSError, PromofError) as error:
        why = refused(error)
        if not why:
            raise
        raise PromofError(
            f"Cannot write {path}: {why}; free some space there, or choose another folder with --to."
        ) from error


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise PromofError(
            f"Cannot read {error.filename or path}: {error.strerror}; make it readable, or correct the configuration."
        ) from error


# the commands


def config_to_stage(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration of a campaign or a screening, whichever the file is.

    Raises:
        UsageError: every mistake in it.
    """
    of_screening = set(ScreenConfig.model_fields) - set(DesignConfig.model_fields)
    keys: Any = None
    with contextlib.suppress(OSError, UnicodeDecodeError, yaml.YAMLError):  # load_config says it better
        keys = yaml.load(path.read_text(encoding="utf-8-sig"), Loader=yaml.BaseLoader)
    kind: type[RunConfig] = ScreenConfig if of_screening & set(keys or ()) else DesignConfig
    return load_config(kind, path, overrides)


def stage_config(path: Path, target: Path, environment: bool, overrides: Sequence[str] = ()) -> int:
    """Stage for a configuration and print how to use it; returns the exit code.

    Raises:
        UsageError, PromofError: see `config_to_stage` and `stage`.
    """
    staged = stage(config_to_stage(path, overrides), target, environment, print)
    for note in staged.notes:
        print(f"{note}.")
    options = staged.set_options()
    if options:
        print("Use the copies with:\n  " + " \\\n  ".join(options))
    return DONE
