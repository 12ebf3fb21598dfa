"""What is known before training starts."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Facts:
    """What detectors, objectives and temperatures are told before training.

    Attributes:
        rows: the number of images in the data set.
        negatives: candidates of other images that an anchor is compared with in one step.
        labels: (rows,) int64, or None. Only the `Oracle` may read them.
        classes: how many classes the user expects in the data, or None.
        contrasts: the names of the method's contrasts: state is kept for each of them.
        seed: of the run, for those who draw.
        caption_groups: (rows,) int64, the same number for images with the same captions, −1 for none; None where nobody
            asks, or there are no captions.
        modalities: what `falseneg.detectors.Features` can embed of each row: "image", and with two towers "text".
    """

    rows: int
    negatives: int
    labels: Tensor | None = None
    classes: int | None = None
    contrasts: tuple[str, ...] = ("views",)
    seed: int = 0
    caption_groups: Tensor | None = None
    modalities: tuple[str, ...] = ("image",)
