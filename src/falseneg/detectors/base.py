"""What a detector is."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from falseneg.clock import Clock
from falseneg.contrast import Contrast
from falseneg.facts import Facts
from falseneg.rules import PairRule

Rules = PairRule | tuple[PairRule, ...]


class Detector(nn.Module):
    """Decides which negatives are suspected to be false. Open: write your own in one file."""

    def prepare(self, facts: Facts) -> None:
        """Called once before training: set what was left open, refuse what cannot work.

        Raises:
            ValueError: the detector cannot work with these facts.
        """

    def start_epoch(self, features: Callable[[], Tensor], clock: Clock) -> None:
        """Called at the start of each epoch. A signal may interrupt it; the resumed run then calls it again.

        Args:
            features: makes a pass over the data set and returns (rows, D) unit embeddings on the CPU, the same on every
                rank, all of which have to call it; costs nothing unless called. Float32, or float16 where the data set
                is large, mapped from a file that is there until this method returns.
            clock: where training stands.
        """

    def flag(self, contrast: Contrast, clock: Clock) -> Rules:
        """The rule for this contrast, without gradient. May update state that is kept for each sample.

        A tuple is a list of levels: the step averages their losses. `Tiers` are one rule whose pairs are treated
        differently, the surest first.
        """
        raise NotImplementedError

    def per_sample(self) -> Mapping[str, Tensor]:
        """What is held of each data-set row at the moment, by name, for metrics and the report; each (rows,).

        Floating point for a number (NaN where there is none yet), int64 for the number of a group (−1 for none).
        """
        return {}
