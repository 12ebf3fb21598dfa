"""Variants side by side: the figure of every seed, and how much of the oracle's gain each variant reaches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from falseneg.compare.differences import GapClosed
from falseneg.report.curves import Style
from falseneg.report.svg import Scale, drawing, join, mark, percent, round_steps, tag, x_axis

WIDTH = 360
LEFT, RIGHT, TOP, ROW = 122, 346, 8, 28
LONGEST = 18
"""Letters of a variant's name that fit beside a plot."""


def seeds_strip(title: str, rows: Sequence[tuple[Style, Sequence[float]]]) -> Markup | None:
    """A line for each variant: a dot for each seed and a bar at their mean. None if no variant has the figure."""
    everything = [value for _, values in rows for value in values]
    if not everything:
        return None
    steps = round_steps(min(everything), max(everything))
    x = Scale(steps[0], steps[-1], LEFT + 6, RIGHT - 8)
    bottom = TOP + ROW * len(rows)
    parts = [_guides(x, steps, bottom), x_axis(x, steps, bottom, title, percent)]
    told = []
    for index, (style, values) in enumerate(rows):
        y = TOP + ROW * (index + 0.5)
        parts.append(_name(style, y))
        if not values:
            parts.append(tag("text", "not measured", x=LEFT + 8, y=y + 4, class_="tick"))
            continue
        mean = sum(values) / len(values)
        text = f"{style.label}: mean {percent(mean)}; seeds {', '.join(percent(value) for value in sorted(values))}"
        dots = "".join(mark(style.mark, x(value), y, 6) for value in values)
        drawn = [tag("title", text), tag("path", d=dots, class_=f"mark open {style.mark} {style.colour}")]
        drawn.append(tag("path", d=f"M{x(mean):.1f} {y - 10:.1f}v20", class_=f"mean {style.colour}"))
        parts.append(tag("g", *drawn))
        told.append(text)
    return drawing(WIDTH, bottom + 40, f"{title} of each variant. {'. '.join(told)}.", *parts)


def gap_strip(title: str, rows: Sequence[tuple[Style, GapClosed | None]]) -> Markup | None:
    """A line for each variant from 0 (plain baseline) to 1 (true labels), with its interval. None if none is known."""
    ends = [end for _, gap in rows if gap and gap.low is not None and gap.high is not None
            for end in (gap.value, gap.low, gap.high)]  # fmt: skip
    if not ends:
        return None
    low, high = max(-1.0, min([0.0, *ends])), min(2.0, max([1.0, *ends]))
    steps = [step for step in round_steps(low, high) if low - 0.5 <= step <= high + 0.5]
    x = Scale(steps[0], steps[-1], LEFT + 6, RIGHT - 8)
    bottom = TOP + ROW * len(rows)
    parts = [_guides(x, steps, bottom)]
    for at, what in ((0.0, "none"), (1.0, "true labels")):
        parts.append(tag("path", tag("title", what), d=f"M{x(at):.1f} {TOP}V{bottom}", class_="reference"))
    parts.append(x_axis(x, steps, bottom, title, percent))
    told = []
    for index, (style, gap) in enumerate(rows):
        y = TOP + ROW * (index + 0.5)
        parts.append(_name(style, y))
        text = f"{style.label}: {gap_words(gap)}"
        told.append(text)
        if gap is None or gap.low is None or gap.high is None:
            parts.append(_blank(x, y, text, "not defined" if gap is None else "not known"))
        else:
            parts.append(_whisker(style, gap.value, (gap.low, gap.high), x, y, text))
    return drawing(WIDTH, bottom + 40, f"{title} of each variant. {'. '.join(told)}.", *parts)


def gap_words(gap: GapClosed | None) -> str:
    """The gap closed and its interval, in words."""
    if gap is None:
        return "not defined"
    if gap.low is None or gap.high is None:
        return "not known: the interval would be wider than 100 points"
    return f"{percent(gap.value)} (95% interval {percent(gap.low)} to {percent(gap.high)})"


def _whisker(style: Style, value: float, ends: tuple[float, float], x: Scale, y: float, text: str) -> Markup:
    low, high = ends
    line = f"M{x.clipped(low):.1f} {y:.1f}H{x.clipped(high):.1f}"
    for end, outside, inwards in ((low, low < x.low, 5), (high, high > x.high, -5)):
        at = x.clipped(end)
        line += (
            f"M{at + inwards:.1f} {y - 5:.1f}L{at:.1f} {y:.1f}l{inwards} 5" if outside else f"M{at:.1f} {y - 5:.1f}v10"
        )
    dot = mark(style.mark, x.clipped(value), y, 7)
    drawn = [tag("title", text), tag("path", d=line, class_=f"whisker {style.colour}")]
    return tag("g", *drawn, tag("path", d=dot, class_=f"mark {style.mark} {style.colour}"))


def _blank(x: Scale, y: float, text: str, shown: str) -> Markup:
    return tag("text", tag("title", text), shown, x=x.start + 2, y=y + 4, class_="tick halo")


def _guides(x: Scale, steps: Sequence[float], bottom: float) -> Markup:
    return join(tag("line", x1=x(step), x2=x(step), y1=TOP, y2=bottom, class_="grid") for step in steps)


def _name(style: Style, y: float) -> Markup:
    shown = style.label if len(style.label) <= LONGEST else style.label[: LONGEST - 1] + "…"
    return tag("text", tag("title", style.label), shown, x=LEFT - 6, y=y + 4, text_anchor="end", class_="name")


def by_variant(results: Sequence[Mapping[str, Any]], key: str, variant: str) -> list[float]:
    """The figure of each seed of a variant, where it is defined."""
    found = [result.get(key) for result in results if result["variant"] == variant]
    return [value for value in found if value is not None]
