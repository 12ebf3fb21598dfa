"""What every evaluation of frozen features is, and every protocol: a published way of saying what an encoder is worth."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from falseneg.evaluation.pieces import Pieces

if TYPE_CHECKING:
    from falseneg.data.image_set import ImageSet
    from falseneg.models import ProjectionHead


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


@dataclass(frozen=True)
class Figure:
    """One figure of a protocol.

    Attributes:
        on: what it was measured on or with: "10% of the labels", "CIFAR10"; empty where there is one thing only.
        metric: "top-1", "top-5", "mean per class", "11-point mAP", "AP50" and so on.
        value: a share in [0, 1]; None where these data do not allow it.
        sd: sample standard deviation over draws, if there are several.
        details: what else is worth knowing, such as the penalty that was chosen.
    """

    on: str
    metric: str
    value: float | None
    sd: float | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Task:
    """What a protocol works on.

    Attributes:
        encoder: (B, 3, size, size) uint8 images to (B, F) features; on ``device`` already.
        size: side of the images, in pixels.
        train: images to learn from; None where the protocol brings its own.
        test: labelled images to measure on; likewise.
        head: the projection head that the encoder was trained with, if the protocol asked for it.
        seed: of all draws.
        device: where the encoder lies.
        workers: processes that read images.
        pieces: what is done already; makes it possible to stop and go on.
        progress: called with what is being done, how much of it is done, and how much there is.
    """

    encoder: nn.Module
    size: int
    train: ImageSet | None = None
    test: ImageSet | None = None
    head: ProjectionHead | None = None
    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    workers: int = 0
    pieces: Pieces = field(default_factory=Pieces)
    progress: Callable[[str, int, int], None] = lambda what, done, total: None


@dataclass(frozen=True)
class Protocol(ABC):
    """A published way of saying what an encoder is worth. Its settings are its constructor's arguments.

    Attributes:
        name: what the command line and results call it.
        wants: which of "train" and "test" it needs; a protocol that brings its own data needs neither.
    """

    name: ClassVar[str]
    wants: ClassVar[tuple[str, ...]] = ("train", "test")

    @property
    def head_layers(self) -> int:
        """Layers of the projection head that it needs."""
        return 0

    def image_size(self, usual: int) -> int:
        """Side of the images in pixels; ``usual`` is the encoder's own."""
        return usual

    def settings(self) -> dict[str, Any]:
        """Everything that it was set to."""
        return dataclasses.asdict(self)

    @abstractmethod
    def run(self, task: Task) -> Sequence[Figure]:
        """Its figures.

        Raises:
            UserError: a setting or the data do not allow it.
        """
