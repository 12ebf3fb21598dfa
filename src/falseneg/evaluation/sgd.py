"""Training a classifier by gradient descent: on cached features, on crops seen by a frozen encoder, or with the encoder."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from falseneg.data.loader import EpochSampler, ViewSet, view_loader
from falseneg.data.views import Augmentation, view_generator_seed
from falseneg.errors import UserError
from falseneg.evaluation.base import Task
from falseneg.evaluation.metrics import classification_loss
from falseneg.lars import LarsSteps
from falseneg.schedule import cosine_weights

if TYPE_CHECKING:
    from falseneg.data.image_set import ImageSet

KEEP_EVERY = 60.0
"""Seconds from one stored state to the next."""
_STEP = -2  # the "row" of the seed of a step, for networks that draw numbers (dropout)
_TRUST = 1e-3


@dataclass(frozen=True)
class Recipe:
    """How a classifier is trained. The rate falls from its start to 0 along half a cosine, without a warm-up.

    Attributes:
        steps: of the optimiser.
        learning_rate: at the first step.
        weight_decay: L2 penalty on weights, not on norms and biases.
        lars: LARS (trust .001), not SGD.
        momentum: of both.
        nesterov: look ahead, as SGD may.
    """

    steps: int
    learning_rate: float
    weight_decay: float = 0.0
    lars: bool = False
    momentum: float = 0.9
    nesterov: bool = True


class Batches(Protocol):
    """Inputs and targets, epoch by epoch; what comes in an epoch depends on its number alone."""

    @property
    def per_epoch(self) -> int:
        """Batches in an epoch."""
        ...

    def epoch(self, number: int, start: int) -> Iterator[tuple[Any, Any]]:
        """The batches of an epoch from that one on."""
        ...


@dataclass(frozen=True, eq=False)
class FeatureBatches:
    """Batches of features that are in memory. The last, incomplete batch of an epoch is dropped, as of images.

    Attributes:
        features: (n, F).
        targets: (n,) or (n, C).
        batch_size: rows in a batch.
        seed: of the order.
    """

    features: Tensor
    targets: Tensor
    batch_size: int
    seed: int

    @property
    def per_epoch(self) -> int:
        return max(1, len(self.features) // self.batch_size)

    def epoch(self, number: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(view_generator_seed(self.seed, number, -1, 0))
        order = torch.randperm(len(self.features), generator=generator).to(self.features.device)
        size = min(self.batch_size, len(order))
        for batch in range(start, self.per_epoch):
            rows = order[batch * size : (batch + 1) * size]
            yield self.features[rows], self.targets[rows]


class ImageBatches:
    """Batches of random crops.

    Args:
        images: the images.
        targets: (n,) or (n, C).
        view: how a crop is made of an image.
        batch_size: images in a batch.
        task: seed, device and workers.
        frozen: what the crops go through first, in evaluation mode and without gradient; None for nothing.
    """

    def __init__(
        self,
        images: ImageSet,
        targets: Tensor,
        view: Augmentation,
        batch_size: int,
        task: Task,
        frozen: nn.Module | None = None,
    ) -> None:
        self.sampler = EpochSampler(len(images), batch_size, task.seed)
        self.loader = view_loader(
            ViewSet(images, {"image": [view]}, task.seed), self.sampler, task.workers, task.device
        )
        self.targets, self.device, self.frozen = targets, task.device, frozen
        self.per_epoch = self.sampler.batches_per_epoch

    def epoch(self, number: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        self.sampler.set_epoch(number, start)
        for batch in self.loader:
            inputs = batch.streams["image"][:, 0].to(self.device)
            if self.frozen is not None:
                with torch.no_grad():
                    inputs = self.frozen(inputs)
            yield inputs, self.targets[batch.index].to(self.device)


def crops_of(size: int, area: tuple[float, float]) -> Augmentation:
    """Random crops and flips, and no other change: what classifiers are trained on in SimCLR and FNC."""
    return Augmentation(size, area, bicubic=True, jitter=0.0, grayscale=0.0, blur=0.0)


def train(name: str, model: nn.Module, batches: Batches, recipe: Recipe, task: Task) -> None:
    """Train all of a model whose parameters want it; goes on where an earlier process was stopped.

    The same seed gives the same weights, whether it was stopped or not. Modes (training, evaluation) stay as they are.

    Args:
        name: of the piece under which it is kept, and of what is being done.
        model: inputs to (B, C) scores.
        batches: what it learns from.
        recipe: how.
        task: seed, pieces and progress.

    Raises:
        UserError: the loss is no longer finite.
    """
    parameters = [each for each in model.parameters() if each.requires_grad]
    descent = Descent(
        _optimiser(parameters, recipe),
        recipe.steps,
        lambda step: recipe.learning_rate * cosine_weights(step, recipe.steps)[0],
        lambda inputs, targets: classification_loss(model(inputs), targets),
    )
    descend(name, model, batches, descent, task)


@dataclass(frozen=True, eq=False)
class Descent:
    """What is minimised, and how.

    Attributes:
        optimiser: of the parameters.
        steps: of the optimiser.
        rate: from the number of a step, from 0, to its learning rate.
        loss: from the inputs and targets of a batch to what is minimised, ().
    """

    optimiser: torch.optim.Optimizer
    steps: int
    rate: Callable[[int], float]
    loss: Callable[[Any, Any], Tensor]


def descend(name: str, model: nn.Module, batches: Batches, descent: Descent, task: Task) -> None:
    """Minimise a loss; see `train`, which says what of this is kept and repeatable."""
    optimiser, step = descent.optimiser, 0
    if (stored := task.pieces.state(name)) is not None:
        model.load_state_dict(stored["model"])
        optimiser.load_state_dict(stored["optimiser"])
        step = int(stored["step"])

    def keep() -> None:
        task.pieces.keep(name, {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "step": step})

    kept = time.monotonic()
    with torch.enable_grad(), torch.random.fork_rng([task.device] if task.device.type == "cuda" else []):
        try:
            while step < descent.steps:
                for inputs, targets in batches.epoch(*divmod(step, batches.per_epoch)):
                    torch.manual_seed(view_generator_seed(task.seed, step, _STEP, 0))
                    for group in optimiser.param_groups:
                        group["lr"] = descent.rate(step)
                    _step(name, optimiser, descent.loss, inputs, targets)
                    step += 1
                    task.progress(name, step, descent.steps)
                    if step == descent.steps:
                        break
                    if time.monotonic() - kept > KEEP_EVERY:
                        keep()
                        kept = time.monotonic()
        except KeyboardInterrupt:
            keep()
            raise
    keep()


def _step(
    name: str, optimiser: torch.optim.Optimizer, loss_of: Callable[[Any, Any], Tensor], inputs: Any, targets: Any
) -> None:
    optimiser.zero_grad()
    loss = loss_of(inputs, targets)
    if not math.isfinite(float(loss.detach())):
        raise UserError(f"{name}: the loss is no longer a finite number; give a lower learning rate")
    loss.backward()
    optimiser.step()


def _optimiser(parameters: list[nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    weights = {"params": [each for each in parameters if each.ndim >= 2], "weight_decay": recipe.weight_decay}
    others = {"params": [each for each in parameters if each.ndim < 2], "weight_decay": 0.0}
    if recipe.lars:
        groups = [{**weights, "trust": _TRUST}, {**others, "trust": None}]
        return LarsSteps(groups, recipe.learning_rate, recipe.momentum)
    return torch.optim.SGD([weights, others], recipe.learning_rate, momentum=recipe.momentum, nesterov=recipe.nesterov)


def new_classifier(width: int, classes: int, task: Task) -> nn.Linear:
    """A linear layer on the task's device: weights drawn with a deviation of .01, as in SimCLR's released code; biases 0."""
    layer = nn.Linear(width, classes)
    generator = torch.Generator().manual_seed(task.seed)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(classes, width, generator=generator) * 0.01)
        layer.bias.zero_()
    return layer.to(task.device)
