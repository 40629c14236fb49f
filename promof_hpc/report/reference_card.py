"""The card of a reference set: what it was made from and with, and how its values are spread."""

from __future__ import annotations

from collections import Counter

from promof_hpc.config import RelaxSettings
from promof_hpc.physics.energies import LEAST_STRUCTURES, ReferenceSet


def reference_card(reference: ReferenceSet, relax: RelaxSettings, outcomes: dict[str, int], library: str) -> str:
    """Markdown text of the card.

    Args:
        outcomes: how the relaxations of the drawn MOFs ended; only converged ones with all their bonds are members.
    """
    elements = Counter(e for m in reference.mofs for e in m.counts)
    baseline, drift, e_rel = reference.baseline, reference.volume_drift_percentiles, reference.e_rel_percentiles
    sizes = sorted(sum(m.counts.values()) for m in reference.mofs)
    lines = [
        f"# Reference set of {reference.potential}",
        "",
        f"- potential {reference.potential}, weights {reference.weights_sha256}",
        f"- {len(reference.mofs)} MOFs of {library} with {sizes[0]} to {sizes[-1]} atoms, "
        f"median {sizes[len(sizes) // 2]}; H-complete, drawn with a seed so that rare elements are there",
        f"- of {sum(outcomes.values())} relaxed: " + ", ".join(f"{n} {o}" for o, n in sorted(outcomes.items())),
        f"- relaxation: {relax.optimizer}, cell {relax.cell}, forces <= {relax.fmax_ev_per_ang:g} eV/Å, "
        f"stress <= {relax.stress_gpa:g} GPa, at most {relax.max_steps} steps (settings {reference.relax_sha256[:12]})",
        f"- baseline: ridge {baseline.ridge:g}, "
        f"leave-one-out error {1000 * baseline.loo_rmse_ev_per_atom:.0f} meV/atom "
        f"over {baseline.structures} MOFs and {len(baseline.coefficients)} elements",
        "- E_rel, eV/atom: "
        + ", ".join(f"{q} {v:+.3f}" for q, v in e_rel.items())
        + f"; E_min {reference.e_min_ev_per_atom:+.3f}",
        "- change of volume in the relaxation: " + ", ".join(f"{q} {v:+.1%}" for q, v in drift.items()),
        f"- references of {len(reference.elemental_ev_per_atom)} elements for E_form",
        "",
        f"No baseline (in fewer than {LEAST_STRUCTURES} MOFs): "
        + (", ".join(f"{e} ({n})" for e, n in baseline.too_rare.items()) or "none")
        + ". Structures with these elements have no E_rel.",
        "",
        "| element | MOFs | baseline, eV/atom | element itself, eV/atom |",
        "|---|---|---|---|",
    ]
    for element, count in sorted(elements.items(), key=lambda item: (-item[1], item[0])):
        own = reference.elemental_ev_per_atom.get(element)
        fitted = baseline.coefficients.get(element)
        lines.append(f"| {element} | {count} | {_number(fitted)} | {_number(own)} |")
    return "\n".join(lines) + "\n"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
