"""Figures as inline SVG: histograms and the energy-pore scatter. Colours come from the page's style sheet by class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np

from promof_hpc.report.svg import Scale, add, add_box, bottom_axis, left_axis, markup, nice_step, svg_root

REACH = 4.0  # values so many interquartile ranges outside the quartiles would squeeze all others; they are counted
MOST_POINTS = 3000  # a scatter of more becomes a density with the named points on top
FEW_POINTS = 500  # up to here points are large enough to be hit with ease
DENSITY_BINS = (64, 40)


@dataclass(frozen=True)
class Points:
    """Points of a scatter.

    Attributes:
        x, y: values, float64 [N], all finite.
        good: whether each has a place in the ranking, bool [N].
        record: number of each in the page's records, int64 [N]; -1 where it has none and can't be selected.
        label: what hovering shows, a text each.
    """

    x: np.ndarray
    y: np.ndarray
    good: np.ndarray
    record: np.ndarray
    label: Sequence[str]


def histogram(values: np.ndarray, good: np.ndarray, axis: str) -> str:
    """Bars of all values, and in front of them of the `good` ones; ends in the tails are cut off and counted.

    Args:
        values: finite numbers, float64 [N], at least one.
        good: bool [N].
        axis: name and unit, under the axis.
    """
    low, high = _trimmed_range(values)
    step = nice_step((high - low) / 24)
    first = math.floor(low / step + 1e-9)
    edges = step * np.arange(first, max(math.ceil(high / step - 1e-9), first + 1) + 1)
    inside = (values >= edges[0]) & (values <= edges[-1])
    all_counts, good_counts = np.histogram(values, edges)[0], np.histogram(values[good], edges)[0]
    across = Scale(edges[0], edges[-1], 34, 312)
    up = Scale(0, max(1, all_counts.max()), 132, 14)
    svg = svg_root(320, 168, f"Histogram of {axis}: {len(values)} values, median {np.median(values):.3g}")
    left_axis(svg, up, 34, 312, [t for t in up.ticks(3) if t == int(t)])
    for counts, kind in ((all_counts, "bar-all"), (good_counts, "bar-good")):
        for k, count in enumerate(counts.tolist()):
            if count:
                left, right = across(edges[k]) + 0.5, across(edges[k + 1]) - 0.5
                bar = add_box(svg, kind, left, up(count), max(right, left + 0.8), up(0))
                add(bar, "title", text=f"{edges[k]:.4g} to {edges[k + 1]:.4g}: {count}")
    bottom_axis(svg, across, 132, across.ticks(5))
    add(svg, "text", "axis-name", "middle", x=173, y=163, text=axis)
    left_out = int(len(values) - inside.sum())
    if left_out:
        add(svg, "text", "note", "end", x=312, y=10, text=f"{left_out} beyond the axis")
    return markup(svg)


def scatter(points: Points, x_axis: str, y_axis: str) -> str:
    """Energy over pore size; every point with a record can be hovered and selected.

    Above `MOST_POINTS` all points together are drawn as a density, and only those with a record as points.
    """
    x_range, y_range = _trimmed_range(points.x), _trimmed_range(points.y)
    across, up = Scale(*_padded(*x_range), 62, 744), Scale(*_padded(*y_range), 376, 16)
    svg = svg_root(760, 428, f"{y_axis} over {x_axis} for {len(points.x)} structures")
    svg.set("class", "scatter" if len(points.x) <= FEW_POINTS else "scatter crowded")
    left_axis(svg, up, 62, 744, up.ticks(6))
    bottom_axis(svg, across, 376, across.ticks(8))
    add(svg, "text", "axis-name", "middle", x=403, y=420, text=x_axis)
    add(svg, "text", "axis-name", "middle", transform="translate(14 196) rotate(-90)", text=y_axis)
    inside = (points.x >= across.low) & (points.x <= across.high) & (points.y >= up.low) & (points.y <= up.high)
    if len(points.x) > MOST_POINTS:
        _density(svg, points.x[inside], points.y[inside], across, up)
    shown = np.nonzero(inside & (points.record >= 0))[0]
    radius = 4.5 if len(shown) <= FEW_POINTS else 2.0
    for k in sorted(shown.tolist(), key=lambda k: bool(points.good[k])):  # the good ones on top
        kind = "point good" if points.good[k] else "point"
        place: dict[str, Any] = {"cx": across(points.x[k]), "cy": up(points.y[k])}
        dot = add(svg, "circle", kind, **place, r=radius, data_record=int(points.record[k]))
        add(dot, "title", text=points.label[k])
    left_out = int(len(points.x) - inside.sum())
    if left_out:
        add(svg, "text", "note", "end", x=744, y=11, text=f"{left_out} beyond the axes")
    return markup(svg)


def _density(svg: ET.Element, x: np.ndarray, y: np.ndarray, across: Scale, up: Scale) -> None:
    """Cells shaded by the logarithm of how many points fall into them."""
    counts, x_edges, y_edges = np.histogram2d(x, y, DENSITY_BINS, [(across.low, across.high), (up.low, up.high)])
    most = math.log1p(counts.max())
    for i, j in np.argwhere(counts > 0).tolist():
        shade = round(0.08 + 0.6 * math.log1p(counts[i, j]) / most, 3)
        corners = (across(x_edges[i]), up(y_edges[j + 1]), across(x_edges[i + 1]), up(y_edges[j]))
        add_box(svg, "density", *corners, opacity=shade)


def _trimmed_range(values: np.ndarray) -> tuple[float, float]:
    """Lowest and highest value, less what lies `REACH` interquartile ranges outside the quartiles; never empty."""
    low, high = float(values.min()), float(values.max())
    lower, upper = np.quantile(values, [0.25, 0.75]).tolist()
    if len(values) >= 20 and upper > lower:
        low, high = max(low, lower - REACH * (upper - lower)), min(high, upper + REACH * (upper - lower))
    if high - low < 1e-9 * max(1.0, abs(low)):
        margin = 0.5 * abs(low) or 0.5
        return low - margin, high + margin
    return low, high


def _padded(low: float, high: float) -> tuple[float, float]:
    margin = 0.04 * (high - low)
    return low - margin, high + margin
