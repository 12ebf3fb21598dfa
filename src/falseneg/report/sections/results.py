"""Variants side by side: the figure of every seed, and how much of the oracle's gain each variant reaches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from markupsafe import Markup

from falseneg.compare.differences import GapClosed
from falseneg.compare.summary import ACCURACIES, BASELINE
from falseneg.compare.tables import NAMES, Table, tables
from falseneg.report.chart import Style
from falseneg.report.comparison import ComparisonRecord
from falseneg.report.frame import Axis, Frame
from falseneg.report.read import RunRecord
from falseneg.report.section import Section, part
from falseneg.report.svg import Scale, mark, percent, round_steps, tag

LEFT, RIGHT, TOP, ROW = 122, 346, 8, 28
LONGEST = 18
"""Letters of a variant's name that fit beside a plot."""


def seeds_strip(title: str, rows: Sequence[tuple[Style, Sequence[float]]]) -> Markup | None:
    """A line for each variant: a dot for each seed and a bar at their mean. None if no variant has the figure."""
    everything = [value for _, values in rows for value in values]
    if not everything:
        return None
    frame = _frame(round_steps(min(everything), max(everything)), title, len(rows))
    x, parts, told = frame.across, [], []
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
    return frame.draw(f"{title} of each variant. {'. '.join(told)}.", *parts)


def gap_strip(title: str, rows: Sequence[tuple[Style, GapClosed | None]]) -> Markup | None:
    """A line for each variant from 0 (plain baseline) to 1 (true labels), with its interval. None if none is known."""
    ends = [end for _, gap in rows if gap and gap.low is not None and gap.high is not None
            for end in (gap.value, gap.low, gap.high)]  # fmt: skip
    if not ends:
        return None
    low, high = max(-1.0, min([0.0, *ends])), min(2.0, max([1.0, *ends]))
    steps = [step for step in round_steps(low, high) if low - 0.5 <= step <= high + 0.5]
    frame = _frame(steps, title, len(rows))
    x, parts, told = frame.across, [], []
    for at, what in ((0.0, "none"), (1.0, "true labels")):
        line = f"M{x(at):.1f} {frame.top:.1f}V{frame.bottom:.1f}"
        parts.append(tag("path", tag("title", what), d=line, class_="reference"))
    for index, (style, gap) in enumerate(rows):
        y = TOP + ROW * (index + 0.5)
        parts.append(_name(style, y))
        text = f"{style.label}: {gap_words(gap)}"
        told.append(text)
        if gap is None or gap.low is None or gap.high is None:
            parts.append(_blank(x, y, text, "not defined" if gap is None else "not known"))
        else:
            parts.append(_whisker(style, gap.value, (gap.low, gap.high), x, y, text))
    return frame.draw(f"{title} of each variant. {'. '.join(told)}.", *parts)


def _frame(steps: Sequence[float], title: str, rows: int) -> Frame:
    return Frame(Axis.along(steps, title, share=True), left=LEFT, right=RIGHT, top=TOP, bottom=TOP + ROW * rows)


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


def _name(style: Style, y: float) -> Markup:
    shown = style.label if len(style.label) <= LONGEST else style.label[: LONGEST - 1] + "…"
    return tag("text", tag("title", style.label), shown, x=LEFT - 6, y=y + 4, text_anchor="end", class_="name")


def by_variant(results: Sequence[Mapping[str, Any]], key: str, variant: str) -> list[float]:
    """The figure of each seed of a variant, where it is defined."""
    found = [result.get(key) for result in results if result["variant"] == variant]
    return [value for value in found if value is not None]


@dataclass(frozen=True)
class Results:
    """Of a comparison: accuracies seed by seed, gaps closed, and tables."""

    strips: list[Markup]
    gaps: list[Markup]
    tables: Sequence[Table]


def _of_run(run: RunRecord) -> None:
    """One run has its figures in the summary."""


def _of_comparison(record: ComparisonRecord) -> Results | None:
    if not record.results:
        return None
    notes, summary, strips, gaps = record.notes, record.summary, list[Markup | None](), list[Markup | None]()
    shown = part(notes, "the tables", lambda: tables(summary)) or ()
    for key in sorted(ACCURACIES, key=lambda key: key != summary.primary):
        title, closed = f"{NAMES[key]} accuracy", f"gap closed, {NAMES[key]}"
        rows = [(record.styles[name], by_variant(record.results, key, name)) for name in record.names]
        of_methods = [
            (record.styles[v.name], v.gap_closed.get(key))
            for v in summary.variants
            if not v.oracle and v.name != BASELINE
        ]
        strips.append(part(notes, title, partial(seeds_strip, title, rows)))
        gaps.append(part(notes, closed, partial(gap_strip, closed, of_methods)))
    return Results([one for one in strips if one], [one for one in gaps if one], shown)


SECTION = Section(20, "results", "Results", "Results", _of_run, _of_comparison)
