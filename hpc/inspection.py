"""The reading verbs: status, budget, verify, export, report, prune."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from hpc.cluster.folders.jobs import has_jobs
from hpc.cluster.job_state import JobState
from hpc.cluster.steering import describe_jobs, known_jobs, patience_s
from hpc.console import describe
from hpc.exit_codes import DONE, FAILED, INCOMPLETE
from hpc.kinds import as_screening, config_of, design_of
from promof_hpc.report.campaign_status import is_campaign
from promof_hpc.report.status import Snapshot, snapshot
from promof_hpc.store.budget import fold
from promof_hpc.store.claims import live_claims
from promof_hpc.store.run_dir import RunDir
from promof_hpc.store.shard import list_names

WATCH_S = 2.0


def show_status(path: Path, watch: bool, as_json: bool) -> None:
    """Print where a run, or a folder that jobs prepare or train in, stands; with `watch`, until a run ends.

    A run ends when it is done, or when nobody works on it and no job is left that will. Jobs of which the scheduler has
    known nothing for `patience_s` are no longer waited for.
    """
    if "config.yaml" not in list_names(path.absolute()) and has_jobs(path):
        from hpc.cluster.folders.journeys import describe_folder

        print("\n".join(describe_folder(path)))
        return
    run = RunDir.open(path)
    budget, known_s = config_of(run).budget, time.monotonic()
    while True:
        now, jobs = snapshot(run, budget), known_jobs(run)
        lines = describe_jobs(run, jobs)
        print(
            json.dumps(now.as_dict() | {"jobs": lines}) if as_json else "\n".join([describe(now), *lines]), flush=True
        )
        left = [job for job in jobs if not job.over]
        if not watch or now.state == "done" or (_rests(now) and not left):
            return
        if not _rests(now) or any(job.seen.state is not JobState.UNKNOWN for job in left):
            known_s = time.monotonic()
        elif (silent_s := time.monotonic() - known_s) > patience_s(run):
            print(f"No longer watched: for {silent_s:.0f} s nobody has worked on {path}, and the scheduler has known "
                  "nothing of its jobs.", file=sys.stderr)  # fmt: skip
            return
        time.sleep(WATCH_S)


def _rests(now: Snapshot) -> bool:
    """Nobody is at work; a screening that was asked to stop is `stopping` for ever."""
    return now.state == "idle" or (now.state == "stopping" and not now.campaign and not now.ranks)


def show_budget(path: Path, as_json: bool) -> None:
    """Print the folded ledger."""
    run = RunDir.open(path)
    config = config_of(run)
    ledger = fold(run, config.budget, config.farm.claim_expiry_s)
    if as_json:
        print(json.dumps(ledger.as_dict()))
        return
    for name, value in ledger.as_dict().items():
        print(f"{name:10s} {'unlimited' if value is None else value}")


def show_verification(path: Path, as_json: bool) -> int:
    """Print what `verify` found; 0 if sound and complete, 3 if only incomplete, 1 if damaged."""
    from promof_hpc.store.verify import verify

    run = RunDir.open(path)
    found = verify(run)
    if as_json:
        print(json.dumps(found.as_dict()))
    else:
        for finding in found.findings:
            print(f"{finding.path}: {finding.problem}")
        print(f"{found.shards} shards read, {len(found.findings)} damaged, {len(found.missing)} batches missing.")
        if found.redo:
            print(f"{len(found.redo)} evaluations to do: promof resume {path}" + (
                " (delete the damaged files first)" if found.findings else ""))  # fmt: skip
    return FAILED if found.findings else INCOMPLETE if found.redo else DONE


def summary(run: RunDir) -> dict[str, Any]:
    """What `screen --json` and `design --json` print at the end."""
    config = config_of(run)
    return {"run": str(run.path), "table": str(run.report / "table.parquet"), **snapshot(run, config.budget).as_dict()}


def write_report(run_or_path: RunDir | Path) -> Path:
    """Write table, relaxed structures and page; returns the page's path."""
    from promof_hpc.report.collect import collect
    from promof_hpc.report.html import write_page
    from promof_hpc.screen.table import write_tables

    run = run_or_path if isinstance(run_or_path, RunDir) else RunDir.open(run_or_path)
    data = collect(run, as_screening(run))
    if is_campaign(run):
        from promof_hpc.report.campaign import collect_campaign

        data = replace(data, campaign=collect_campaign(run, design_of(run)))
    write_tables(data, run.report)
    return write_page(data, run.report / "index.html")


def export_run(path: Path, out: Path, format_: str, top: int) -> None:
    """Write relaxed structures (cif, extxyz) or the table (csv, parquet) of a run to a folder."""
    from promof_hpc.report.collect import collect
    from promof_hpc.screen.table import export

    run = RunDir.open(path)
    written = export(collect(run, as_screening(run)), out, format_, top)
    print(f"Wrote {written} to {out}")


def prune_run(path: Path, yes: bool) -> None:
    """Remove, or list, what a run no longer needs."""
    run = RunDir.open(path)
    config = config_of(run)
    removable = list(_removable(run, set(live_claims(run, config.farm.claim_expiry_s))))
    size = sum(p.stat().st_size for p in removable)
    if yes:
        for file in removable:
            file.unlink(missing_ok=True)
    print(f"{len(removable)} files, {size / 1e6:.1f} MB {'removed' if yes else 'can be removed; do it with --yes'}")


def _removable(run: RunDir, live: set[str]) -> Iterator[Path]:
    """Temporary files an hour old, void claims, suspicions of committed batches, logs of ended farms."""
    hour_ago = time.time() - 3600
    for file in run.path.rglob(".*.tmp"):  # folders are what killed writers left of checkpoints; resuming removes them
        if file.is_file() and file.stat().st_mtime < hour_ago:
            yield file
    committed = {batch for n in run.round_numbers() for batch in run.committed(n)}
    for name in list_names(run.claims):
        if name not in live:
            yield run.claims / name
    for name in list_names(run.suspects):
        if name in committed:
            yield run.suspects / name
    if not live:
        yield from (run.logs / name for name in list_names(run.logs) if re.match(r"farm-", name))
