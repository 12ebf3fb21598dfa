"""What a drop-in criterion flagged in its last call: counted and listed when it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from operator import or_
from typing import NamedTuple

import torch
from torch import Tensor

from falseneg.contrast import Contrast
from falseneg.rules import PairRule
from falseneg.statistics import NegativeStats, flagged_pairs

Judged = tuple[Contrast, PairRule, NegativeStats]
"""A contrast, what was flagged in it, and the statistics of its negatives."""


class ImagePairs(NamedTuple):
    """Flagged pairs of views, anchor by anchor.

    Attributes:
        anchor: (K,) int64, which image of the batch the anchor shows: ``sample[anchor]`` is its row in the data set.
        candidate: (K,) int64, which image the flagged negative shows; where those of several ranks are compared, the images of all
            of them are counted, rank after rank.
        cosine: (K,) of the two embeddings.
    """

    anchor: Tensor
    candidate: Tensor
    cosine: Tensor


class Flagged:
    """The flagged negatives of one call, on this rank's anchors; without gradient.

    It holds that call's embeddings until the next one, and costs nothing else before it is asked.

    Args:
        judged: of one contrast: image by image, with the same number of views each.
        views: of each image.
    """

    def __init__(self, judged: Sequence[Judged], views: int) -> None:
        contrast = judged[0][0]
        anchors = replace(contrast.anchors, z=contrast.anchors.z.detach())
        symmetric = contrast.candidates is contrast.anchors
        candidates = anchors if symmetric else replace(contrast.candidates, z=contrast.candidates.z.detach())
        positives = contrast.positives.detach()
        self._contrast = replace(contrast, anchors=anchors, candidates=candidates, positives=positives)
        self._rules = [rule for _, rule, _ in judged]
        self._counts = [(stats.flagged, stats.count) for *_, stats in judged]
        self._views = views

    @property
    def share(self) -> float:
        """The share of the negatives that is flagged, from 0 to 1; of several levels their mean. Waits for the device."""
        flagged, count = (torch.stack(number).sum().item() for number in zip(*self._counts, strict=True))
        return flagged / max(count, 1)

    @property
    def are_all(self) -> bool:
        """Whether each anchor has negatives, and all of them are flagged, in every level. Waits for the device."""
        return bool(torch.stack([((flagged == count) & (count > 0)).all() for flagged, count in self._counts]).all())

    def pairs(self, limit: int | None = None) -> ImagePairs:
        """The pairs that are flagged, in any level: one sweep of the matrix, and memory for K pairs.

        Args:
            limit: list at most so many, those of the first anchors; None for all.
        """
        rule = reduce(or_, self._rules)
        most = len(self._contrast.anchors) * len(self._contrast.candidates)
        anchor, candidate, cosine = flagged_pairs(self._contrast, rule, most if limit is None else limit)
        return ImagePairs(anchor // self._views, candidate // self._views, cosine)
