"""What a detector is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor, nn

from falseneg.clock import Clock
from falseneg.contrast import Contrast
from falseneg.errors import UserError
from falseneg.facts import Facts
from falseneg.rules import PairRule

Rules = PairRule | tuple[PairRule, ...]


class Features(Protocol):
    """Passes over the data set, each made when it is asked for. Costs nothing unless asked.

    What comes back is on the CPU and the same on every rank, all of which have to ask. With two towers, the ``modality``
    "text" is that of the captions instead of the images; of a row with several, their mean counts.
    """

    def __call__(self, modality: str = "image") -> Tensor:
        """(rows, D) unit embeddings of all images without augmentation, or of all captions, as the loss compares them.

        Float32, or float16 where the data set is large, mapped from a file that is there until `Detector.start_epoch` ends.
        """
        ...

    def encoded(self, encoder: nn.Module | None = None, modality: str = "image") -> Tensor:
        """(rows, F) features of all images without augmentation, or of all captions, before any head.

        Float32 or float16, as above.

        Args:
            encoder: of images, instead of the one that trains.
            modality: "image" or "text".
        """
        ...

    def of_views(self, row: Tensor, views: int, encoder: nn.Module | None = None) -> Tensor:
        """(n, V, F) float32 features of random views of some images, as training makes them; of another encoder if given.

        Args:
            row: (n,) int64, the images, held in memory together.
            views: V, how many of each.
            encoder: None for the one that trains.
        """
        ...


def check_modality(owner: str, modality: str, facts: Facts) -> None:
    """Refuse a modality of which there are no `Features`.

    Raises:
        UserError: the method does not embed it.
    """
    if modality not in facts.modalities:
        raise UserError(
            f"{owner}: modality is {modality!r}, and there is {' and '.join(map(repr, facts.modalities))} to look at; give one of "
            "these, or a method with two towers"
        )


class Detector(nn.Module):
    """Decides which negatives are suspected to be false. Open: write your own in one file."""

    def prepare(self, facts: Facts) -> None:
        """Called once before training: set what was left open, refuse what cannot work.

        Raises:
            ValueError: the detector cannot work with these facts.
        """

    def start_epoch(self, features: Features, clock: Clock) -> None:
        """Called at the start of each epoch. A signal may interrupt it; the resumed run then calls it again.

        Args:
            features: makes passes over the data set.
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

    def figures(self) -> Mapping[str, float]:
        """What is known of the detection as a whole at the moment, by name, for the metrics at the end of an epoch."""
        return {}
