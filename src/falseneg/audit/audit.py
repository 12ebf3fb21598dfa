"""One audit, from the images to what was found."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from torch import Tensor, nn
from torch.nn.functional import normalize

from falseneg.audit.asked import Asked
from falseneg.audit.confusable import Confusable, confusable_classes
from falseneg.audit.duplicates import Duplicates, find, usual_threshold
from falseneg.audit.measure import Measured, measure
from falseneg.audit.sample import Sample, batches_of, embedded_views, evenly_spread
from falseneg.audit.suggestion import Suggestion, detectors_of, suggest
from falseneg.clustering import check_points
from falseneg.data import ImageSet, caption_groups, find_duplicates
from falseneg.errors import UserError
from falseneg.evaluation import extract_features
from falseneg.graph import nearest

NEIGHBOURS = 20
"""Of each image that are looked at for near duplicates."""
OF_CLASSES = 10
"""Of each image that are looked at for classes that are taken for one another."""
CLASS_PAIRS = 12
LEAST = 8
"""Images: of fewer there is nothing to say."""


@dataclass(frozen=True, eq=False)
class Audit:
    """What was found.

    Attributes:
        images: the data set.
        sample: the images that detectors were tried on.
        duplicates: equal and nearly equal images, among all.
        suggestion: how much to flag.
        measured: what the detectors flag, set as is suggested.
        confusable: classes whose images are each other's nearest neighbours; None without labels.
        shared_captions: images whose captions another image has, too; None without captions.
    """

    images: ImageSet
    sample: Sample
    duplicates: Duplicates
    suggestion: Suggestion
    measured: Measured
    confusable: list[Confusable] | None
    shared_captions: int | None


def audit(images: ImageSet, encoder: nn.Module, asked: Asked) -> Audit:
    """Look at a data set through an encoder; nothing is trained.

    Memory: O(n · (F + k)) for n images with F features and k = 20 neighbours; detectors look at up to 8,192 images.

    Args:
        images: the data set.
        encoder: (B, 3, size, size) uint8 images to (B, F) features; on the device already.
        asked: how.

    Raises:
        UserError: there are too few images, one cannot be read, or the features do not differ.
    """
    asked.check()
    if len(images) < LEAST:
        raise UserError(f"there are {len(images)} images; give at least {LEAST} to audit")
    labels = images.labels if images.labels is not None and bool((images.labels >= 0).any()) else None
    groups = caption_groups(images) if images.captioned else None
    equal_bytes = find_duplicates(images, asked.progress)
    sample, cosines, neighbours = _embedded(images, encoder, asked)
    near = usual_threshold(sample.own_cosines()) if asked.near is None else asked.near
    duplicates = find(images, equal_bytes, cosines, neighbours, near)

    batches = batches_of(len(sample), asked.batch_size, asked.seed)
    own_labels, own_groups = (None if each is None else each[sample.rows] for each in (labels, groups))
    sample = replace(sample, labels=own_labels, caption_groups=own_groups)
    tell = partial(asked.progress, "numbers of kinds")
    suggestion = suggest(sample, batches, asked.kinds, asked.seed, tell)
    detectors = detectors_of(suggestion.chosen.kinds, len(sample), groups is not None)
    tell = partial(asked.progress, "batches in which detectors flag")
    measured = measure(sample, batches, detectors, asked.seed, tell)
    confusable = None
    if labels is not None:
        few = cosines[:, :OF_CLASSES], neighbours[:, :OF_CLASSES]
        confusable = confusable_classes(labels.numpy(), *few, CLASS_PAIRS)
    return Audit(images, sample, duplicates, suggestion, measured, confusable, _shared(groups))


def _embedded(images: ImageSet, encoder: nn.Module, asked: Asked) -> tuple[Sample, np.ndarray, np.ndarray]:
    """The sample of the detectors, and (n, k) cosines and rows of the nearest neighbours of all images."""
    tell = partial(asked.progress, "embedding all images")
    features = extract_features(encoder, images, asked.size, device=asked.device, progress=tell, workers=asked.workers)
    check_points(features)
    rows = evenly_spread(len(images))
    views = embedded_views(encoder, images, rows, asked)
    sample = Sample(rows, features[rows], views)
    for piece in features.split(2**16):
        piece.copy_(normalize(piece, dim=1))  # in place: a copy of all of them may not fit
    tell = partial(asked.progress, "looking for neighbours of images")
    return sample, *nearest(features, min(NEIGHBOURS, len(images) - 1), tell)


def _shared(groups: Tensor | None) -> int | None:
    """How many images have the captions of another."""
    if groups is None:
        return None
    sizes = groups[groups >= 0].bincount()
    return int(sizes[sizes > 1].sum())
