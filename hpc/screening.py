"""The screening journey: library in, candidate shards, farm, table and report out."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from hpc import exit_codes
from hpc.kinds import kind_of
from hpc.runs import begin_run, complete
from hpc.worker import device_of
from promof_hpc.config import ScreenConfig, load_config
from promof_hpc.store.run_dir import RunDir


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
    return resume_screening(begin_run(path, config), 0, as_json)


def resume_screening(run: RunDir, ranks: int, as_json: bool = False) -> int:
    """Do what is missing of a screening or a reference set, then write its table and report."""
    from hpc.console import say
    from hpc.inspection import summary, write_report

    code = complete(run, ranks, quiet=as_json)
    if code == exit_codes.DONE and kind_of(run) == "reference":
        from hpc.reference import finish_reference

        code = finish_reference(run, ranks)
    page = write_report(run)
    if as_json:
        print(json.dumps(summary(run)))
    else:
        say(run, code, page)
    return code


def evaluate_files(files: Sequence[str], config: ScreenConfig, as_json: bool) -> int:
    """Score files in this process and print a row each; refusals are rows too.

    Returns:
        0 if every structure was scored, 1 if any was refused or failed.
    """
    from hpc.console import print_rows
    from promof_hpc.errors import Refused
    from promof_hpc.physics.energies import load_reference, score
    from promof_hpc.physics.evaluate import evaluate, evaluation_id
    from promof_hpc.physics.registry import chosen_potential
    from promof_hpc.screen.library import scan
    from promof_hpc.store.schema import FAILED, Candidate, Outcome, Row

    entries = [entry for file in files for entry in scan(file).entries]
    potential = chosen_potential(config.evaluation.potential, device_of(config.evaluation, 0))
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
        rows.append((entry.name, score(row, reference, config.evaluation.relax.digest())))
    print_rows(rows, as_json, potential.id, config.evaluation)
    bad = any(row.outcome in FAILED or row.outcome is Outcome.REFUSED for _, row in rows)
    return exit_codes.FAILED if bad else exit_codes.DONE


def _default_name(library: str) -> str:
    stem = re.sub(r"[^\w.-]+", "-", Path(library).name or library).strip("-.")
    return stem[:60] or "screen"
