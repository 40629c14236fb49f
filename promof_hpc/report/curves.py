"""Curves as inline SVG: values over evaluations, and distributions laid over each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from promof_hpc.report.svg import Scale, add, bottom_axis, left_axis, markup, svg_root

STROKES = ("first", "second", "third", "fourth")  # classes of the style sheet, in the order of the curves
BINS = 24
TRIM = (0.02, 0.98)  # quantiles between which distributions are drawn: a failed relaxation may lie eV away


@dataclass(frozen=True)
class Curve:
    """One curve.

    Attributes:
        name: in the legend.
        x, y: values, float64 [N]; points without a finite value are left out.
        line: whether the points are joined.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    line: bool = True

    @property
    def known(self) -> tuple[np.ndarray, np.ndarray]:
        """The points with finite values."""
        finite = np.isfinite(self.x) & np.isfinite(self.y)
        return self.x[finite], self.y[finite]


def curves(some: Sequence[Curve], x_axis: str, y_axis: str) -> str:
    """Curves in one picture with a legend; empty where no curve has a point."""
    drawn = [(c, *c.known) for c in some if len(c.known[0])]
    if not drawn:
        return ""
    x, y = (np.concatenate([d[k] for d in drawn]) for k in (1, 2))
    across, up = Scale(*_range(x, 0.0), 46, 348), Scale(*_range(y, 0.06), 152, 26)
    said = f"{y_axis} over {x_axis}: " + ", ".join(f"{c.name} ends at {ys[-1]:.3g}" for c, _, ys in drawn)
    svg = svg_root(360, 190, said)
    left_axis(svg, up, 46, 348, up.ticks(4))
    bottom_axis(svg, across, 152, across.ticks(5))
    add(svg, "text", "axis-name", "middle", x=197, y=186, text=x_axis)
    for k, (curve, xs, ys) in enumerate(drawn):
        stroke, name = STROKES[k % len(STROKES)], curve.name
        if curve.line:
            path = " ".join(f"{across(a)},{up(b)}" for a, b in zip(xs.tolist(), ys.tolist(), strict=True))
            add(svg, "polyline", f"curve {stroke}", points=path)
        for a, b in zip(xs.tolist(), ys.tolist(), strict=True):
            dot = add(svg, "circle", f"dot {stroke}", cx=across(a), cy=up(b), r=2.4)
            add(dot, "title", text=f"{name}, {x_axis} {a:g}: {b:.4g}")
        add(svg, "line", f"curve {stroke}", x1=46 + 100 * k, x2=60 + 100 * k, y1=9, y2=9)
        add(svg, "text", "tick", x=64 + 100 * k, y=12.5, text=name)
    return markup(svg)


def distributions(groups: Sequence[tuple[str, np.ndarray]], axis: str) -> str:
    """Shares of values, a stepped outline a group, so that groups of different size compare; empty without values."""
    filled = [(name, values[np.isfinite(values)]) for name, values in groups]
    filled = [(name, values) for name, values in filled if len(values)]
    if not filled:
        return ""
    everything = np.concatenate([values for _, values in filled])
    low, high = np.quantile(everything, TRIM).tolist()
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, BINS + 1)
    some = []
    for name, values in filled:
        shares = np.histogram(np.clip(values, low, high), edges)[0] / len(values)
        some.append(Curve(f"{name} ({len(values)})", np.repeat(edges, 2)[1:-1], np.repeat(shares, 2)))
    across, up = Scale(low, high, 46, 708), Scale(0.0, max(float(c.y.max()) for c in some) * 1.05, 200, 26)
    medians = ", ".join(f"{name} {np.median(values):.3g}" for name, values in filled)
    svg = svg_root(720, 240, f"Distributions of {axis}; medians: {medians}")
    left_axis(svg, up, 46, 708, up.ticks(4))
    bottom_axis(svg, across, 200, across.ticks(8))
    add(svg, "text", "axis-name", "middle", x=377, y=235, text=axis)
    for k, curve in enumerate(some):
        stroke = STROKES[k % len(STROKES)]
        path = " ".join(f"{across(a)},{up(b)}" for a, b in zip(curve.x.tolist(), curve.y.tolist(), strict=True))
        add(svg, "polyline", f"curve {stroke}", points=path)
        add(svg, "line", f"curve {stroke}", x1=46 + 180 * k, x2=60 + 180 * k, y1=9, y2=9)
        add(svg, "text", "tick", x=64 + 180 * k, y=12.5, text=curve.name)
    return markup(svg)


def _range(values: np.ndarray, margin: float) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    if high - low < 1e-9:
        return low - 0.5, high + 0.5
    return low - margin * (high - low), high + margin * (high - low)
