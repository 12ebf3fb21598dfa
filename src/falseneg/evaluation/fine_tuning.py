"""Transfer to other data sets by fine-tuning, as SimCLR and FNC publish it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from falseneg.data.image_set import ImageSet
from falseneg.evaluation.base import Figure, Protocol, Task
from falseneg.evaluation.features import evaluation_mode
from falseneg.evaluation.linear_evaluation import check_numbers
from falseneg.evaluation.metrics import measure
from falseneg.evaluation.parts import Part, scores_of
from falseneg.evaluation.semi_supervised import with_classifier
from falseneg.evaluation.sgd import ImageBatches, Recipe, crops_of, train
from falseneg.evaluation.transfer import classes_of, over_sets
from falseneg.evaluation.transfer_sets import TRANSFER_SETS, Parts

RATES = tuple(10 ** (-4 + 3 * step / 6) for step in range(7))
DECAYS = (0.0, *(10 ** (-6 + 3 * step / 6) for step in range(7)))


@dataclass(frozen=True)
class FineTuning(Protocol):
    """The whole network learns each of other data sets (SimCLR, arXiv 2002.05709, section B.8.2; FNC's table 7).

    SGD with Nesterov momentum, batch 256, 20,000 steps along a cosine, random crops and flips; BatchNorm's statistics have the
    momentum max(1 − 10 / steps an epoch, .9). Of the grid of rates and decays the pair with the best figure on the validation
    set is taken, then training and validation images are learnt together. Test images choose nothing. As published that
    is 57 trainings for each set: shorten the grid and the steps to what you can afford, and say so beside the figures.

    Args:
        root: the folder that holds the sets; see the protocol "transfer".
        sets: which of them.
        download: fetch sets that are not there.
        learning_rates: to choose from; 7 from 1e-4 to .1.
        weight_decays: to choose from, each divided by the learning rate; 0, and 7 from 1e-6 to 1e-3.
        steps: of each training.
        batch_size: images in a step.
        crop_area: smallest and largest share of the area that a crop covers.
    """

    root: str = "data"
    sets: tuple[str, ...] = tuple(TRANSFER_SETS)
    download: bool = False
    learning_rates: tuple[float, ...] = RATES
    weight_decays: tuple[float, ...] = DECAYS
    steps: int = 20_000
    batch_size: int = 256
    crop_area: tuple[float, float] = (0.08, 1.0)

    name: ClassVar[str] = "fine-tuning"
    wants: ClassVar[tuple[str, ...]] = ()

    def run(self, task: Task) -> Sequence[Figure]:
        rate, grid = min(self.learning_rates, default=0.0), len(self.weight_decays)
        check_numbers(self.name, steps=self.steps, batch_size=self.batch_size, learning_rates=rate, weight_decays=grid)
        return over_sets(self.name, self.sets, self.root, self.download, task, self._measured)

    def _measured(self, name: str, parts: Parts, task: Task) -> tuple[float, Mapping[str, Any]]:
        classes, metric = classes_of(parts), TRANSFER_SETS[name].metric
        pairs = [(rate, decay) for rate in self.learning_rates for decay in self.weight_decays]
        tried: dict[tuple[float, float], float] = {}
        for rate, decay in pairs if len(pairs) > 1 else []:
            piece = f"{name}, rate {rate:.2g}, decay {decay:.2g}"

            def on_validation(rate: float = rate, decay: float = decay, piece: str = piece) -> float:
                scores = self._scores(piece, (rate, decay), parts.train, parts.validation.images, classes, task)
                return measure(metric, scores, parts.validation.targets)

            tried[rate, decay] = task.pieces.figures(piece, on_validation)
            task.pieces.drop(piece)
        best = max(tried, key=lambda pair: tried[pair]) if tried else pairs[0]
        both = joined(parts.train, parts.validation)
        scores = self._scores(name, best, both, parts.test.images, classes, task)
        task.pieces.drop(name)
        return measure(metric, scores, parts.test.targets), {
            "learning rate": best[0],
            "weight decay": best[1],
            "validation": tried.get(best),
        }

    def _scores(
        self, piece: str, pair: tuple[float, float], learnt: Part, measured: ImageSet, classes: int, task: Task
    ) -> Tensor:
        model = with_classifier(task, classes)
        batches = ImageBatches(
            learnt.images, learnt.targets, crops_of(task.size, self.crop_area), self.batch_size, task
        )
        for part in model.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                part.momentum = min(10 / batches.per_epoch, 0.1)
        rate, decay = pair
        train(piece, model.train(), batches, Recipe(self.steps, rate, decay / rate), task)
        with evaluation_mode(model):
            return scores_of(model, measured, task)


def joined(first: Part, second: Part) -> Part:
    """The images of both, one after the other."""
    return Part(_Joined(first.images, second.images), torch.cat([first.targets, second.targets]))


class _Joined(ImageSet):
    def __init__(self, first: ImageSet, second: ImageSet) -> None:
        self.first, self.second = first, second

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    def image(self, row: int) -> Tensor:
        before = len(self.first)
        return self.first.image(row) if row < before else self.second.image(row - before)
