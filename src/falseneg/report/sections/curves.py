"""Figures over training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from falseneg.evaluation import MEASURES
from falseneg.report.chart import Chart, Point, Quantity, Style, chart, points, style_of
from falseneg.report.comparison import ComparisonRecord
from falseneg.report.read import RunRecord
from falseneg.report.section import Section, part

QUANTITIES = (
    Quantity(
        "loss",
        "Loss",
        "What training minimises, in nats. Comparable only between runs with the same objective.",
        share=False,
    ),
    *(Quantity(each.key, f"Accuracy, {each.title}", each.note) for each in MEASURES),
    Quantity("share_flagged", "Share flagged", "Negatives that the detector flags as false.", of_flags=True),
    Quantity("precision", "Precision", "Flagged negatives that really are false. Dotted: chance.", of_flags=True),
    Quantity("recall", "Recall", "False negatives that are flagged.", of_flags=True),
    Quantity("f1", "F1", "Harmonic mean of precision and recall.", of_flags=True),
)


@dataclass(frozen=True)
class Curves:
    """Charts; and of a comparison the legend, and how many seeds a line is the mean of."""

    charts: list[Chart]
    legend: list[Style] = field(default_factory=list)
    seeds: int = 1


def _of_run(run: RunRecord) -> Curves | None:
    charts = _charts([(style_of(0, "this run"), [run])], run.notes)
    return Curves(charts) if charts else None


def _of_comparison(record: ComparisonRecord) -> Curves | None:
    charts = _charts(record.styled_runs, record.notes)
    seeds = max((len(of) for of in record.runs.values()), default=1)
    return Curves(charts, [record.styles[name] for name in record.names], seeds) if charts else None


def _charts(variants: Sequence[tuple[Style, Sequence[RunRecord]]], notes: list[str]) -> list[Chart]:
    drawn = [part(notes, q.title, partial(_chart, q, variants)) for q in QUANTITIES]
    return [one for one in drawn if one is not None]


def _chart(quantity: Quantity, variants: Sequence[tuple[Style, Sequence[RunRecord]]]) -> Chart | None:
    lines = [(style, [_lines_of(run, quantity.key) for run in runs]) for style, runs in variants]
    curves = [(style, points(of_runs, quantity.key)) for style, of_runs in lines]
    if quantity.of_flags:  # true labels are always right, and who flags nothing has nothing to show
        curves = [(style, values) for style, values in curves if not style.dashed and any(p.mean for p in values)]
    chance: list[Point] = []
    if quantity.key == "precision":
        chance = points([_of_run for _, of_runs in lines for _of_run in of_runs], "chance")
    return chart(quantity, curves, chance)


def _lines_of(run: RunRecord, key: str) -> list[dict[str, Any]]:
    """The lines to draw: of epochs, after what was measured before training. In the first epoch there are only steps."""
    if not run.epochs:
        return [line for line in run.steps if key in line][:2000]
    measured = any(key in line for line in run.epochs)
    return [run.start, *run.epochs] if measured and key in run.start else run.epochs


SECTION = Section(30, "curves", "Over training", "Training", _of_run, _of_comparison)
