"""Images that have the same captions: certain false negatives."""

from __future__ import annotations

from torch import Tensor

from falseneg.clock import Clock
from falseneg.contrast import Contrast
from falseneg.detectors.base import Detector
from falseneg.errors import UserError
from falseneg.facts import Facts
from falseneg.rules import PairRule, SameGroup
from falseneg.statistics.scan import labels_of


class IdenticalCaptions(Detector):
    """Flags negatives of two towers whose image has the same captions as the anchor's.

    No sweep of the matrix. Put it into `AnyOf` to flag such pairs beside those of another detector.

    Args:
        groups: (rows,) int64 by data-set row, the same number for images with the same captions, −1 for none; None takes the
            data set's own when training starts.
    """

    groups: Tensor | None

    def __init__(self, groups: Tensor | None = None) -> None:
        super().__init__()
        # Not in the checkpoint: captions belong to the data set.
        self.register_buffer("groups", groups, persistent=False)

    def prepare(self, facts: Facts) -> None:
        if self.groups is None:
            if facts.caption_groups is None:
                raise UserError(
                    "IdenticalCaptions: the images have no captions; choose another detector, or captioned data"
                )
            self.groups = facts.caption_groups

    def flag(self, contrast: Contrast, clock: Clock) -> PairRule:
        if self.groups is None:
            raise UserError("IdenticalCaptions: give groups, one number for each row of the data set")
        sides = (labels_of(side.sample, self.groups)[:, None] for side in (contrast.anchors, contrast.candidates))
        return SameGroup(*sides)
