"""Accuracy with a few labelled images of each class."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from falseneg.errors import UserError
from falseneg.evaluation.base import Evaluation, Split
from falseneg.evaluation.checks import check_split, class_numbers
from falseneg.evaluation.linear import Standard, share_right
from falseneg.evaluation.logistic import fit_logistic


@dataclass(frozen=True)
class Draws:
    """Accuracies of several draws of labelled images.

    Attributes:
        mean: over the draws; a share in [0, 1].
        sd: sample standard deviation over the draws (n − 1 in the denominator); None for a single draw.
        each: the accuracy of each draw.
    """

    mean: float
    sd: float | None
    each: tuple[float, ...]


def few_label_accuracy(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    per_class: int = 5,
    draws: int = 10,
    seed: int = 0,
    penalty: float = 1.0,
) -> Draws:
    """Accuracy of a linear classifier that sees only a few labelled images of each class, over several draws.

    Protocol: features are standardised with the mean and deviation of *all* training features (that needs no label);
    each draw takes ``per_class`` images of each class at random from the training part and fits the logistic regression
    of `fit_logistic` with a penalty fixed beforehand (as for the linear probe); all test images are classified. Which images are drawn depends on
    the training labels and the seed alone, so that encoders are compared on the same draws.

    Args:
        train: (n, F) features to draw from.
        train_labels: (n,) integers of at least 0.
        test: (m, F) features to classify.
        test_labels: (m,) integers of at least 0; a class that training never shows counts as wrong.
        per_class: labelled images of each class, at least 1.
        draws: how many times images are drawn, at least 1.
        seed: of the draws.
        penalty: of the squared weights, against the mean cross-entropy; above 0.

    Raises:
        UserError: a number is out of range, a class has fewer than ``per_class`` images, or the features cannot be
            measured (`check_split`).
    """
    for name, number in (("per_class", per_class), ("draws", draws)):
        if number < 1:
            raise UserError(f"few-label accuracy: {name} is {number}; give a whole number of at least 1")
    if not penalty > 0:
        raise UserError(f"few-label accuracy: penalty is {penalty}; give a number above 0 (1 is usual)")
    check_split(train, train_labels, test, test_labels)
    of_train, of_test, classes = class_numbers(train_labels, test_labels)
    counts = torch.bincount(of_train, minlength=classes)
    if int(counts.min()) < per_class:
        rarest = int(torch.unique(train_labels)[counts.argmin()])
        raise UserError(
            f"few-label accuracy: class {rarest} has {int(counts.min())} labelled training images, fewer than the "
            f"{per_class} of each class that were asked for; lower per_class"
        )
    standard = Standard.of(train)
    test_features = standard(test)
    generator = torch.Generator().manual_seed(seed)
    accuracies = []
    for _ in range(draws):
        rows = draw_rows(of_train.cpu(), per_class, generator).to(train.device)
        weight, bias = fit_logistic(standard(train[rows]), of_train[rows], classes, penalty)
        accuracies.append(share_right(test_features, of_test, weight, bias))
    sd = statistics.stdev(accuracies) if draws > 1 else None
    return Draws(statistics.fmean(accuracies), sd, tuple(accuracies))


def draw_rows(labels: Tensor, per_class: int | Tensor, generator: torch.Generator) -> Tensor:
    """Rows of ``per_class`` images of each class, drawn without replacement, ascending.

    Args:
        labels: (n,) integers, on the CPU; every class has at least ``per_class`` rows.
        per_class: rows of each class, one number or (C,) of them.
        generator: of the draw.
    """
    shuffled = torch.randperm(len(labels), generator=generator)
    by_class = shuffled[labels[shuffled].argsort(stable=True)]  # classes one after the other, each in random order
    counts = torch.bincount(labels)
    place = torch.arange(len(labels)) - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    wanted = torch.as_tensor(per_class).expand(len(counts))
    return by_class[place < torch.repeat_interleave(wanted, counts)].sort().values


@dataclass(frozen=True)
class FewLabel(Evaluation):
    """`few_label_accuracy` with that many labelled images of each class, drawn that many times; the accuracy is the mean."""

    per_class: int = 5
    draws: int = 10

    key: ClassVar[str] = "few_label"
    short: ClassVar[str] = "few-label"
    note: ClassVar[str] = "Test images that a linear classifier of a few labelled images classifies correctly."

    @property
    def title(self) -> str:
        return f"{self.per_class} label{'' if self.per_class == 1 else 's'} a class"

    @property
    def keys(self) -> tuple[str, ...]:
        """The mean, and the deviation over the draws."""
        return self.key, f"{self.key}_sd"

    def figures(self, split: Split, seed: int) -> dict[str, float | None]:
        fewest = int(torch.unique(split.train_labels, return_counts=True)[1].min())
        if fewest < self.per_class:
            return dict.fromkeys(self.keys)
        found = few_label_accuracy(*split, self.per_class, self.draws, seed)
        return dict(zip(self.keys, (found.mean, found.sd), strict=True))
