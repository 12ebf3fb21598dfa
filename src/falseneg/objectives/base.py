"""What an objective is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from falseneg.clock import Clock
from falseneg.contrast import Contrast
from falseneg.strategy import Strategy

if TYPE_CHECKING:
    from falseneg.statistics import NegativeStats


class Objective(nn.Module):
    """Turns the statistics of the negatives into one loss for each anchor, in O(N). It never sees a matrix or a rank."""

    def forward(
        self, contrast: Contrast, stats: NegativeStats, tau: Tensor, strategy: Strategy, clock: Clock | None = None
    ) -> Tensor:
        """(N,) losses, in nats.

        Args:
            contrast: its ``positives`` (N, P) are the cosines with the known positives.
            stats: the statistics of the negatives.
            tau: () or (N,) temperature, of a cosine.
            strategy: what happens to flagged pairs.
            clock: where training stands, for objectives with a schedule.
        """
        raise NotImplementedError
