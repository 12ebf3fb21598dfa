"""The figures of a comparison as rows of text: for the terminal and for the report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from falseneg.compare.summary import ACCURACIES, BASELINE, Figure, GapClosed, Summary, VariantSummary

Write = Callable[[float, float], str]
"""Writes a number with the digits that suit another: a deviation is written like its mean."""


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        title: what it is about.
        note: how to read it, in one or two sentences.
        columns: headings; the first is that of the variant's name.
        rows: each as long as ``columns``; an undefined figure is empty.
    """

    title: str
    note: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    @property
    def some(self) -> bool:
        """Whether any figure is defined."""
        return any(cell for row in self.rows for cell in row[1:])


def tables(summary: Summary) -> tuple[Table, ...]:
    """Accuracy, gap closed (of the methods only), detection and cost, with a row for each variant."""
    return (
        _table(
            "Accuracy",
            "Per cent of the test images, at the last epoch: mean ± sample standard deviation over the seeds.",
            [("kNN", "knn", _points), ("linear", "linear", _points), ("few-label", "few_label", _points)],
            summary,
        ),
        Table(
            "Gap closed",
            "(variant − none) / (oracle of the same strategy − none) in per cent, with its 95% interval; "
            "blank where the oracle is not clearly above none.",
            ("variant", "kNN", "linear", "few-label"),
            tuple(_gap_row(variant) for variant in summary.variants if variant.name != BASELINE and not variant.oracle),
        ),
        _table(
            "Detection",
            "Per cent, over all pairs of the last epoch; blank where undefined. Chance is the precision of random flags.",
            [
                *(("precision", "precision", _points), ("recall", "recall", _points), ("F1", "f1", _points)),
                *(("flagged", "share_flagged", _fine), ("chance", "chance", _fine)),
            ],
            summary,
        ),
        _table(
            "Cost",
            "To none: until a variant first reaches the last kNN accuracy of none; blank if never.",
            [
                ("seconds per epoch", "seconds_per_epoch", _number),
                ("peak MiB", "peak_memory_mib", _number),
                ("epochs to none", "epochs_to_baseline", _number),
                ("seconds to none", "seconds_to_baseline", _number),
            ],
            summary,
        ),
    )


def _table(title: str, note: str, columns: list[tuple[str, str, Write]], summary: Summary) -> Table:
    rows = (
        (variant.name, *(write_figure(variant.figures[key], write) for _, key, write in columns))
        for variant in summary.variants
    )
    return Table(title, note, ("variant", *(heading for heading, _, _ in columns)), tuple(rows))


def write_figure(figure: Figure, write: Write) -> str:
    """Mean ± deviation; with the number of seeds if the figure is defined for some of them only; empty if for none."""
    if figure.mean is None:
        return ""
    mean = figure.mean
    text = write(mean, mean) + (f" ± {write(figure.sd, mean)}" if figure.sd is not None else "")
    return text if figure.defined == figure.seeds else f"{text} ({figure.defined} of {figure.seeds})"


def _gap_row(variant: VariantSummary) -> tuple[str, ...]:
    return (variant.name, *(_gap(variant.gap_closed.get(key)) for key in ACCURACIES))


def _gap(gap: GapClosed | None) -> str:
    if gap is None:
        return ""
    if gap.low is None or gap.high is None:
        return f"{100 * gap.value:.0f} (no bounds)"
    return f"{100 * gap.value:.0f} ({100 * gap.low:.0f} to {100 * gap.high:.0f})"


def _points(share: float, _: float) -> str:
    return f"{100 * share:.1f}"


def _fine(share: float, _: float) -> str:
    return f"{100 * share:.2f}"


def _number(value: float, like: float) -> str:
    digits = 0 if abs(like) >= 100 else 1 if abs(like) >= 10 else 2
    return f"{value:,.{digits}f}"
