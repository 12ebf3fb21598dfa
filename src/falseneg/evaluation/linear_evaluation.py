"""Linear evaluation by gradient descent, as FNC and SimCLR publish it; and on cached features, in seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from falseneg.errors import UserError
from falseneg.evaluation.base import Figure, Protocol, Task
from falseneg.evaluation.checks import check_features
from falseneg.evaluation.features import evaluation_mode
from falseneg.evaluation.metrics import TOP_1, TOP_5, measure
from falseneg.evaluation.parts import Part, both, features_of_part
from falseneg.evaluation.sgd import Batches, FeatureBatches, ImageBatches, Recipe, crops_of, new_classifier, train


@dataclass(frozen=True)
class LinearEvaluation(Protocol):
    """A linear classifier on the frozen encoder, by SGD with Nesterov momentum, without weight decay; the last epoch counts.

    FNC (arXiv 2011.11765, section 4.2.1): 90 epochs, batch 1,024, rate .16, a cosine without warm-up; random crops of 20 to
    100% of the area and flips, as in its released code.

    Args:
        epochs: passes over the training images.
        batch_size: images in a step.
        learning_rate: at the first step.
        weight_decay: L2 penalty.
        crop_area: smallest and largest share of the area that a crop covers.
        cached: no crops: features are extracted once, and each epoch is seconds. Accuracy differs a little.
    """

    epochs: int = 90
    batch_size: int = 1024
    learning_rate: float = 0.16
    weight_decay: float = 0.0
    crop_area: tuple[float, float] = (0.2, 1.0)
    cached: bool = False

    name: ClassVar[str] = "linear"

    def run(self, task: Task) -> Sequence[Figure]:
        check_numbers(self.name, epochs=self.epochs, batch_size=self.batch_size, learning_rate=self.learning_rate)
        learnt, test, classes = both(task)
        area = None if self.cached else self.crop_area
        batches = linear_batches(learnt, self.batch_size, area, task)
        recipe = Recipe(self.epochs * batches.per_epoch, self.learning_rate, self.weight_decay)
        scores = linear_scores("linear", batches, recipe, test, classes, task)
        return [Figure("", metric, measure(metric, scores, test.targets)) for metric in (TOP_1, TOP_5)]


def check_numbers(name: str, **numbers: float) -> None:
    """Refuse settings that are not above 0.

    Raises:
        UserError: one is not.
    """
    for setting, value in numbers.items():
        if not value > 0:
            raise UserError(f"{name}: {setting} is {value}; give a number above 0")


def linear_batches(
    learnt: Part, batch_size: int, area: tuple[float, float] | None, task: Task, rows: Tensor | None = None
) -> Batches:
    """What a linear classifier on the frozen encoder learns from.

    Args:
        learnt: the images and their targets.
        batch_size: images in a step.
        area: of the random crops; None takes features of whole images, extracted once.
        task: encoder, size, seed.
        rows: of the images, if not all.
    """
    part = learnt if rows is None else learnt.rows(rows)
    if area is not None:
        return ImageBatches(part.images, part.targets, crops_of(task.size, area), batch_size, task, task.encoder)
    features = features_of_part("train", learnt.images, task)
    features = features if rows is None else features[rows]
    return FeatureBatches(features.to(task.device), part.targets.to(task.device), batch_size, task.seed)


def linear_scores(name: str, batches: Batches, recipe: Recipe, test: Part, classes: int, task: Task) -> Tensor:
    """(m, C) scores of the test images by a linear classifier that learns from batches of features.

    Raises:
        UserError: the features hold NaN or infinity, or the loss is no longer finite.
    """
    features = features_of_part("test", test.images, task)
    check_features("test", features, test.targets)
    classifier: nn.Linear = new_classifier(features.shape[1], classes, task)
    with evaluation_mode(task.encoder):
        train(name, classifier, batches, recipe, task)
    scores: Tensor = classifier(features.to(task.device)).detach().cpu()
    return scores
