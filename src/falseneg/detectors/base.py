"""What a detector is, and what it is told before training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from falseneg.clock import Clock
from falseneg.contrast import Contrast
from falseneg.rules import PairRule

Rules = PairRule | tuple[PairRule, ...]


@dataclass(frozen=True, eq=False)
class Facts:
    """What is known before training starts.

    Attributes:
        rows: the number of images in the data set.
        negatives: candidates of other images that an anchor is compared with in one step.
        labels: (rows,) int64, or None. Only the `Oracle` may read them.
        classes: how many classes the user expects in the data, or None.
    """

    rows: int
    negatives: int
    labels: Tensor | None = None
    classes: int | None = None


class Detector(nn.Module):
    """Decides which negatives are suspected to be false. Open: write your own in one file."""

    def prepare(self, facts: Facts) -> None:
        """Called once before training: set what was left open, refuse what cannot work.

        Raises:
            ValueError: the detector cannot work with these facts.
        """

    def start_epoch(self, features: Callable[[], Tensor], clock: Clock) -> None:
        """Called at the start of each epoch.

        Args:
            features: makes a pass over the data set and returns (rows, D) unit embeddings; costs nothing unless called.
            clock: where training stands.
        """

    def flag(self, contrast: Contrast, clock: Clock) -> Rules:
        """The rule for this contrast, without gradient. May update state that is kept for each sample.

        A tuple is a list of levels: the step averages their losses.
        """
        raise NotImplementedError
