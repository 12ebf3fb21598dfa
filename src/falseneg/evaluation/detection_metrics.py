"""Average precision of detected boxes: as the development kit of VOC 2007 computes it, and as COCO does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from falseneg.errors import UserError
from falseneg.evaluation.metrics import average_precision_11

THRESHOLDS = tuple(percent / 100 for percent in range(50, 100, 5))
"""Intersection over union from which on a box counts as found: .5, .55, …, .95."""
COCO_PACKAGE = "faster_coco_eval"


class Boxes(NamedTuple):
    """Boxes in images, of detections or of objects.

    Attributes:
        image: (n,) int64 number of the image.
        box: (n, 4) corners (x, y, x, y) in its pixels, from its upper left corner.
        kind: (n,) int64 class.
    """

    image: Tensor
    box: Tensor
    kind: Tensor


@dataclass(frozen=True, eq=False)
class Detected:
    """What was found, and what there is.

    Attributes:
        found: n detections, image by image.
        scores: (n,) how sure each is.
        truth: m objects.
        difficult: (m,) bool: these count neither when they are found nor when they are not.
    """

    found: Boxes
    scores: Tensor
    truth: Boxes
    difficult: Tensor


def voc_average_precisions(given: Detected, thresholds: Sequence[float] = THRESHOLDS) -> dict[int, list[float]]:
    """Average precision of each class at several thresholds, by the rules of the 2007 development kit (VOCevaldet.m).

    The surest detection comes first. It belongs to the object of its class in its image that it overlaps most. If their
    intersection over union is at least the threshold, the first detection of an object is right and every further one
    wrong, but those of a difficult object do not count; all others are wrong. The figure is `average_precision_11` over the
    objects that are not difficult. The kit's boxes include their last pixel, which the corners here, half a pixel further
    out on each side, say without its "+ 1".

    Args:
        given: detections and objects.
        thresholds: of the intersection over union.

    Returns:
        For each class of which there is an object that is not difficult: a share in [0, 1] for each threshold.
    """
    figures = {}
    for kind in given.truth.kind.unique().tolist():
        theirs = given.truth.kind == kind
        positives = int((~given.difficult[theirs]).sum())
        if not positives:
            continue
        rows = (given.found.kind == kind).nonzero().flatten()
        rows = rows[given.scores[rows].argsort(descending=True, stable=True)]
        overlap, which = _best(_some(given.found, rows), _some(given.truth, theirs))
        difficult = given.difficult[theirs].numpy()
        figures[kind] = [
            average_precision_11(
                given.scores[rows], torch.from_numpy(_marks(overlap >= threshold, which, difficult)), positives
            )
            for threshold in thresholds
        ]
    return figures


def _some(boxes: Boxes, rows: Tensor) -> Boxes:
    return Boxes(*(each[rows] for each in boxes))


def _best(found: Boxes, truth: Boxes) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Of each detection the largest intersection over union with an object in its image, and which object that is."""
    from torchvision.ops import box_iou

    overlap, which = np.full(len(found.image), -np.inf), np.zeros(len(found.image), np.int64)
    in_image, of_image = found.image.numpy(), truth.image.numpy()
    for image in np.unique(of_image):
        (here,), (objects,) = (in_image == image).nonzero(), (of_image == image).nonzero()
        shares = box_iou(found.box[here].double(), truth.box[objects].double()).numpy()
        most = shares.argmax(axis=1)  # the first of equals, as the kit has it
        overlap[here], which[here] = shares[np.arange(len(here)), most], objects[most]
    return overlap, which


def _marks(near: NDArray[Any], which: NDArray[np.int64], difficult: NDArray[Any]) -> NDArray[np.int64]:
    """1 for right, −1 for wrong, 0 for what does not count; the surest detection stands first."""
    marks = np.where(near & difficult[which], 0, -1)
    counted = (near & ~difficult[which]).nonzero()[0]
    marks[counted[np.unique(which[counted], return_index=True)[1]]] = 1
    return marks


def check_coco() -> None:
    """Refuse what COCO's figures need and is not installed.

    Raises:
        UserError: it is missing.
    """
    import importlib.util

    if importlib.util.find_spec(COCO_PACKAGE) is None:
        raise UserError(
            "COCO's figures need the package faster-coco-eval; install falseneg[detection], or leave coco out"
        )


def coco_average_precisions(given: Detected, images: int) -> dict[str, float]:
    """Average precision as COCO defines it: the mean over 101 recalls, at most 100 detections in an image.

    Difficult objects are COCO's crowds, which do not count either. Needs the package faster-coco-eval.

    Args:
        given: detections and objects.
        images: how many there are, numbered from 0.

    Returns:
        "AP", the mean over `THRESHOLDS`, "AP50" and "AP75".
    """
    from faster_coco_eval import COCO, COCOeval_faster

    truth = COCO(
        {
            "images": [{"id": image} for image in range(images)],
            "categories": [{"id": kind} for kind in given.truth.kind.unique().tolist()],
            "annotations": [
                {**each, "id": row + 1, "area": each["bbox"][2] * each["bbox"][3], "iscrowd": int(hard)}
                for row, (each, hard) in enumerate(zip(_as_coco(given.truth), given.difficult.tolist(), strict=True))
            ],
        }
    )
    scored = [
        {**each, "score": score} for each, score in zip(_as_coco(given.found), given.scores.tolist(), strict=True)
    ]
    judge = COCOeval_faster(truth, truth.loadRes(scored), "bbox", print_function=lambda *said: None)
    judge.run()
    return {name: float(judge.stats_as_dict[key]) for name, key in _COCO_KEYS.items()}


_COCO_KEYS = {"AP": "AP_all", "AP50": "AP_50", "AP75": "AP_75"}


def _as_coco(boxes: Boxes) -> list[dict[str, Any]]:
    """Corner, width and height instead of two corners."""
    sides = torch.cat([boxes.box[:, :2], boxes.box[:, 2:] - boxes.box[:, :2]], dim=1)
    names = ("image_id", "category_id", "bbox")
    columns = (boxes.image.tolist(), boxes.kind.tolist(), sides.tolist())
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
