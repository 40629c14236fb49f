"""The reference journey: choose real MOFs, relax them and the elements on the farm, fit the energy baseline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from hpc.exit_codes import DONE
from promof_hpc.config import ScreenConfig, load_config
from promof_hpc.errors import UsageError
from promof_hpc.physics.potential import Potential
from promof_hpc.store.candidates import Entry, candidate_shard, cut_batches, read_entries
from promof_hpc.store.results import read_results
from promof_hpc.store.run_dir import RunDir, read_round
from promof_hpc.store.schema import Candidate, Outcome
from promof_hpc.store.shard import list_names, replace_text, write_shard

STAGES = "read,validity,relax,energy"
ELEMENT = "element:"


def begin_reference(
    library: str, run_path: Path, count: int, max_atoms: int, ranks: int, config: Path | None, overrides: Sequence[str]
) -> None:
    """Choose the MOFs of a reference set and begin its run in `run_path`, or let an existing one grow to `count`."""
    from hpc.runs import begin_run

    run = RunDir.create(run_path)
    names = _selection(run, library, count, max_atoms, ranks)
    settings = load_config(ScreenConfig, config, [
        f"library={library}", f"read.names={names}", f"evaluation.stages={STAGES}", "reference=none",
        f"farm.ranks={ranks}", *overrides,
    ])  # fmt: skip
    begin_run(run_path, settings, "reference")


def finish_reference(run: RunDir, ranks: int) -> int:
    """Relax the elements and fit the baseline, once the MOFs are done; returns the exit code."""
    config = load_config(ScreenConfig, run.config)
    code = _relax_elements(run, config, ranks or config.farm.ranks)
    if code == DONE:
        path = write_reference(run, config)
        print(f"Reference set: {path}; use it with --set reference={path}")
    return code


def _selection(run: RunDir, library: str, count: int, max_atoms: int, ranks: int) -> Path:
    """The file with the names of the chosen MOFs; asked for more than before, the run grows."""
    from data_prep.reference_set import find_members, stratified
    from promof_hpc.screen.ingest import look_again

    before = run.names.read_text(encoding="utf-8").split("\n")[:-1] if run.names.name in list_names(run.path) else []
    if len(before) < count:
        members = stratified(find_members(library, max_atoms, ranks, _tell), count, seed=0)
        if not members:
            raise UsageError(f"No entry of {library} can enter a reference set (H-complete, <= {max_atoms} atoms).")
        names = before + [m.name for m in members if m.name not in before]
        if names != before:
            replace_text(run.names, "\n".join(names) + "\n")
            look_again(run)
    return run.names


def _tell(done: int, total: int) -> None:
    if done % 1000 == 0 or done == total:
        print(f"looked at {done}/{total}", flush=True)


def _relax_elements(run: RunDir, config: ScreenConfig, ranks: int) -> int:
    """Relax the elements in a round of their own, on the same farm with the same settings."""
    from hpc.local import leading, run_to_the_end
    from hpc.worker import load_run_potential

    if not any(e.name.startswith(ELEMENT) for n in run.round_numbers() for e in read_entries(read_round(run, n))):
        potential = load_run_potential(run, config.evaluation)
        _propose_elements(run, config, potential)
    with leading(run, config.farm.claim_expiry_s):
        return run_to_the_end(run, ranks, lambda: None)


def _propose_elements(run: RunDir, config: ScreenConfig, potential: Potential) -> None:
    from promof_hpc.physics.elements import elemental_structures
    from promof_hpc.physics.evaluate import evaluation_id

    number = run.round_numbers()[-1] + 1
    found = {s: c for s, c in elemental_structures().items() if set(c.numbers.tolist()) <= potential.elements}
    candidates = [Candidate(evaluation_id(c, potential, config.evaluation), c) for c in found.values()]
    entries = [Entry(ELEMENT + s, c.evaluation_id) for s, c in zip(found, candidates, strict=True)]
    batches = cut_batches([len(c.structure) for c in candidates], config.farm.batch_structures, config.farm.batch_atoms)
    run.make_round(number)
    write_shard(run.candidates(number), candidate_shard(candidates, batches, entries, {"library": "elements"}))


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
    path = run.path / "reference.json"
    replace_text(path, reference.to_json())
    outcomes = Counter(str(rows[e.evaluation_id].outcome) for e in entries if not e.name.startswith(ELEMENT))
    replace_text(path.with_suffix(".md"), reference_card(reference, config.evaluation.relax, outcomes, config.library))
    return path
