"""Checks that import much, may hang or may kill their process: each is a child, `python -m hpc.cluster.doctor.probes`.

`NAME ARGUMENT...` makes one; it prints its lines as JSON. What it needs, the child's environment says.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from hpc.cluster.doctor.disk import clock, links, locks, quota, space
from hpc.cluster.doctor.mpi import mpi, threads
from hpc.cluster.site_check import Check
from hpc.cluster.staging.record import DIGITS, File
from hpc.kinds import config_of
from promof_hpc.config import DesignConfig, PotentialSettings, RunConfig
from promof_hpc.errors import PromofError
from promof_hpc.store.run_dir import RunDir
from promof_hpc.store.shard import list_names

PACKAGE_OF = {"sevennet-0": "sevenn", "chgnet-0.3.0": "chgnet", "uma": "fairchem-core"}
EXTRA_OF = {"deepspeed": "promof-hpc[train]", "fairchem-core": "promof-hpc[uma]"}
ASK_S = 60.0
STAGE_AGAIN = "stage the right file again (`promof stage`), or begin another run"


def run_at(place: str) -> RunDir | None:
    """The run in a folder; None if there is none yet."""
    path = Path(place)
    return RunDir.open(path) if "config.yaml" in list_names(path) else None


def chosen(run: RunDir | None) -> list[PotentialSettings]:
    """The potential of a run, or the one by default, and the one that is asked for a second opinion."""
    config = config_of(run) if run is not None else RunConfig()
    if not isinstance(config, DesignConfig) or config.second_opinion is None:
        return [config.evaluation.potential]
    return [config.evaluation.potential, config.second_evaluation.potential]


# programs


def packages(place: str) -> Iterator[Check]:
    """That what must fit together is there and fits, by what the packages themselves ask for."""
    run = run_at(place)
    config = config_of(run) if run is not None else RunConfig()
    of_potentials = [PACKAGE_OF[one.name] for one in chosen(run) if one.name in PACKAGE_OF]
    wanted = ["promof-hpc", "torch", "mpi4py", "submitit", *of_potentials]
    optional = [] if isinstance(config, DesignConfig) and config.training.tasks > 1 else ["deepspeed"]
    found = {name: _version(name) for name in (*wanted, "deepspeed")}
    absent = [name for name, version in found.items() if not version and name not in optional]
    told = ", ".join(f"{name} {version or 'not installed'}" for name, version in found.items())
    remedy = f"pip install {' '.join(repr(EXTRA_OF.get(name, name)) for name in absent)} into the jobs' Python"
    yield Check("packages", not absent, told, remedy)
    conflicts = _conflicts(set(found))
    yield Check(
        "they fit together", *conflicts, "install the versions that it asks for (constraints.txt is such a set)"
    )


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _conflicts(names: set[str]) -> tuple[bool | None, str]:
    """What `pip check` says of these packages."""
    command = [sys.executable, "-m", "pip", "check", "--disable-pip-version-check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=ASK_S, check=False)
    if "No module named pip" in done.stderr:
        return None, "pip is not there to ask"
    lines = [line for line in done.stdout.splitlines() if line.split(" ", 1)[0].lower().replace("_", "-") in names]
    return not lines, "; ".join(lines) or "pip check has no objections"


def gpus(place: str, per_node: str, on_compute_node: str) -> Iterator[Check]:
    """That torch sees GPUs, or why not.

    Args:
        per_node: that the site profile asks for.
        on_compute_node: `yes` where GPUs must be visible here and now.
    """
    import torch

    run = run_at(place)
    config = config_of(run) if run is not None else RunConfig()
    devices = [config.evaluation.potential.device]
    devices += [config.training.device] if isinstance(config, DesignConfig) else []
    wanted = int(per_node) > 0 or any(device.startswith("cuda") for device in devices)
    names = [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]
    if names:
        yield Check("GPUs", True, f"{len(names)} x {', '.join(sorted(set(names)))}; CUDA {torch.version.cuda}")
        return
    why = why_no_gpu(torch)
    if not wanted:
        yield Check("GPUs", True, f"none here ({why}), and none is asked for")
    elif torch.version.cuda is None and getattr(torch.version, "hip", None) is None:
        yield Check("GPUs", False, why, "install the build of torch for the site's CUDA")
    else:
        passed = False if on_compute_node == "yes" else None
        remedy = "ask for GPUs, and let the container have them (--nv)" if passed is False else "ask inside a job"
        yield Check("GPUs", passed, f"none here: {why}", remedy)


def why_no_gpu(torch: Any) -> str:
    """Why torch sees no GPU, in its own words where it has any."""
    if torch.version.cuda is None and getattr(torch.version, "hip", None) is None:
        return f"torch {torch.__version__} was built without CUDA"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1", "NoDevFiles"):
        return f"CUDA_VISIBLE_DEVICES is '{visible}'"
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return str(error).strip().splitlines()[0]
    return "the driver shows none"


def deepspeed() -> Iterator[Check]:
    """That DeepSpeed can be imported."""
    if not _version("deepspeed"):
        yield Check("DeepSpeed", None, "not installed", "training on several processes needs 'promof-hpc[train]'")
        return
    import deepspeed

    yield Check("DeepSpeed", True, f"{deepspeed.__version__} can be imported")


# weights


def weights(place: str) -> Iterator[Check]:
    """That the weights are there, are the right ones, and can be loaded without a network."""
    asked = _without_network()
    run = run_at(place)
    for number, settings in enumerate(chosen(run)):
        began = time.monotonic()
        try:
            found = _load(run if number == 0 else None, settings)
        except PromofError as error:
            yield Check(f"weights of {settings.name}", False, str(error).rstrip("."), STAGE_AGAIN)
            continue
        detail = f"{found}, loaded offline in {time.monotonic() - began:.1f} s"
        if asked:
            detail = f"{detail}, but it asked the network for {', '.join(sorted(asked))}"
        remedy = "compute nodes often have no network: name a local file"
        yield Check(f"weights of {settings.name}", not asked, detail, remedy)


def _load(run: RunDir | None, settings: PotentialSettings) -> str:
    """Load a potential and say what its weights are.

    Raises:
        PromofError: they cannot be loaded, or are others than those that the run began with.
    """
    from hpc.worker import load_run_potential
    from promof_hpc.physics.registry import chosen_potential

    if run is None:
        return f"SHA-256 {chosen_potential(settings).weights_sha256[:DIGITS]}…, no run to compare with"
    if settings.name == "uma" and settings.weights is not None and settings.weights.is_file():
        # a checkpoint is a pickle: what is not the file of the run is not even opened
        sha256, begun = File.of(settings.weights).sha256, run.provenance_record()["potential"]["weights_sha256"]
        if sha256 != begun:
            raise PromofError(
                f"{settings.weights} has SHA-256 {sha256[:DIGITS]}…, the run began with {begun[:DIGITS]}…"
            )
    potential = load_run_potential(run, config_of(run).evaluation)
    return f"SHA-256 {potential.weights_sha256[:DIGITS]}…, those that the run began with"


def _without_network() -> set[str]:
    """Refuse connections of this process from now on; whom it wanted to reach is noted in the set."""
    asked: set[str] = set()

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "socket.getaddrinfo" and arguments[0] not in (None, "", "localhost", "127.0.0.1", "::1"):
            asked.add(str(arguments[0]))
        elif event == "socket.connect" and isinstance(arguments[1], tuple):
            asked.add(str(arguments[1][0]))
        else:
            return
        raise OSError("promof doctor has switched the network off")

    sys.addaudithook(refuse)
    return asked


def policies(place: str) -> Iterator[Check]:
    """That the pretrained policies are whole, and those that the campaign began with."""
    from promof_hpc.design.inputs import POLICIES, inputs_of
    from promof_hpc.policy.weights import load_chemist, load_engineer

    run = run_at(place)
    config = config_of(run) if run is not None else DesignConfig()
    if not isinstance(config, DesignConfig):
        return
    now = inputs_of(config)
    begun: Mapping[str, Mapping[str, str]] = run.provenance_record() if run is not None else now
    changed = [
        name for kind in now for name in {**begun[kind], **now[kind]} if begun[kind].get(name) != now[kind].get(name)
    ]
    if changed:
        remedy = "put the old ones back (see policy.weights and policy.data), or begin another run"
        yield Check("policies", False, f"others than the campaign began with: {', '.join(changed)}", remedy)
        return
    loaders = {"chemist.safetensors": load_chemist, "engineer.safetensors": load_engineer}
    there = [name for name in POLICIES if name in now["policies"]]
    for name in there:
        loaders[name](config.policy.weights)
    told = ", ".join(f"{name} {sha256[:DIGITS]}…" for kind in now for name, sha256 in now[kind].items())
    yield Check("policies", True, told or f"strategy {config.strategy} has none")


def _of_disk(check: Callable[[Path], Check]) -> Callable[[str], Iterator[Check]]:
    def probe(place: str) -> Iterator[Check]:
        yield check(Path(place))

    return probe


PROBES: dict[str, Callable[..., Iterator[Check]]] = {
    "packages": packages, "gpus": gpus, "deepspeed": deepspeed, "mpi": mpi, "threads": threads, "weights": weights,
    "policies": policies,
    **{check.__name__: _of_disk(check) for check in (links, locks, space, quota, clock)},
}  # fmt: skip


def main(name: str, *arguments: str) -> None:
    """Print the lines of a probe."""
    try:
        for check in PROBES[name](*arguments):
            print(json.dumps(asdict(check)), flush=True)
    except PromofError as error:
        print(json.dumps(asdict(Check(name, False, str(error).rstrip(".")))), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
