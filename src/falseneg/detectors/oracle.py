"""The detector that knows the labels: the upper bound."""

from __future__ import annotations

from torch import Tensor

from falseneg.clock import Clock
from falseneg.contrast import Contrast
from falseneg.detectors.base import Detector
from falseneg.errors import UserError
from falseneg.facts import Facts
from falseneg.rules import PairRule, SameGroup
from falseneg.statistics.scan import labels_of


class Oracle(Detector):
    """Flags exactly the negatives with the anchor's label. With attraction this is SupCon (Khosla et al. 2020).

    Args:
        labels: (rows,) int64 by data-set row, −1 where unknown; None takes the data set's own when training starts.
    """

    labels: Tensor | None

    def __init__(self, labels: Tensor | None = None) -> None:
        super().__init__()
        # Not in the checkpoint: labels belong to the data set.
        self.register_buffer("labels", labels, persistent=False)

    def prepare(self, facts: Facts) -> None:
        if self.labels is None:
            if facts.labels is None:
                raise UserError(
                    "Oracle: the data set has no labels; choose another detector, or give a labelled data set"
                )
            self.labels = facts.labels

    def flag(self, contrast: Contrast, clock: Clock) -> PairRule:
        if self.labels is None:
            raise UserError("Oracle: give labels, one for each row of the data set")
        of_anchor = labels_of(contrast.anchors.sample, self.labels)
        of_candidate = labels_of(contrast.candidates.sample, self.labels)
        return SameGroup(of_anchor[:, None], of_candidate[:, None])
