"""What is learned for each image: how it is spread over training, and learned thresholds against true quantiles."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from markupsafe import Markup

from falseneg.report.chart import Chart, Quantity, Style, chart, epochs_axis, points, spread
from falseneg.report.comparison import ComparisonRecord
from falseneg.report.frame import Axis, Frame
from falseneg.report.read import RunRecord
from falseneg.report.samples import PER_SAMPLE, samples_of
from falseneg.report.section import Section, part
from falseneg.report.svg import MINUS, Scale, join, percent, plain, round_steps, tag

CEILING, FLOOR = 24, 268
"""Top and bottom of a scatter plot, whose two axes are the same."""
BANDS = (("0%", "100%", "all"), ("5%", "95%", "most"), ("25%", "75%", "half"))
KNOWN = {
    "threshold": ("Learned threshold", "The cosine above which an image's negatives are flagged.", False),
    "share_flagged": (
        "Share flagged, image by image",
        "Share of an image's negatives that were flagged when it was last seen.",
        True,
    ),
}
OVER_VARIANTS = (
    Quantity("threshold/50%", "Learned threshold", "Median over images, as a cosine.", share=False),
    Quantity(
        "threshold/true error",
        "Distance from the true quantile",
        "Mean absolute difference in cosine over a sample of images; 0 is perfect.",
        share=False,
        of_flags=True,
    ),
)


@dataclass(frozen=True)
class Scatter:
    """A drawn comparison of learned thresholds with true quantiles, at one epoch."""

    epoch: int
    drawing: Markup
    sentence: str


def spread_charts(run: RunRecord) -> list[Chart]:
    """For everything that is a number for each image: its quantiles over training."""
    names = dict.fromkeys(key.removesuffix("/50%") for line in run.epochs for key in line if key.endswith("/50%"))
    alphas = [line["threshold/alpha"] for line in run.epochs if "threshold/alpha" in line]
    charts = []
    for name in names:
        title, note, share = _about(name)
        expected = alphas[-1] if alphas and name == "share_flagged" else None
        charts.append(_spread_chart(run.epochs, Quantity(name, title, note, share), expected))
    return charts


def variant_charts(variants: Sequence[tuple[Style, Sequence[RunRecord]]]) -> tuple[list[Chart], list[Style]]:
    """Of a comparison's variants that learn thresholds: how they move, how far they are from the truth; and a legend."""
    drawn, learned = [], OVER_VARIANTS[0].key
    variants = [
        (style, runs) for style, runs in variants if any(learned in line for run in runs for line in run.epochs)
    ]
    for quantity in OVER_VARIANTS:
        curves = [(style, points([run.epochs for run in runs], quantity.key)) for style, runs in variants]
        drawn.append(chart(quantity, curves, []))
    return [one for one in drawn if one is not None], [style for style, _ in variants]


def scatters(samples: Mapping[int, Mapping[str, np.ndarray]]) -> list[Scatter]:
    """Learned thresholds against true quantiles at the recorded epochs.

    Args:
        samples: what is held of each image, by epoch and name.
    """
    found: list[tuple[int, str, Mapping[str, np.ndarray]]] = []
    for epoch, arrays in sorted(samples.items()):
        for name in (key.removesuffix("/true") for key in arrays if key.endswith("/true")):
            checked = {key: arrays[f"{name}/{key}"] for key in ("true", "learned", "share", "alpha")}
            known = np.isfinite(checked["true"]) & np.isfinite(checked["learned"])
            if known.any():
                found.append((epoch, name, {**checked, "known": known}))
    names = {name for _, name, _ in found}
    return [_scatter(epoch, name if len(names) > 1 else "", checked) for epoch, name, checked in found]


def _about(name: str) -> tuple[str, str, bool]:
    """Title, note and whether it is a share; of a second one ("threshold 2") with its number."""
    first, _, number = name.partition(" ")
    if first not in KNOWN:
        return name[:1].upper() + name[1:], "A number for each image.", False
    title, note, share = KNOWN[first]
    return f"{title} {number}".strip(), note, share


def _spread_chart(lines: Sequence[Mapping[str, Any]], quantity: Quantity, expected: float | None) -> Chart:
    """A line for the median, and shades for half, nine tenths and all of the images."""
    lines = [line for line in lines if math.isfinite(line.get(f"{quantity.key}/50%", math.nan))]
    write: Callable[[float], str] = percent if quantity.share else plain
    ends = [line[f"{quantity.key}/{end}"] for line in lines for end in ("0%", "100%")]
    epochs = [line["epoch"] for line in lines]
    frame = Frame(epochs_axis(epochs), Axis.along(round_steps(min(ends), max(ends)), share=quantity.share))
    x, y = frame.across, frame.up
    parts = [_band(lines, quantity.key, low, high, kind, x, y) for low, high, kind in BANDS]
    parts += [
        _median(lines, quantity.key, x, y),
        _expected(expected, lines[-1][f"{quantity.key}/50%"], x, y),
        _hits(lines, quantity, write, x, y),
    ]
    told = _in_words(lines[-1], quantity.key, write)
    label = f"{quantity.title} over training. At epoch {plain(epochs[-1])}: {told}."
    columns = ["epoch", "lowest", "5%", "25%", "median", "75%", "95%", "highest"]
    rows = [_row(line, quantity.key, write) for line in spread(lines, 12)]
    return Chart(quantity, frame.draw(label, *parts), columns, rows)


