"""What every evaluation of frozen features is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor


class Split(NamedTuple):
    """Features and labels to learn from and to measure on; all on one device, whichever that is.

    Attributes:
        train: (n, F) features to learn from.
        train_labels: (n,) integers of at least 0.
        test: (m, F) features to measure on.
        test_labels: (m,) integers of at least 0.
    """

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


@dataclass(frozen=True)
class Measure(ABC):
    """A figure of what was trained, and what it is called wherever it is shown.

    Attributes:
        key: its name in metrics.jsonl, results.json and on the command line.
        short: its name at the head of a column.
        note: how to read it, in a sentence.
    """

    key: ClassVar[str]
    short: ClassVar[str]
    note: ClassVar[str]

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of all its figures."""
        return (self.key,)

    @property
    @abstractmethod
    def title(self) -> str:
        """Its name in a line of text, with what it was set to."""


class Evaluation(Measure):
    """One accuracy of frozen features, and how it is measured."""

    @abstractmethod
    def figures(self, split: Split, seed: int) -> dict[str, float | None]:
        """The accuracy by its key, a share in [0, 1], and what else is in `keys`; None where these labels do not allow it.

        Args:
            split: the features.
            seed: of what is drawn.

        Raises:
            UserError: the features cannot be measured (`check_split`).
        """
