"""The reference journey: choose real MOFs, relax them and the elements on the farm, fit the energy baseline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from hpc.exit_codes import DONE
from promof_hpc.config import ScreenConfig, load_config
from promof_hpc.errors import UsageError
from promof_hpc.store.budget import fold
from promof_hpc.store.candidates import Entry, candidate_shard, cut_batches, read_entries
from promof_hpc.store.results import read_results
from promof_hpc.store.run_dir import RunDir, is_ingested, read_round
from promof_hpc.store.schema import Candidate, Outcome
from promof_hpc.store.shard import list_names, replace_text, write_shard

STAGES = "read,validity,relax,energy"
ELEMENT = "element:"
REFERENCE = "reference.json"


def begin_reference(
    library: str,
    run_path: Path,
    count: int,
    max_atoms: int,
    ranks: int,
    config: Path | None,
    overrides: Sequence[str],
    readers: int = 0,
) -> RunDir:
    """Choose the MOFs of a reference set and begin its run in `run_path`, or let an existing one grow to `count`.

    Args:
        readers: processes that look at the library; 0: as many as ranks.
    """
    from hpc.runs import begin_run

    run = RunDir.create(run_path)
    settings = reference_config(run, library, ranks, config, overrides)
    _select(run, library, count, max_atoms, readers or ranks)
    return begin_run(run_path, settings, "reference")


def reference_config(
    run: RunDir, library: str, ranks: int, config: Path | None, overrides: Sequence[str]
) -> ScreenConfig:
    """The configuration of the run of a reference set.

    Raises:
        UsageError: it has mistakes.
    """
    return load_config(ScreenConfig, config, [
        f"library={library}", f"read.names={run.names}", f"evaluation.stages={STAGES}", "reference=none",
        f"farm.ranks={ranks}", *overrides,
    ])  # fmt: skip


def finish_reference(run: RunDir, ranks: int) -> int:
    """Relax the elements and fit the baseline, once the MOFs are done; returns the exit code."""
    config = load_config(ScreenConfig, run.config)
    code = _relax_elements(run, config, ranks or config.farm.ranks)
    if code == DONE:
        path = write_reference(run, config)
        print(f"Reference set: {path}; use it with --set reference={path}")
    return code


def _select(run: RunDir, library: str, count: int, max_atoms: int, readers: int) -> None:
    """Write down the names of the chosen MOFs; asked for more than before, the run grows."""
    from data_prep.reference_set import find_members, stratified
    from promof_hpc.screen.ingest import look_again

    before = run.names.read_text(encoding="utf-8").split("\n")[:-1] if run.names.name in list_names(run.path) else []
    if len(before) < count:
        members = stratified(find_members(library, max_atoms, readers, _tell), count, seed=0)
        if not members:
            raise UsageError(f"No entry of {library} can enter a reference set (H-complete, <= {max_atoms} atoms).")
        names = before + [m.name for m in members if m.name not in before]
        if names != before:
            replace_text(run.names, "\n".join(names) + "\n")
            look_again(run)


def _tell(done: int, total: int) -> None:
    if done % 1000 == 0 or done == total:
        print(f"looked at {done}/{total}", flush=True)


def _relax_elements(run: RunDir, config: ScreenConfig, ranks: int) -> int:
    """Relax the elements in a round of their own, on the same farm with the same settings."""
    from hpc.local import leading, run_to_the_end

    propose_elements(run, config)
    with leading(run, config.farm.claim_expiry_s):
        return run_to_the_end(run, ranks, lambda: None)


def has_elements(run: RunDir) -> bool:
    """Whether the round of the elements is there."""
    return any(e.name.startswith(ELEMENT) for n in run.round_numbers() for e in read_entries(read_round(run, n)))


def propose_elements(run: RunDir, config: ScreenConfig) -> None:
    """Propose the elements that the run's potential knows, unless they are there; the library has been read before."""
    from hpc.worker import load_run_potential
    from promof_hpc.physics.elements import elemental_structures
    from promof_hpc.physics.evaluate import evaluation_id

    if has_elements(run):
        return
    potential = load_run_potential(run, config.evaluation)
    number = run.round_numbers()[-1] + 1
    found = {s: c for s, c in elemental_structures().items() if set(c.numbers.tolist()) <= potential.elements}
    candidates = [Candidate(evaluation_id(c, potential, config.evaluation), c) for c in found.values()]
    entries = [Entry(ELEMENT + s, c.evaluation_id) for s, c in zip(found, candidates, strict=True)]
    batches = cut_batches([len(c.structure) for c in candidates], config.farm.batch_structures, config.farm.batch_atoms)
    run.make_round(number)
    write_shard(run.candidates(number), candidate_shard(candidates, batches, entries, {"library": "elements"}))


def missing_of(run: RunDir) -> str:
    """What a run lacks before its baseline can be fitted, in words; empty where nothing is missing."""
    if not is_ingested(run):
        return "its library has not been read"
    if not has_elements(run):
        return "the elements have not been proposed"
    ledger = fold(run, None)
    left = ledger.issued - ledger.committed - ledger.uncharged
    return "" if ledger.finished else f"{left} of {ledger.issued} evaluations are missing"


def is_fitted(run: RunDir) -> bool:
    """Whether the reference set is there and was written after the last choice of MOFs."""
    if REFERENCE not in list_names(run.path):
        return False
    return (run.path / REFERENCE).stat().st_mtime >= run.names.stat().st_mtime


def write_reference(run: RunDir, config: ScreenConfig) -> Path:
    """Fit the baseline to what the run holds and write `reference.json`, with `reference.md` as its card.

    Only MOFs that converged with all their bonds are references; elements only where they converged.
    """
    from promof_hpc.physics.energies import RelaxedMof, build_reference_set, composition
    from promof_hpc.report.reference_card import reference_card

    rows = {e.row.evaluation_id: e.row for e in read_results(run)}
    entries = [e for n in run.round_numbers() for e in read_entries(read_round(run, n)) if e.evaluation_id in rows]
    relaxed = {e.name: rows[e.evaluation_id] for e in entries if rows[e.evaluation_id].outcome is Outcome.CONVERGED}
    elements = {n.removeprefix(ELEMENT): r.energy_ev_per_atom for n, r in relaxed.items() if n.startswith(ELEMENT)}
    mofs = [
        RelaxedMof(n, composition(r.formula), round(r.energy_ev_per_atom, 6), round(r.volume_change, 5))
        for n, r in relaxed.items()
        if not n.startswith(ELEMENT) and r.bonds_broken == 0
    ]
    judge = run.provenance_record()["potential"]
    try:
        reference = build_reference_set(
            judge["id"], judge["weights_sha256"], config.evaluation.relax.digest(), elements, mofs
        )
    except ValueError as error:
        raise UsageError(f"{run.path}: {error}; build it with a larger --count or --max-atoms.") from error
    path = run.path / REFERENCE
    replace_text(path, reference.to_json())
    outcomes = Counter(str(rows[e.evaluation_id].outcome) for e in entries if not e.name.startswith(ELEMENT))
    replace_text(path.with_suffix(".md"), reference_card(reference, config.evaluation.relax, outcomes, config.library))
    return path
