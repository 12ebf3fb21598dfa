"""The figures of a comparison as rows of text: for the terminal and for the report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from falseneg.compare.differences import Difference, GapClosed
from falseneg.compare.summary import BASELINE, Figure, Summary, VariantSummary
from falseneg.evaluation import EVALUATIONS, MEASURES, PAIR_EVALUATIONS

NAMES = {each.key: each.short for each in MEASURES}
"""What the accuracies are called."""
VERDICTS = {
    "helped": "helped",
    "hurt": "hurt",
    "unclear": "no clear difference",
    "unknown": "no verdict",
}
"""Every verdict in words."""

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
    """Verdict, accuracy, gap closed (of the methods only), detection and cost, with a row for each variant."""
    compared = [variant for variant in summary.variants if variant.name != BASELINE]
    primary, measured = NAMES[summary.primary], measured_in(summary)
    return (
        Table(
            "Verdict",
            f"By {primary} accuracy alone, the primary measure: the difference from none in points, and its interval. "
            f"{INTERVALS} {of_test_images(summary)}".rstrip(),
            ("variant", f"{primary} − none", "95% interval", "verdict"),
            tuple(_verdict_row(variant, summary) for variant in compared),
        ),
        _table(
            "Accuracy",
            "Per cent of the test images, at the last epoch: mean ± sample standard deviation over the seeds.",
            [(NAMES[key], key, _points) for key in measured],
            summary,
        ),
        Table(
            "Gap closed",
            "(variant − none) / (oracle of the same strategy − none) in per cent, with its 95% interval; not known where "
            "the interval would be wider than 100; blank where the oracle is not clearly above none.",
            ("variant", *(NAMES[key] for key in measured)),
            tuple(_gap_row(variant, measured) for variant in compared if not variant.oracle),
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
            "To none: until a variant first reaches the last kNN accuracy of none; blank if never. The time of a run "
            "that another one uses is not counted there again.",
            [
                ("seconds per epoch", "seconds_per_epoch", _number),
                ("peak MiB", "peak_memory_mib", _number),
                ("epochs to none", "epochs_to_baseline", _number),
                ("seconds to none", "seconds_to_baseline", _number),
            ],
            summary,
        ),
    )


INTERVALS = "The intervals of all methods together, and of all oracles together, hold in 95 of 100 comparisons."
"""How the intervals of differences are to be read."""


def of_test_images(summary: Summary) -> str:
    """What the intervals leave out, in a sentence or two; empty where the number of test images is unknown."""
    if summary.test_error is None:
        return ""
    accuracy, difference = (f"{100 * error:.1f}" for error in summary.test_error)
    return (
        f"They are over seeds, on the same {summary.test_images:,} test images. Other test images would move an accuracy by "
        f"about ±{accuracy} points (one standard error), and a difference by at most ±{difference}, less where both fail on "
        "the same images."
    )


def difference_words(difference: Difference) -> tuple[str, str]:
    """The difference in percentage points, and its interval."""
    if difference.low is None or difference.high is None:
        return _signed(difference.mean), "one seed"
    return _signed(difference.mean), f"{_signed(difference.low)} to {_signed(difference.high)}"


def _signed(share: float) -> str:
    points = 100 * share
    # An end near 0 is written so that it shows on which side it lies, for that is the verdict.
    return (f"{points:+.1f}" if abs(points) >= 0.05 or not points else f"{points:+.1g}").replace("-", "−")


def _verdict_row(variant: VariantSummary, summary: Summary) -> tuple[str, ...]:
    difference = variant.versus_none.get(summary.primary)
    words = ("", "") if difference is None else difference_words(difference)
    return (variant.name, *words, VERDICTS[summary.verdict(variant)] if difference is not None else "")


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


def measured_in(summary: Summary) -> tuple[str, ...]:
    """The accuracies to show: those of features, and those of pairs; of either kind all, if any variant has one of them."""
    kinds = [tuple(each.key for each in kind) for kind in (EVALUATIONS, PAIR_EVALUATIONS)]
    found = [kind for kind in kinds if any(v.figures[key].mean is not None for v in summary.variants for key in kind)]
    return tuple(key for kind in found or kinds[:1] for key in kind)


def _gap_row(variant: VariantSummary, measured: Sequence[str]) -> tuple[str, ...]:
    return (variant.name, *(_gap(variant.gap_closed.get(key)) for key in measured))


def _gap(gap: GapClosed | None) -> str:
    if gap is None:
        return ""
    if gap.low is None or gap.high is None:
        return "not known"
    return f"{100 * gap.value:.0f} ({100 * gap.low:.0f} to {100 * gap.high:.0f})"


def _points(share: float, _: float) -> str:
    return f"{100 * share:.1f}"


def _fine(share: float, _: float) -> str:
    return f"{100 * share:.2f}"


def _number(value: float, like: float) -> str:
    digits = 0 if abs(like) >= 100 else 1 if abs(like) >= 10 else 2
    return f"{value:,.{digits}f}"
