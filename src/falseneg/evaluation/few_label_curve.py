"""Accuracy against the number of labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from falseneg.errors import UserError
from falseneg.evaluation.base import Figure, Protocol, Task
from falseneg.evaluation.few_label import few_label_accuracy
from falseneg.evaluation.linear_evaluation import check_numbers
from falseneg.evaluation.metrics import TOP_1
from falseneg.evaluation.parts import split_of

_STRENGTH = 5.0
"""The penalty times the labels of a class: that of `few_label_accuracy` at its usual 5 labels."""


@dataclass(frozen=True)
class FewLabelCurve(Protocol):
    """Logistic regression on frozen features with n labelled images of each class, over several draws, for several n.

    As `few_label_accuracy`, with a penalty of 5 / n: the same weight beside the summed loss for all n.

    Args:
        labels: the numbers n.
        draws: how many times images are drawn for each n.
    """

    labels: tuple[int, ...] = (1, 2, 5, 10, 20, 50, 100)
    draws: int = 10

    name: ClassVar[str] = "few-label"

    def run(self, task: Task) -> Sequence[Figure]:
        if not self.labels or min(self.labels) < 1:
            raise UserError(f"{self.name}: labels is {list(self.labels)}; give numbers of at least 1")
        check_numbers(self.name, draws=self.draws)
        split, _ = split_of(task)
        fewest = int(torch.unique(split.train_labels, return_counts=True)[1].min())
        found = []
        for done, number in enumerate(self.labels):
            on = f"{number} label{'' if number == 1 else 's'} a class"

            def measured(number: int = number) -> list[float | None]:
                if number > fewest:
                    return [None, None]
                draws = few_label_accuracy(*split, number, self.draws, task.seed, _STRENGTH / number)
                return [draws.mean, draws.sd]

            mean, sd = task.pieces.figures(f"labels-{number}", measured)
            details = {"fewest labels of a class": fewest} if mean is None else {"draws": self.draws}
            found.append(Figure(on, TOP_1, mean, sd, details))
            task.progress(self.name, done + 1, len(self.labels))
        return found