def _band(lines: Sequence[Mapping[str, Any]], key: str, low: str, high: str, kind: str, x: Scale, y: Scale) -> Markup:
    there = [(at, y(line[f"{key}/{high}"])) for line, at in _places(lines, x)]
    back = [(at, y(line[f"{key}/{low}"])) for line, at in reversed(_places(lines, x))]
    outline = "L".join(f"{at:.1f} {place:.1f}" for at, place in [*there, *back])
    return tag("path", d=f"M{outline}z", class_=f"band {kind} s0")


def _places(lines: Sequence[Mapping[str, Any]], x: Scale) -> list[tuple[Mapping[str, Any], float]]:
    """Lines and where they are drawn; a single epoch is drawn as a bar."""
    if len(lines) == 1:
        return [(lines[0], x(lines[0]["epoch"]) + shift) for shift in (-12, 12)]
    return [(line, x(line["epoch"])) for line in lines]


def _median(lines: Sequence[Mapping[str, Any]], key: str, x: Scale, y: Scale) -> Markup:
    path = "L".join(f"{at:.1f} {y(line[f'{key}/50%']):.1f}" for line, at in _places(lines, x))
    return tag("path", d=f"M{path}", class_="line s0")


def _expected(share: float | None, median: float, x: Scale, y: Scale) -> Markup:
    """A dotted line where the share should be, named on the side where the median's line does not end."""
    if share is None or not min(y.low, y.high) <= share <= max(y.low, y.high):
        return Markup("")
    text = tag(
        "text",
        f"alpha {percent(share)}",
        x=x.end,
        y=y(share) + (12 if median > share else -4),
        text_anchor="end",
        class_="tick halo",
    )
    return join([tag("path", d=f"M{x.start:.1f} {y(share):.1f}H{x.end:.1f}", class_="chance"), text])


def _hits(
    lines: Sequence[Mapping[str, Any]], quantity: Quantity, write: Callable[[float], str], x: Scale, y: Scale
) -> Markup:
    """Where the pointer finds the figures."""
    dots = []
    for line in spread(lines, 40):
        text = f"epoch {plain(line['epoch'])}: {_in_words(line, quantity.key, write)}"
        at = {"cx": x(line["epoch"]), "cy": y(line[f"{quantity.key}/50%"])}
        dots.append(tag("circle", tag("title", text), **at, r=6, class_="hit s0"))
    return join(dots)


def _in_words(line: Mapping[str, Any], key: str, write: Callable[[float], str]) -> str:
    low, middle, high = (write(line[f"{key}/{at}"]) for at in ("5%", "50%", "95%"))
    return f"median {middle}, 90% of images from {low} to {high}, {line[f'{key}/known']:,} images"


def _row(line: Mapping[str, Any], key: str, write: Callable[[float], str]) -> list[str]:
    shares = ("0%", "5%", "25%", "50%", "75%", "95%", "100%")
    return [plain(line["epoch"]), *(write(line[f"{key}/{share}"]) for share in shares)]


def _scatter(epoch: int, name: str, checked: Mapping[str, np.ndarray]) -> Scatter:
    known = checked["known"]
    true, learned = checked["true"][known], checked["learned"][known]
    error = float(np.abs(learned - true).mean())
    sentence = f"{len(true)} images, mean absolute difference {plain(float(f'{error:.2g}'))}"
    if len(true) > 2 and np.ptp(true) > 0 and np.ptp(learned) > 0:
        sentence += f", correlation {np.corrcoef(true, learned)[0, 1]:.2f}".replace("-", MINUS)
    share = float(checked["share"][known].mean())
    sentence += (
        f"; {percent(share)} of all similarities lie above the thresholds; {percent(float(checked['alpha']))} should"
    )
    sentence = f"{name}: {sentence}" if name else sentence
    ends = np.concatenate([true, learned])
    steps = round_steps(float(ends.min()), float(ends.max()))
    axes = Axis.along(steps, "true quantile (cosine)"), Axis.along(steps, "learned threshold")
    frame = Frame(*axes, top=CEILING, bottom=FLOOR)
    x, y = frame.across, frame.up
    dots = "".join(f"M{x(across):.1f} {y(up):.1f}h0" for across, up in zip(true, learned, strict=True))
    diagonal = f"M{x(steps[0]):.1f} {y(steps[0]):.1f}L{x(steps[-1]):.1f} {y(steps[-1]):.1f}"
    parts = [tag("path", tag("title", "equal"), d=diagonal, class_="reference")]
    parts.append(tag("path", d=dots, class_="point disc s0"))
    label = f"Learned thresholds against true quantiles at epoch {epoch}: {sentence}."
    return Scatter(epoch, frame.draw(label, *parts), sentence)


@dataclass(frozen=True)
class Thresholds:
    """Charts; of a run scatter plots, of a comparison the legend."""

    charts: list[Chart]
    scatters: list[Scatter] = field(default_factory=list)
    legend: list[Style] = field(default_factory=list)


def _of_run(run: RunRecord) -> Thresholds | None:
    charts = part(run.notes, "what is learned for each image", lambda: spread_charts(run))
    drawn = part(run.notes, "learned thresholds against true quantiles", lambda: scatters(samples_of(run))) or []
    return Thresholds(charts, drawn) if charts else None


def _of_comparison(record: ComparisonRecord) -> Thresholds | None:
    drawn = part(record.notes, "learned thresholds", lambda: variant_charts(record.styled_runs))
    charts, legend = drawn or ([], [])
    return Thresholds(charts, legend=legend) if charts else None


SECTION = Section(40, "thresholds", "Learned for each image", "Thresholds", _of_run, _of_comparison, (PER_SAMPLE,))
