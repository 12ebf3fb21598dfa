"""The pieces that the report's plots are drawn from: escaped tags, round numbers, marks.

Plots are inline SVG without colours of their own: classes and variables of the style sheet colour them, so that they
are readable on a light and on a dark page.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from markupsafe import Markup, escape

PALETTE = 10
"""How many colours for categories the style sheet has (``c0`` to ``c9``)."""
MINUS = "−"
MARKS = ("disc", "square", "triangle", "diamond", "cross", "plus")
"""Shapes of marks, beside colours, for readers who do not tell the colours apart."""


def tag(name: str, *children: object, **attributes: object) -> Markup:
    """One element. Text and attribute values are escaped, `Markup` children are taken as they are.

    ``class_`` stands for class, an underscore for a hyphen, and an attribute that is None is left out.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_short(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    inside = "".join(str(escape(child)) for child in children)
    return Markup(f"<{name}{written}>{inside}</{name}>" if inside else f"<{name}{written}/>")


def join(parts: Iterable[Markup]) -> Markup:
    """The parts, one after the other."""
    return Markup("").join(parts)


def _short(value: object) -> object:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value


@dataclass(frozen=True)
class Scale:
    """From numbers of the data to places on the page, linearly."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        span = self.high - self.low
        return self.start + (value - self.low) / span * (self.end - self.start) if span else (self.start + self.end) / 2

    def clipped(self, value: float) -> float:
        """The place, moved to the nearer end if it is outside."""
        return self(min(max(value, self.low), self.high))


def round_steps(low: float, high: float, about: int = 4, whole: bool = False) -> list[float]:
    """About that many round numbers from at or below low to at or above high: the marks of an axis.

    Args:
        low: the lowest value to show.
        high: the highest.
        about: how many intervals are wanted.
        whole: only whole numbers.
    """
    if not high > low:
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    step = max(1.0, round(step)) if whole else step
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def percent(value: float) -> str:
    """A share as a percentage, with as many digits as it needs."""
    shown = 100 * value
    if abs(shown) < 1 and shown:
        return f"{shown:.2g}%".replace("-", MINUS)
    return f"{shown:.1f}%".replace(".0%", "%").replace("-", MINUS)


def plain(value: float) -> str:
    """A number, short."""
    return f"{value:,.4g}".replace("-", MINUS)


def counted(number: int, thing: str) -> str:
    """A number of things: 1 epoch, 2 epochs."""
    return f"{number:,} {thing}" + ("" if number == 1 else "s")


def mark(shape: str, x: float, y: float, size: float) -> str:
    """A mark as the commands of a path, to be stroked: several marks of a kind make one small path.

    A disc is a line of no length with round ends; the others are outlines. Each begins with its only absolute place.
    """
    half = size / 2
    start = f"M{x:.1f} {y:.1f}"
    if shape == "disc":
        return f"{start}h0"
    if shape == "square":
        return f"M{x - half:.1f} {y - half:.1f}h{size:g}v{size:g}h-{size:g}z"
    if shape == "triangle":
        return f"M{x:.1f} {y - half:.1f}l{half:g} {size:g}h-{size:g}z"
    if shape == "diamond":
        return f"M{x:.1f} {y - half:.1f}l{half:g} {half:g}l-{half:g} {half:g}l-{half:g} -{half:g}z"
    if shape == "cross":
        return f"M{x - half:.1f} {y - half:.1f}l{size:g} {size:g}m0 -{size:g}l-{size:g} {size:g}"
    return f"M{x - half:.1f} {y:.1f}h{size:g}m-{half:g} -{half:g}v{size:g}"


def drawing(width: float, height: float, label: str, *parts: Markup) -> Markup:
    """A whole plot, with its description for those who do not see it."""
    return tag("svg", *parts, viewBox=f"0 0 {width:g} {height:g}", role="img", aria_label=label, class_="plot")
