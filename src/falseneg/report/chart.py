"""Curves over training: one line for a run, or for each variant the mean over its seeds with their range."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TypeVar

from markupsafe import Markup

from falseneg.compare.summary import BASELINE
from falseneg.report.frame import Axis, Frame
from falseneg.report.svg import MARKS, Scale, join, mark, percent, plain, round_steps, tag

T = TypeVar("T")
MARKED, HOVERED = 5, 40
"""Marks on a curve, and places where the pointer finds its figures, at most."""


@dataclass(frozen=True)
class Point:
    """A figure at one epoch: the mean over the seeds that have it, the lowest and the highest."""

    epoch: float
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Style:
    """How a run or a variant is drawn everywhere on the page.

    Attributes:
        label: its name.
        colour: class of the style sheet.
        mark: one of `MARKS`.
        dashed: for runs with true labels.
    """

    label: str
    colour: str
    mark: str
    dashed: bool = False


@dataclass(frozen=True)
class Quantity:
    """A figure of the epoch lines that is worth a plot.

    Attributes:
        key: its name in the metrics.
        title: above the plot.
        note: what it means, in one sentence.
        share: it is shown as a percentage.
        of_flags: it is about what was flagged: its axis starts at zero.
    """

    key: str
    title: str
    note: str
    share: bool = True
    of_flags: bool = False


def points(runs: Sequence[Sequence[Mapping[str, float]]], key: str) -> list[Point]:
    """One figure over training, from the epoch lines of a variant's runs; where it is missing or not finite, no point."""
    by_epoch: dict[float, list[float]] = {}
    for lines in runs:
        for line in lines:
            if line.get(key) is not None and math.isfinite(line[key]):
                by_epoch.setdefault(line["epoch"], []).append(line[key])
    return [Point(epoch, fmean(values), min(values), max(values)) for epoch, values in sorted(by_epoch.items())]


