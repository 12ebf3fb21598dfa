"""Transfer to object detection on PASCAL VOC, as MoCo and FNC publish it."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from falseneg.errors import UserError
from falseneg.evaluation.base import Figure, Protocol, Task
from falseneg.evaluation.detection_metrics import (
    THRESHOLDS,
    Boxes,
    Detected,
    check_coco,
    coco_average_precisions,
    voc_average_precisions,
)
from falseneg.evaluation.detector import (
    detector_optimiser,
    faster_rcnn,
    resnet_of,
    running_statistics,
    settle_batch_norm,
)
from falseneg.evaluation.linear_evaluation import check_numbers
from falseneg.evaluation.scenes import SceneBatches, images_of
from falseneg.evaluation.sgd import Descent, descend
from falseneg.evaluation.voc import VOC_CLASSES, Scenes, open_voc

AP50, AP75, AP = "AP50", "AP75", "AP"
VOC_TEST = "VOC2007 test"
_SETTLING = 200
"""Batches over which BatchNorm's statistics are taken, as in MoCo's configuration."""
_SLOWEST = 1e-3
"""The share of the learning rate that the warm-up starts from."""
_AT_ONCE = 500
"""Test images whose detections are kept together."""


@dataclass(frozen=True)
class VocDetection(Protocol):
    """Faster R-CNN with a C4 backbone, fine-tuned on VOC trainval07+12, measured on test2007 (FNC's table 8).

    FNC (arXiv 2011.11765, section 4.2.2) takes MoCo's set-up with 34,000 iterations and its own steps: SGD, momentum .9,
    weight decay 1e-4, short side 480 to 800 in training and 800 in testing, mirrored images, all BatchNorm trained over the
    whole batch and its statistics taken afresh from 200 batches; difficult objects are learnt, too. For a ResNet of any
    depth. AP50 is that of the VOC 2007
    development kit (11 points, difficult objects do not count). AP75 and AP (the mean over .5, .55, …, .95) are the same
    11-point figure at those overlaps: what detectron2, and so MoCo's tables, report for test2007. They are not COCO's.

    Args:
        root: the folder that holds VOCdevkit/VOC2007 and VOCdevkit/VOC2012.
        download: fetch them if they are not there.
        iterations: steps of the optimiser.
        batch_size: images in a step.
        learning_rate: after the warm-up.
        drops: iterations at which the rate is divided by 10.
        warm_up: iterations in which the rate rises in a straight line from a thousandth.
        sizes: of the short side in training, in pixels; one is drawn for each image.
        test_size: of the short side in testing, in pixels.
        regions: of an image that reach the head in training and in testing.
        coco: report COCO's AP, AP50 and AP75 (101 recalls), too; needs falseneg[detection].
    """

    root: str = "data"
    download: bool = False
    iterations: int = 34_000
    batch_size: int = 16
    learning_rate: float = 0.02
    drops: tuple[int, ...] = (20_000, 28_000)
    warm_up: int = 100
    sizes: tuple[int, ...] = tuple(range(480, 801, 32))
    test_size: int = 800
    regions: tuple[int, int] = (512, 1000)
    coco: bool = False

    name: ClassVar[str] = "voc-detection"
    wants: ClassVar[tuple[str, ...]] = ()

    def image_size(self, usual: int) -> int:
        return self.test_size

    def run(self, task: Task) -> Sequence[Figure]:
        self._check()
        resnet_of(task.encoder)
        learnt, measured = open_voc(self.root, self.download)
        if not any(bool((~hard).any()) for hard in measured.difficult):
            raise UserError(f"{self.name}: no test image shows an object that is not difficult; give such images")
        model = faster_rcnn(task.encoder, len(VOC_CLASSES), self.sizes, self.regions, task.seed).to(task.device)
        self._learn(model, SceneBatches(learnt, self.batch_size, task), task)
        given = detections(model.eval(), self.test_size, measured, task)
        return self._figures(given, len(learnt.images), len(measured.images))

    def _check(self) -> None:
        smallest = min(self.sizes, default=0)
        check_numbers(self.name, iterations=self.iterations, learning_rate=self.learning_rate)
        check_numbers(self.name, sizes=smallest, test_size=self.test_size, regions=min(self.regions))
        if wrong := [drop for drop in self.drops if not 0 < drop < self.iterations]:
            raise UserError(
                f"{self.name}: drops holds {wrong[0]}, and there are {self.iterations} iterations; give iterations in "
                "between, or [] for none"
            )
        if self.warm_up < 0:
            raise UserError(f"{self.name}: warm_up is {self.warm_up}; give a number of iterations, 0 for none")
        if self.coco:
            check_coco()

    def rate(self, step: int) -> float:
        """The learning rate of a step, from 0."""
        risen = min(1.0, step / self.warm_up) if self.warm_up else 1.0
        fallen = 0.1 ** sum(step >= drop for drop in self.drops)
        return self.learning_rate * (_SLOWEST + (1 - _SLOWEST) * risen) * fallen

    def _learn(self, model: Any, batches: SceneBatches, task: Task) -> None:
        """Fine-tune, then settle BatchNorm; the one and the other is done once, and read afterwards."""

        def loss(images: list[Tensor], targets: list[dict[str, Tensor]]) -> Tensor:
            return sum(model(images, targets).values(), torch.zeros((), device=task.device))

        model.train()
        optimiser = detector_optimiser(model, self.learning_rate)
        descend("detector", model, batches, Descent(optimiser, self.iterations, self.rate, loss), task)

        def settle() -> dict[str, Tensor]:
            number = min(_SETTLING, self.iterations)
            with torch.random.fork_rng([task.device] if task.device.type == "cuda" else []):
                torch.manual_seed(task.seed)
                settle_batch_norm(model, loss, _first(batches, number, task))
            return running_statistics(model)

        model.load_state_dict(task.pieces.tensors("batch-norm", settle), strict=False)

    def _figures(self, given: Detected, learnt: int, measured: int) -> list[Figure]:
        of_class = voc_average_precisions(given)
        of_threshold = [sum(column) / len(column) for column in zip(*of_class.values(), strict=True)]
        names = {VOC_CLASSES[kind - 1]: values[0] for kind, values in of_class.items()}
        about = {"training images": learnt, "test images": measured, "of each class": names}
        figures = [
            Figure(VOC_TEST, AP50, of_threshold[0], details=about),
            Figure(VOC_TEST, AP75, of_threshold[THRESHOLDS.index(0.75)]),
            Figure(VOC_TEST, AP, sum(of_threshold) / len(of_threshold)),
        ]
        if self.coco:
            found = coco_average_precisions(given, measured)
            figures += [Figure(VOC_TEST, f"COCO {name}", value) for name, value in found.items()]
        return figures


def _first(batches: SceneBatches, number: int, task: Task) -> Iterator[tuple[Any, Any]]:
    """The batches that training began with, and as many more as it takes."""
    endless = itertools.chain.from_iterable(batches.epoch(epoch, 0) for epoch in itertools.count())
    for done, batch in enumerate(itertools.islice(endless, number), start=1):
        yield batch
        task.progress("BatchNorm", done, number)


def detections(model: Any, size: int, scenes: Scenes, task: Task) -> Detected:
    """What a detector finds, a part of the images at a time, and what there is.

    Args:
        model: torchvision's detector, in evaluation mode.
        size: of the short side, in pixels.
        scenes: images and their objects.
        task: device, workers, pieces, progress.
    """
    model.transform.min_size = (size,)
    total = len(scenes.images)

    def part(rows: range) -> dict[str, Tensor]:
        found = []
        for row, image in zip(rows, images_of(scenes, rows, task), strict=True):
            with torch.no_grad():
                said = {name: value.cpu() for name, value in model([image])[0].items()}
            found.append({**said, "image": torch.full_like(said["labels"], row)})
            task.progress("test images", row + 1, total)
        return {name: torch.cat([each[name] for each in found]) for name in found[0]}

    parts = []
    for start in range(0, total, _AT_ONCE):
        rows = range(start, min(start + _AT_ONCE, total))
        parts.append(task.pieces.tensors(f"detections-{start}", functools.partial(part, rows)))
    image, box, kind, score = (
        torch.cat([each[name] for each in parts]) for name in ("image", "boxes", "labels", "scores")
    )
    numbers = torch.arange(total).repeat_interleave(torch.tensor([len(each) for each in scenes.classes]))
    truth = Boxes(numbers, torch.cat([*scenes.boxes]), torch.cat([*scenes.classes]))
    return Detected(Boxes(image, box, kind), score, truth, torch.cat([*scenes.difficult]))
