"""What an objective is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from falseneg.clock import Clock
from falseneg.contrast import Contrast
from falseneg.facts import Facts
from falseneg.strategy import Strategy

if TYPE_CHECKING:
    from falseneg.statistics import NegativeStats


class Objective(nn.Module):
    """Turns the statistics of the negatives into one loss for each anchor, in O(N). It never sees a matrix or a rank."""

    def prepare(self, facts: Facts) -> None:
        """Called once before training: allocate what is kept for each sample, refuse what cannot work.

        Raises:
            ValueError: the objective cannot work with these facts.
        """

    def observe(
        self, contrast: Contrast, levels: Sequence[NegativeStats], tau: Tensor, strategy: Strategy, clock: Clock
    ) -> None:
        """Called once for each contrast of a step, before the losses: update what is kept for each sample.

        Args:
            contrast: as in `forward`.
            levels: the statistics of each level of the detector's rules; one, unless it has several.
            tau: as in `forward`.
            strategy: as in `forward`.
            clock: where training stands.
        """

    def forward(
        self, contrast: Contrast, stats: NegativeStats, tau: Tensor, strategy: Strategy, clock: Clock | None = None
    ) -> Tensor:
        """(N,) losses, in nats.

        Args:
            contrast: its ``positives`` (N, P) are the cosines with the known positives.
            stats: the statistics of the negatives.
            tau: () or (N,) temperature, of a cosine.
            strategy: what happens to flagged pairs, unless their tier has a strategy of its own: the statistics weigh each pair
                as it should be.
            clock: where training stands, for objectives with a schedule.
        """
        raise NotImplementedError