def style_of(index: int, label: str, dashed: bool = False) -> Style:
    """The style of the index-th thing that needs a colour."""
    return Style(label, f"s{index % 6}", MARKS[(index + index // 6) % len(MARKS)], dashed)


def variant_styles(names: Sequence[str], oracles: set[str]) -> dict[str, Style]:
    """Colours for the methods; grey for the baseline and ink, dashed, for the oracles: they are there to compare with."""
    styles: dict[str, Style] = {}
    methods = with_labels = 0
    for name in names:
        if name == BASELINE:
            styles[name] = Style(name, "baseline", "disc")
        elif name in oracles:
            mark = ("cross", "plus", "triangle", "diamond")[with_labels % 4]
            styles[name] = Style(name, ("oracle", "oracle-other")[with_labels % 2], mark, dashed=True)
            with_labels += 1
        else:
            styles[name] = style_of(methods, name)
            methods += 1
    return styles


@dataclass(frozen=True)
class Chart:
    """A drawn quantity, and the same as numbers."""

    quantity: Quantity
    drawing: Markup
    columns: list[str]
    rows: list[list[str]]


def chart(quantity: Quantity, curves: Sequence[tuple[Style, Sequence[Point]]], chance: Sequence[Point]) -> Chart | None:
    """Draw one quantity; None if no run has it.

    Args:
        quantity: what is drawn.
        curves: each variant's style and points.
        chance: what a detector that flags at random reaches; may be empty.
    """
    curves = [(style, values) for style, values in curves if values]
    if not curves:
        return None
    write = percent if quantity.share else plain
    everything = [*(point for _, values in curves for point in values), *chance]
    low, high = min(point.low for point in everything), max(point.high for point in everything)
    upwards = Axis.along(round_steps(0.0 if quantity.of_flags else low, high), share=quantity.share)
    frame = Frame(epochs_axis([point.epoch for point in everything]), upwards)
    x, y = frame.across, frame.up
    parts = []
    if chance:
        parts.append(_chance(chance, x, y, quantity, write))
    parts += [_band(style, values, x, y) for style, values in curves if len(values) > 1]
    parts += [_line(style, values, x, y) for style, values in curves]
    parts += [_hover(style, values, x, y, write) for style, values in curves]
    told = "; ".join(_in_words(style.label, values, write) for style, values in curves)
    if chance:
        told += f"; chance {write(chance[-1].mean)}"
    picture = frame.draw(f"{quantity.title} over training. {told}.", *parts)
    return Chart(quantity, picture, *_numbers(curves, write))


def epochs_axis(epochs: Sequence[float]) -> Axis:
    """From the first epoch to the last, with whole numbers; a single epoch stands in the middle."""
    first, last = min(epochs), max(epochs)
    if first == last:
        first, last = first - 1, last + 1
    return Axis(first, last, round_steps(first, last, 5, whole=True), "epoch")


def _line(style: Style, values: Sequence[Point], x: Scale, y: Scale) -> Markup:
    path = "M" + "L".join(f"{x(point.epoch):.1f} {y(point.mean):.1f}" for point in values)
    marked = spread(values, MARKED)
    marks = "".join(mark(style.mark, x(point.epoch), y(point.mean), 5) for point in marked)
    dash = " dashed" if style.dashed else ""
    line = tag("path", d=path, class_=f"line {style.colour}{dash}")
    return join([line, tag("path", d=marks, class_=f"mark {style.mark} {style.colour}")])


def _band(style: Style, values: Sequence[Point], x: Scale, y: Scale) -> Markup:
    there = [f"{x(point.epoch):.1f} {y(point.high):.1f}" for point in values]
    back = [f"{x(point.epoch):.1f} {y(point.low):.1f}" for point in reversed(values)]
    return tag("path", d="M" + "L".join(there + back) + "z", class_=f"band {style.colour}")


def _hover(style: Style, values: Sequence[Point], x: Scale, y: Scale, write: Callable[[float], str]) -> Markup:
    dots = []
    for point in spread(values, HOVERED):
        around = f" ({write(point.low)} to {write(point.high)})" if point.high > point.low else ""
        text = f"{style.label}, epoch {plain(point.epoch)}: {write(point.mean)}{around}"
        dots.append(tag("circle", tag("title", text), cx=x(point.epoch), cy=y(point.mean), r=6, class_="hit"))
    return join(dots)


def _chance(chance: Sequence[Point], x: Scale, y: Scale, quantity: Quantity, write: Callable[[float], str]) -> Markup:
    level = chance[-1].mean
    path = f"M{x.start:.1f} {y(level):.1f}H{x.end:.1f}"
    text = f"chance {write(level)}"
    label = tag("text", text, x=x.end, y=y(level) - 4, text_anchor="end", class_="tick halo")
    return join([tag("path", d=path, class_="chance"), label])


def spread(values: Sequence[T], most: int) -> list[T]:
    """At most that many of them, evenly spread, the first and the last among them."""
    if len(values) <= most:
        return list(values)
    return [values[round(index * (len(values) - 1) / max(1, most - 1))] for index in range(most)]


def _in_words(label: str, values: Sequence[Point], write: Callable[[float], str]) -> str:
    first, last = values[0], values[-1]
    if len(values) == 1:
        return f"{label}: {write(first.mean)} at epoch {plain(first.epoch)}"
    return (
        f"{label}: from {write(first.mean)} at epoch {plain(first.epoch)} to {write(last.mean)} at {plain(last.epoch)}"
    )


def _numbers(
    curves: Sequence[tuple[Style, Sequence[Point]]], write: Callable[[float], str]
) -> tuple[list[str], list[list[str]]]:
    """The same as a table of at most a dozen epochs, for those who read rather than see."""
    by_epoch = {point.epoch: point for _, values in curves for point in values}
    chosen = spread([by_epoch[epoch] for epoch in sorted(by_epoch)], 12)
    rows = []
    for epoch in (point.epoch for point in chosen):
        found = [next((point for point in values if point.epoch == epoch), None) for _, values in curves]
        rows.append([plain(epoch), *(write(point.mean) if point else "" for point in found)])
    return ["epoch", *(style.label for style, _ in curves)], rows
