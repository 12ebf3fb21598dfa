"""Curves over training: one line for a run, or for each variant the mean over its seeds with their range."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from markupsafe import Markup

from falseneg.report.svg import MARKS, Scale, drawing, join, mark, percent, plain, round_steps, tag, x_axis, y_axis

WIDTH, HEIGHT = 360, 232
LEFT, RIGHT, TOP, BOTTOM = 46, 348, 12, 190
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


QUANTITIES = (
    Quantity(
        "loss", "Loss", "What training makes small, in nats. Comparable only between equal objectives.", share=False
    ),
    Quantity("knn", "kNN accuracy", "Test images that their nearest training images name correctly."),
    Quantity("linear", "Linear accuracy", "Test images that a linear classifier on the features names correctly."),
    Quantity("share_flagged", "Share flagged", "Negatives that the detector takes for false ones.", of_flags=True),
    Quantity("precision", "Precision", "Flagged negatives that are truly false. Dotted: chance.", of_flags=True),
    Quantity("recall", "Recall", "Truly false negatives that are flagged.", of_flags=True),
    Quantity("f1", "F1", "Precision and recall in one figure: their harmonic mean.", of_flags=True),
)


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
    x, y, steps = _scales(quantity, everything)
    parts = [y_axis(y, steps, LEFT, RIGHT, write)]
    parts.append(x_axis(x, round_steps(x.low, x.high, 5, whole=True), BOTTOM, "epoch", plain))
    if chance:
        parts.append(_chance(chance, x, y, quantity, write))
    parts += [_band(style, values, x, y) for style, values in curves if len(values) > 1]
    parts += [_line(style, values, x, y) for style, values in curves]
    parts += [_hover(style, values, x, y, write) for style, values in curves]
    told = "; ".join(_in_words(style.label, values, write) for style, values in curves)
    if chance:
        told += f"; chance {write(chance[-1].mean)}"
    picture = drawing(WIDTH, HEIGHT, f"{quantity.title} over training. {told}.", *parts)
    return Chart(quantity, picture, *_numbers(curves, write))


def _scales(quantity: Quantity, everything: Sequence[Point]) -> tuple[Scale, Scale, list[float]]:
    low, high = min(point.low for point in everything), max(point.high for point in everything)
    low = 0.0 if quantity.of_flags else low
    steps = round_steps(low, high)
    first, last = min(point.epoch for point in everything), max(point.epoch for point in everything)
    if first == last:
        first, last = first - 1, last + 1
    return Scale(first, last, LEFT + 8, RIGHT - 6), Scale(steps[0], steps[-1], BOTTOM, TOP), steps


def _line(style: Style, values: Sequence[Point], x: Scale, y: Scale) -> Markup:
    path = "M" + "L".join(f"{x(point.epoch):.1f} {y(point.mean):.1f}" for point in values)
    marked = _spread(values, MARKED)
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
    for point in _spread(values, HOVERED):
        spread = f" ({write(point.low)} to {write(point.high)})" if point.high > point.low else ""
        text = f"{style.label}, epoch {plain(point.epoch)}: {write(point.mean)}{spread}"
        dots.append(tag("circle", tag("title", text), cx=x(point.epoch), cy=y(point.mean), r=6, class_="hit"))
    return join(dots)


def _chance(chance: Sequence[Point], x: Scale, y: Scale, quantity: Quantity, write: Callable[[float], str]) -> Markup:
    level = chance[-1].mean
    path = f"M{x.start:.1f} {y(level):.1f}H{x.end:.1f}"
    text = f"chance {write(level)}"
    label = tag("text", text, x=x.end, y=y(level) - 4, text_anchor="end", class_="tick halo")
    return join([tag("path", d=path, class_="chance"), label])


def _spread(values: Sequence[Point], most: int) -> list[Point]:
    """At most that many of the points, evenly spread, the first and the last among them."""
    if len(values) <= most:
        return list(values)
    return [values[round(index * (len(values) - 1) / (most - 1))] for index in range(most)]


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
    chosen = _spread([by_epoch[epoch] for epoch in sorted(by_epoch)], 12)
    rows = []
    for epoch in (point.epoch for point in chosen):
        found = [next((point for point in values if point.epoch == epoch), None) for _, values in curves]
        rows.append([plain(epoch), *(write(point.mean) if point else "" for point in found)])
    return ["epoch", *(style.label for style, _ in curves)], rows
