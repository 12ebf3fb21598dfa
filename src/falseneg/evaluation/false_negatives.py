"""How well a detector's flags agree with the labels, over many batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from falseneg.statistics import Confusion, NegativeStats

FIGURES = ("share_flagged", "precision", "recall", "f1", "chance")
"""The figures of `DetectionCounts`, by the names that the metrics files use."""


@dataclass
class DetectionCounts:
    """Counts of pairs, pooled over batches, and the micro-averaged figures that follow from them.

    Every pair counts the same: nothing is averaged over anchors, nothing is smoothed, and a figure without a
    denominator is None. (A macro average with a small number on both sides credits a detector that flags nothing with
    precision 1.) So for a detector that flags nothing precision is None, recall is 0 and F1 is 0, if there are false
    negatives; if there are none either, recall and F1 are None too.

    Counts may stay tensors on their device: they are added without waiting, and read when a figure is asked for.

    Attributes:
        flagged: flagged negatives.
        negatives: negatives seen.
        true_positives: flagged negatives that share the anchor's label; None as long as no labels were seen.
        false_negatives: negatives that share the anchor's label; None as long as no labels were seen.
    """

    flagged: Tensor | int = 0
    negatives: Tensor | int = 0
    true_positives: Tensor | int | None = None
    false_negatives: Tensor | int | None = None

    def add(self, confusion: Confusion) -> None:
        """Pool one batch that was compared with labels."""
        self.flagged = self.flagged + confusion.flagged
        self.negatives = self.negatives + confusion.negatives
        self.true_positives = _counted(self.true_positives) + confusion.true_positives
        self.false_negatives = _counted(self.false_negatives) + confusion.false_negatives

    def add_unlabelled(self, stats: NegativeStats, negatives: Tensor | None = None) -> None:
        """Pool one batch without labels: only the share flagged follows from it. Not to be mixed with `add`.

        Args:
            stats: of the batch.
            negatives: how many negatives there are, where not all of them are in the denominator.
        """
        self.flagged = self.flagged + stats.flagged.sum()
        self.negatives = self.negatives + (stats.count.sum() if negatives is None else negatives)

    @property
    def share_flagged(self) -> float | None:
        """Flagged negatives among the negatives."""
        return _share(self.flagged, self.negatives)

    @property
    def precision(self) -> float | None:
        """Truly false negatives among the flagged; None if nothing is flagged."""
        return _share(self.true_positives, self.flagged)

    @property
    def recall(self) -> float | None:
        """Flagged among the truly false negatives; None if there are none."""
        return _share(self.true_positives, self.false_negatives)

    @property
    def f1(self) -> float | None:
        """2 TP / (flagged + truly false): the harmonic mean of precision and recall where both exist."""
        if self.true_positives is None or self.false_negatives is None:
            return None
        return _share(2 * self.true_positives, self.flagged + self.false_negatives)

    @property
    def chance(self) -> float | None:
        """Truly false among all negatives: the precision of a detector that flags at random."""
        return _share(self.false_negatives, self.negatives)

    def figures(self) -> dict[str, float | None]:
        """All `FIGURES` by name; those that need labels are None without."""
        return {name: getattr(self, name) for name in FIGURES}


def _share(part: Tensor | int | None, whole: Tensor | int | None) -> float | None:
    if part is None or whole is None or int(whole) == 0:
        return None
    return int(part) / int(whole)


def _counted(count: Tensor | int | None) -> Tensor | int:
    return 0 if count is None else count
