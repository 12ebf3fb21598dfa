"""Accuracy of the weighted nearest neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from falseneg.errors import UserError
from falseneg.evaluation.base import Evaluation, Split
from falseneg.evaluation.checks import check_split, class_numbers

_TILE = 2**24
"""Similarities held at a time: 64 MiB in float32."""


def knn_accuracy(
    train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, k: int = 20, temperature: float = 0.1
) -> float:
    """The share of test images that their nearest training images classify correctly.

    Each of the k training images with the largest cosine s votes for its class with weight exp(s / temperature)
    (Wu et al., 2018, section 3.4); the class with the largest sum wins, the lower label if sums are equal. Where
    training images at the k-th place are equally near, which of them vote is not defined.

    Args:
        train: (n, F) features that may be looked up.
        train_labels: (n,) integers of at least 0.
        test: (m, F) features to classify.
        test_labels: (m,) integers of at least 0; a class that training never shows counts as wrong.
        k: neighbours that vote, at least 1; no more than n are used.
        temperature: of the cosine, above 0.

    Returns:
        A share in [0, 1]. Costs O(n · m · F) time; memory beyond one copy of the features is bounded (tiles of
        2^24 similarities), whatever n and m.

    Raises:
        UserError: k or temperature is out of range, or the features cannot be measured (`check_split`).
    """
    if k < 1:
        raise UserError(f"kNN: k is {k}; give the number of neighbours that vote, at least 1")
    if not temperature > 0:
        raise UserError(f"kNN: temperature is {temperature}; give a number above 0 (0.1 is usual)")
    check_split(train, train_labels, test, test_labels)
    of_train, of_test, classes = class_numbers(train_labels, test_labels)
    k = min(k, len(train))
    bank = F.normalize(train.float(), dim=1)
    right = 0
    for rows in torch.arange(len(test)).split(max(1, _TILE // max(len(bank), classes))):
        tile = slice(int(rows[0]), int(rows[-1]) + 1)
        nearest, index = (F.normalize(test[tile].float(), dim=1) @ bank.T).topk(k, dim=1)
        weight = ((nearest - nearest[:, :1]) / temperature).exp()  # relative to the nearest: cannot overflow
        votes = weight.new_zeros(len(rows), classes).scatter_add_(1, of_train[index], weight)
        right += int((votes.argmax(dim=1) == of_test[tile]).sum())
    return right / len(test)


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
