"""Fine-tuning with a part of the labels, as SimCLR and FNC publish it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import ClassVar

import torch
from torch import Tensor, nn

from falseneg.data.image_set import ImageSet
from falseneg.errors import UserError
from falseneg.evaluation.base import Figure, Protocol, Task
from falseneg.evaluation.features import evaluation_mode
from falseneg.evaluation.label_fractions import check_shares, draw_share, words_of
from falseneg.evaluation.linear_evaluation import check_numbers
from falseneg.evaluation.metrics import TOP_1, TOP_5, measure
from falseneg.evaluation.parts import Part, both, scores_of
from falseneg.evaluation.sgd import ImageBatches, Recipe, crops_of, new_classifier, train
from falseneg.models.encoder import Encoder


@dataclass(frozen=True)
class SemiSupervised(Protocol):
    """The whole network learns from 1 and 10% of the labels; the accuracy is that of the last epoch.

    FNC (arXiv 2011.11765, section 4.2.1): LARS, batch 1,024, rate .16, no decay and no warm-up, 60 epochs with 1% and 30 with
    10%; with 1% from the first layer of the head on, which is ``layers`` 1. Random crops of 20 to 100% of the area and flips.

    Args:
        shares: of the labelled images, drawn class by class with the seed, at least one of each class.
        epochs: passes over them, for each share.
        lists: files instead of the draw, one for each share, that name images one a line, such as SimCLR's 1percent.txt.
        layers: of the projection head that stay between the encoder and the classifier, for each share.
        lars: LARS; false for SGD with Nesterov momentum.
        learning_rate: at the first step.
        weight_decay: L2 penalty on weights.
        batch_size: images in a step; all images where there are fewer.
        crop_area: smallest and largest share of the area that a crop covers.
    """

    shares: tuple[float, ...] = (0.01, 0.1)
    epochs: tuple[int, ...] = (60, 30)
    lists: tuple[str, ...] = ()
    layers: tuple[int, ...] = (0, 0)
    lars: bool = True
    learning_rate: float = 0.16
    weight_decay: float = 0.0
    batch_size: int = 1024
    crop_area: tuple[float, float] = (0.2, 1.0)

    name: ClassVar[str] = "semi-supervised"

    @property
    def head_layers(self) -> int:
        return max(self.layers, default=0)

    def run(self, task: Task) -> Sequence[Figure]:
        check_shares(self.name, self.shares, self.epochs)
        check_numbers(self.name, batch_size=self.batch_size, learning_rate=self.learning_rate)
        for what, given in (("lists", self.lists), ("layers", self.layers)):
            if given and len(given) != len(self.shares):
                raise UserError(
                    f"{self.name}: there are {len(self.shares)} shares and {len(given)} {what}; give as many"
                )
        learnt, test, classes = both(task)
        drawn = [
            self._rows(place, learnt, task) for place in range(len(self.shares))
        ]  # what is wrong is said before training
        found = []
        for place, (share, rows) in enumerate(zip(self.shares, drawn, strict=True)):
            scores = self._scores(place, learnt.rows(rows), test, classes, task)
            details = {"images": len(rows), "epochs": self.epochs[place]}
            found += [
                Figure(words_of(share), metric, measure(metric, scores, test.targets), details=details)
                for metric in (TOP_1, TOP_5)
            ]
        return found

    def _rows(self, place: int, learnt: Part, task: Task) -> Tensor:
        if not self.lists:
            return draw_share(learnt.targets, self.shares[place], task.seed)
        return listed_rows(Path(self.lists[place]), learnt.images)

    def _scores(self, place: int, part: Part, test: Part, classes: int, task: Task) -> Tensor:
        layers = self.layers[place] if self.layers else 0
        model = with_classifier(task, classes, layers)
        batches = ImageBatches(part.images, part.targets, crops_of(task.size, self.crop_area), self.batch_size, task)
        steps = self.epochs[place] * batches.per_epoch
        recipe = Recipe(steps, self.learning_rate, self.weight_decay, self.lars)
        name = f"fine-tuning, {self.shares[place]:.3g} of the labels"
        train(name, model.train(), batches, recipe, task)
        with evaluation_mode(model):
            return scores_of(model, test.images, task)


def with_classifier(task: Task, classes: int, layers: int = 0) -> nn.Sequential:
    """A copy of the encoder, the first layers of its head, and a new linear classifier; all of it learns, BatchNorm included."""
    encoder = copy.deepcopy(task.encoder)
    for module in encoder.modules():
        if isinstance(module, Encoder):
            # As published; it is frozen for contrastive training from given weights only.
            module.frozen_batch_norm = False
    parts: list[nn.Module] = [encoder]
    if layers:
        assert task.head is not None
        parts.append(copy.deepcopy(task.head).first(layers))
    tower = nn.Sequential(*parts).to(task.device).requires_grad_(True)
    with evaluation_mode(tower), torch.no_grad():
        width = tower(torch.zeros(1, 3, task.size, task.size, dtype=torch.uint8, device=task.device)).shape[1]
    return nn.Sequential(tower, new_classifier(width, classes, task))


def listed_rows(path: Path, images: ImageSet) -> Tensor:
    """The rows of the images that a file names one a line, by the last part of the name (n01440764_10026.JPEG).

    Raises:
        UserError: the file cannot be read, or names an image that is not there, or one that is there twice.
    """
    try:
        wanted = [PurePosixPath(line.strip()).name for line in path.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"the list {path} cannot be read ({error}); give a text file that names one image a line"
        ) from error
    if not wanted:
        raise UserError(f"the list {path} names no images; give a text file that names one image a line")
    places: dict[str, list[int]] = {}
    for row in range(len(images)):
        places.setdefault(PurePosixPath(images.describe(row)).name, []).append(row)
    if missing := [name for name in wanted if name not in places]:
        raise UserError(
            f"{path} names {len(missing)} of {len(wanted)} images that are not among the labelled ones, such as {missing[0]}; "
            f"those are named like {images.describe(0)}"
        )
    if twice := [name for name in wanted if len(places[name]) > 1]:
        raise UserError(
            f"{path} names {twice[0]}, and there are {len(places[twice[0]])} images of that name; give unique names"
        )
    return torch.tensor(sorted({places[name][0] for name in wanted}))
