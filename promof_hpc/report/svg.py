"""Drawing with SVG elements: scales, axes, and markup in which all text is escaped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree as ET


@dataclass(frozen=True)
class Scale:
    """A linear map from values `low`..`high` to pixels `start`..`end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Pixel of a value, to two decimals."""
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start), 2)

    def ticks(self, about: int = 5) -> list[float]:
        """Round numbers (1, 2 or 5 times a power of ten apart) inside the range."""
        step = nice_step((self.high - self.low) / about)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(k * step, 12) for k in range(first, last + 1)]


def nice_step(rough: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is not below `rough`."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))


def svg_root(width: int, height: int, said: str) -> ET.Element:
    """An empty figure in pixels; `said` is what it shows, for those who don't see it.

    A page may draw it smaller, never larger, so that the text of all figures has one size however wide the page is.
    """
    style = f"max-width:{width}px"
    return ET.Element("svg", {"viewBox": f"0 0 {width} {height}", "style": style, "role": "img", "aria-label": said})


def add(
    parent: ET.Element, tag: str, kind: str = "", anchor: str = "", *, text: str = "", **attributes: str | float
) -> ET.Element:
    """An element below `parent`; underscores in attribute names become hyphens."""
    element = ET.SubElement(parent, tag)
    for name, value in attributes.items():
        element.set(name.replace("_", "-"), f"{value:g}" if isinstance(value, float) else str(value))
    if kind:
        element.set("class", kind)
    if anchor:
        element.set("text-anchor", anchor)
    if text:
        element.text = text
    return element


def add_box(
    parent: ET.Element, kind: str, left: float, top: float, right: float, bottom: float, opacity: float = 1.0
) -> ET.Element:
    """A rectangle between two corners."""
    width, height = round(right - left, 2), round(bottom - top, 2)
    box = add(parent, "rect", kind, x=left, y=top, width=width, height=height)
    if opacity < 1.0:
        box.set("opacity", f"{opacity:g}")
    return box


def left_axis(svg: ET.Element, up: Scale, left: float, right: float, ticks: Sequence[float]) -> None:
    """Grid lines and numbers of a vertical axis, all in pixels but for `ticks`."""
    for tick in ticks:
        add(svg, "line", "rule", x1=left, x2=right, y1=up(tick), y2=up(tick))
        add(svg, "text", "tick", "end", x=left - 6, y=up(tick) + 3.5, text=_number(tick))


def bottom_axis(svg: ET.Element, across: Scale, bottom: float, ticks: Sequence[float]) -> None:
    """Line and numbers of a horizontal axis at `bottom`."""
    add(svg, "line", "axis", x1=across.start, x2=across.end, y1=bottom, y2=bottom)
    for tick in ticks:
        add(svg, "text", "tick", "middle", x=across(tick), y=bottom + 14, text=_number(tick))


def _number(value: float) -> str:
    """A short number with a true minus sign, thousands as k."""
    text = f"{value / 1000:g}k" if abs(value) >= 10_000 else f"{value:g}"
    return text.replace("-", "−")


def markup(svg: ET.Element) -> str:
    """The figure as text to be put into a page."""
    return ET.tostring(svg, encoding="unicode")
