"""Accuracy of the weighted nearest neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from falseneg.errors import UserError
from falseneg.evaluation.base import Evaluation, Figure, Protocol, Split, Task
from falseneg.evaluation.checks import check_split, class_numbers
from falseneg.evaluation.metrics import TOP_1, TOP_5
from falseneg.evaluation.parts import split_of

_TILE = 2**24
"""Similarities held at a time: 64 MiB in float32."""


def knn_accuracy(
    train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, k: int = 20, temperature: float = 0.1
) -> float:
    """The share of test images that their nearest training images classify correctly: the first of `knn_accuracies`."""
    return knn_accuracies(Split(train, train_labels, test, test_labels), k, temperature)[0]


def knn_accuracies(
    split: Split, k: int = 20, temperature: float = 0.1, tops: tuple[int, ...] = (1,)
) -> tuple[float, ...]:
    """The share of test images whose class is among those that their nearest training images name first.

    Each of the k training images with the largest cosine s votes for its class with weight exp(s / temperature)
    (Wu et al., 2018, section 3.4); the class with the largest sum wins, the lower label if sums are equal. Where
    training images at the k-th place are equally near, which of them vote is not defined.

    Args:
        split: (n, F) features that may be looked up and (m, F) features to classify, with their labels; a test label that
            training never shows counts as wrong.
        k: neighbours that vote, at least 1; no more than n are used.
        temperature: of the cosine, above 0.
        tops: how many classes count as named, each at least 1; a class without a vote never does.

    Returns:
        For each of ``tops`` a share in [0, 1]. Costs O(n · m · F) time; memory beyond one copy of the features is bounded
        (tiles of 2^24 similarities), whatever n and m.

    Raises:
        UserError: k or temperature is out of range, or the features cannot be measured (`check_split`).
    """
    if k < 1:
        raise UserError(f"kNN: k is {k}; give the number of neighbours that vote, at least 1")
    if not temperature > 0:
        raise UserError(f"kNN: temperature is {temperature}; give a number above 0 (0.1 is usual)")
    check_split(*split)
    of_train, of_test, classes = class_numbers(split.train_labels, split.test_labels)
    k = min(k, len(split.train))
    bank = F.normalize(split.train.float(), dim=1)
    right = [0] * len(tops)
    for rows in torch.arange(len(split.test)).split(max(1, _TILE // max(len(bank), classes))):
        tile = slice(int(rows[0]), int(rows[-1]) + 1)
        nearest, index = (F.normalize(split.test[tile].float(), dim=1) @ bank.T).topk(k, dim=1)
        weight = ((nearest - nearest[:, :1]) / temperature).exp()  # relative to the nearest: cannot overflow
        votes = weight.new_zeros(len(rows), classes).scatter_add_(1, of_train[index], weight)
        ranked = votes.argsort(dim=1, descending=True, stable=True)[:, : max(tops)]
        hits = (ranked == of_test[tile][:, None]) & (votes.gather(1, ranked) > 0)
        right = [count + int(hits[:, :top].any(dim=1).sum()) for count, top in zip(right, tops, strict=True)]
    return tuple(count / len(split.test) for count in right)


@dataclass(frozen=True)
class KNN(Evaluation):
    """`knn_accuracy` with its usual settings."""

    key: ClassVar[str] = "knn"
    short: ClassVar[str] = "kNN"
    note: ClassVar[str] = "Test images that their nearest training images classify correctly."

    @property
    def title(self) -> str:
        return "nearest neighbours"

    def figures(self, split: Split, seed: int = 0) -> dict[str, float | None]:
        return {self.key: knn_accuracy(*split)}


@dataclass(frozen=True)
class NearestNeighbours(Protocol):
    """Weighted nearest neighbours on frozen features (Wu et al. 2018, arXiv 1805.01978).

    Args:
        k: neighbours that vote; 200 is usual on ImageNet, 20 in later work.
        temperature: of the cosine.
    """

    k: int = 20
    temperature: float = 0.1

    name: ClassVar[str] = "knn"

    def run(self, task: Task) -> Sequence[Figure]:
        split, _ = split_of(task)
        first, fifth = knn_accuracies(split, self.k, self.temperature, (1, 5))
        return [Figure("", TOP_1, first), Figure("", TOP_5, fifth)]
