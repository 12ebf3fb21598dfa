"""Linear evaluation with a part of the labels, as GloFND publishes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from falseneg.errors import UserError
from falseneg.evaluation.base import Figure, Protocol, Task
from falseneg.evaluation.few_label import draw_rows
from falseneg.evaluation.linear_evaluation import check_numbers, linear_batches, linear_scores
from falseneg.evaluation.metrics import TOP_1, TOP_5, measure
from falseneg.evaluation.parts import both
from falseneg.evaluation.sgd import Recipe


@dataclass(frozen=True)
class LabelFractions(Protocol):
    """A linear classifier on the frozen encoder that sees 100, 10, 1 and .1% of the labels (GloFND, arXiv 2502.20612).

    SGD with momentum .9 and a rate of .1 · batch / 256, without weight decay, along a cosine. The accuracy is that of the
    last epoch, where the released program reports the best epoch on the validation set, which nobody could know.

    Args:
        shares: of the labelled images, drawn class by class with the seed, at least one of each class.
        epochs: passes over them, for each share.
        batch_size: images in a step.
        crop_area: smallest and largest share of the area that a crop covers.
        cached: no crops: features are extracted once.
    """

    shares: tuple[float, ...] = (1.0, 0.1, 0.01, 0.001)
    epochs: tuple[int, ...] = (90, 285, 900, 900)
    batch_size: int = 256
    crop_area: tuple[float, float] = (0.08, 1.0)
    cached: bool = False

    name: ClassVar[str] = "label-fractions"

    def run(self, task: Task) -> Sequence[Figure]:
        check_shares(self.name, self.shares, self.epochs)
        check_numbers(self.name, batch_size=self.batch_size)
        learnt, test, classes = both(task)
        area = None if self.cached else self.crop_area
        found = []
        for share, epochs in zip(self.shares, self.epochs, strict=True):
            rows = draw_share(learnt.targets, share, task.seed)
            batches = linear_batches(learnt, self.batch_size, area, task, rows)
            rate = 0.1 * min(self.batch_size, len(rows)) / 256
            recipe = Recipe(epochs * batches.per_epoch, rate, nesterov=False)
            scores = linear_scores(f"linear, {share:.3g} of the labels", batches, recipe, test, classes, task)
            details = {"images": len(rows), "epochs": epochs}
            found += [
                Figure(words_of(share), metric, measure(metric, scores, test.targets), details=details)
                for metric in (TOP_1, TOP_5)
            ]
        return found


def words_of(share: float) -> str:
    """What a share is called, such as: 10% of the labels."""
    return f"{100 * share:.3g}% of the labels"


def check_shares(name: str, shares: Sequence[float], epochs: Sequence[int]) -> None:
    """Refuse shares of labels that cannot be.

    Raises:
        UserError: there are none, or not as many epochs, or one is outside its range.
    """
    if len(shares) != len(epochs) or not shares:
        raise UserError(f"{name}: there are {len(shares)} shares and {len(epochs)} epochs; give as many of both")
    if not all(0 < share <= 1 for share in shares):
        raise UserError(f"{name}: shares is {list(shares)}; give numbers above 0 and up to 1 (0.01 is 1%)")
    check_numbers(name, epochs=min(epochs))


def draw_share(labels: Tensor, share: float, seed: int) -> Tensor:
    """Rows of a share of each class, drawn without replacement, ascending; at least one of each class.

    Args:
        labels: (n,) int64 classes from 0.
        share: above 0, up to 1.
        seed: of the draw; a smaller share draws a part of what a larger one draws.
    """
    wanted = (torch.bincount(labels) * share).round().clamp(min=1)
    return draw_rows(labels, wanted, torch.Generator().manual_seed(seed))
