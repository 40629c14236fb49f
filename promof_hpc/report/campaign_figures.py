"""The figures of a campaign's page, in the order in which they are looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from promof_hpc.report import sections
from promof_hpc.report.campaign import CampaignStory
from promof_hpc.report.curves import Curve, curves, distributions

EVALUATIONS = "evaluations"
SIGNALS = (
    ("KL to the pretrained policies", (("chemist_kl", "chemist"), ("engineer_kl", "engineer"))),
    ("Gradient norm", (("chemist_gradient_norm", "chemist"), ("engineer_gradient_norm", "engineer"))),
    ("Clipped share", (("chemist_clip_share", "chemist"), ("engineer_clip_share", "engineer"))),
    ("Groups without signal", (("dead_groups_share", "assemblies"), ("dead_targets_share", "sets"))),
    ("Entropy of the chemist (nat/token)", (("chemist_entropy", "entropy"),)),
    ("Losses", (("chemist_loss", "chemist"), ("engineer_loss", "engineer"))),
)


@dataclass(frozen=True)
class Figure:
    """A figure with its heading and what to see in it."""

    title: str
    svg: str
    note: str = ""


def headline(story: CampaignStory) -> list[sections.Figure]:
    """What the campaign has come to, in a few numbers."""
    counts = dict(story.gates)
    proposed, gated = story.gates[0][1], story.gates[1][1]
    evaluations = story.rounds[-1].evaluations if story.rounds else 0
    successes = list(counts.values())[-1]
    share = f"{100 * gated / proposed:.0f} % passed the gate" if proposed else ""
    figures = [
        sections.Figure(f"{proposed:,}", "proposals", share),
        sections.Figure(f"{evaluations:,}", "evaluations", f"in {len(story.rounds)} rounds"),
        sections.Figure(f"{successes:,}", "successes", f"{story.strict} by the stricter margins"),
    ]
    opinion = story.second_opinion
    if opinion is not None and opinion.asked:
        note = f"{opinion.stable} of {opinion.asked} successes are stable with {opinion.potential} too"
        figures.append(sections.Figure(f"{opinion.percent:.0f}", "second opinion", note, "%"))
    if story.rounds and np.isfinite(story.rounds[-1].best):
        figures.append(sections.Figure(f"{story.rounds[-1].best:.2f}".replace("-", "−"), "best reward", ""))
    return figures


def second_opinion(story: CampaignStory) -> str:
    """What a second potential says of the successes, and by which gates; empty where none is asked for."""
    opinion = story.second_opinion
    if opinion is None:
        return ""
    text = opinion.in_words()
    text = f"{text[0].upper()}{text[1:]}."
    if not opinion.asked:
        return text
    judged = "forces, bonds, volume and energy" if opinion.energy_judged else "forces, bonds and volume"
    text += f" Relaxed again with {opinion.potential} (weights {opinion.weights_sha256[:12]}…) and judged by {judged}"
    return f"{text}." if opinion.energy_judged else f"{text}; it has no reference set for energies."


def progress(story: CampaignStory) -> list[Figure]:
    """What the campaign reached over the evaluations that it spent."""
    x = _over(story, "evaluations")
    proposals = np.maximum(_over(story, "proposals"), 1.0)
    some = [
        Figure(
            "Reward",
            curves(
                [Curve("mean", x, _over(story, "reward_mean")), Curve("best so far", x, _over(story, "best"))],
                EVALUATIONS,
                "reward",
            ),
            "of each round: the mean of what was learned from, and the best up to then",
        ),
        Figure(
            "Gate and successes",
            curves(
                [
                    Curve("past the gate", x, _over(story, "passed") / proposals),
                    Curve("successes", x, _over(story, "successes") / np.maximum(x, 1.0)),
                ],
                EVALUATIONS,
                "share",
            ),
            "share of a round's proposals that pass the geometry gate; successes up to then for each evaluation",
        ),
        Figure(
            "Diversity",
            curves([Curve("component sets", x, _over(story, "diversity"))], EVALUATIONS, "mean distance"),
            "mean Tanimoto distance between the component sets of a round's evaluations",
        ),
    ]
    return [figure for figure in some if figure.svg]


def learning(story: CampaignStory) -> list[Figure]:
    """Signals of the learning policies; none for a strategy that reports others."""
    x = _over(story, "evaluations")
    figures = []
    for title, wanted in SIGNALS:
        drawn = [
            Curve(words, x, np.array([r.signals.get(name, np.nan) for r in story.rounds], float))
            for name, words in wanted
        ]
        figures.append(Figure(title, curves(drawn, EVALUATIONS, title)))
    return [figure for figure in figures if figure.svg]


def energies(story: CampaignStory) -> str:
    """Energies of real MOFs, of what was evaluated first, and of what was evaluated last."""
    return distributions(list(story.energies.items()), "E_rel (eV/atom)")


def front(story: CampaignStory) -> str:
    """Every relaxed structure between target and energy, and the line of those that none beats in both."""
    points = story.targets[np.isfinite(story.targets).all(1)]
    if story.property_axis.startswith("E_rel") or not len(points):
        return ""
    best = pareto(points)
    return curves(
        [Curve("not beaten", best[:, 0], best[:, 1]), Curve("evaluated", points[:, 0], points[:, 1], line=False)],
        story.property_axis,
        "E_rel (eV/atom)",
    )


def pareto(points: np.ndarray) -> np.ndarray:
    """Points [N, 2] that no other is below in both values, by the first value."""
    order = np.lexsort((points[:, 1], points[:, 0]))
    kept, lowest = [], np.inf
    for k in order:
        if points[k, 1] < lowest:
            lowest = points[k, 1]
            kept.append(k)
    return points[kept]


def _over(story: CampaignStory, name: str) -> np.ndarray:
    return np.array([getattr(r, name) for r in story.rounds], float)


def widths(counts: Sequence[tuple[str, int]]) -> list[tuple[str, int, float]]:
    """Bars of a funnel: words, count, and percent of the first."""
    most = max(counts[0][1], 1) if counts else 1
    return [(words, count, 100.0 * count / most) for words, count in counts]
