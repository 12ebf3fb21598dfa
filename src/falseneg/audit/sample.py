"""The images that detectors are tried on, and the batches in which they meet.

Letters: n images of the data set, m of them looked at, F features, V views of each, B images of a batch.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from falseneg.audit.asked import Asked
from falseneg.contrast import Contrast, Embedded, Space
from falseneg.data import Augmentation, ImageSet, ViewSet
from falseneg.train.embeddings import AT_ONCE, embed_views

MOST = 8192
"""Images that detectors are tried on, at most; evenly spread over the data set."""
VIEWS = 2
DIRECTION = "images"
"""The name of the contrast."""
MILD = {
    "crop_scale": (0.5, 1.0),
    "brightness": 0.2,
    "contrast": 0.2,
    "saturation": 0.2,
    "hue": 0.02,
    "grayscale": 0.0,
    "blur": 0.0,
}
"""How a view differs from its image: little, for the encoder need not know the distortions of contrastive learning."""


@dataclass(frozen=True, eq=False)
class Sample:
    """Images that detectors are tried on, counted from 0; gives detectors their `falseneg.detectors.Features`.

    Attributes:
        rows: (m,) int64, their rows in the data set.
        features: (m, F) of the images as they are.
        views: (m, V, F) of slightly changed views of them.
        labels: (m,) int64 classes, −1 where unknown; or None.
        caption_groups: (m,) int64, the same number for images with the same captions, −1 for none; or None.
    """

    rows: Tensor
    features: Tensor
    views: Tensor
    labels: Tensor | None = None
    caption_groups: Tensor | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __call__(self, modality: str = "image") -> Tensor:
        return normalize(self.features, dim=1)

    def encoded(self, encoder: nn.Module | None = None, modality: str = "image") -> Tensor:
        return self.features

    def of_views(self, row: Tensor, views: int, encoder: nn.Module | None = None) -> Tensor:
        return self.views[row, :views]

    def own_cosines(self) -> Tensor:
        """(m, V) how similar the views of an image are to it."""
        return (self()[:, None] * normalize(self.views, dim=2)).sum(dim=2)

    def contrast(self, chosen: Tensor) -> Contrast:
        """A batch of images as they are, each against the others; views are its positives, and its support set.

        Args:
            chosen: (B,) int64, which of the m.
        """
        images = Embedded(normalize(self.features[chosen], dim=1), chosen)
        views = normalize(self.views[chosen], dim=2)
        space = Space(views, torch.arange(len(chosen)), images.z)
        return Contrast(DIRECTION, images, images, (images.z[:, None] * views).sum(dim=2), {"support": space})


def evenly_spread(number: int) -> Tensor:
    """(m,) rows of that many images, all of them or `MOST`."""
    return torch.linspace(0, number - 1, min(number, MOST), dtype=torch.float64).round().long()


def embedded_views(encoder: nn.Module, images: ImageSet, rows: Tensor, asked: Asked) -> Tensor:
    """(m, V, F) float32 features of slightly changed views of some images, on the CPU.

    Args:
        encoder: (B, 3, size, size) uint8 images to (B, F) features; on the device already.
        images: the data set.
        rows: (m,) int64, the images.
        asked: size, seed, device, workers and progress.

    Raises:
        UserError: an image cannot be read, or a worker was killed.
    """
    makers = {"image": [Augmentation(asked.size, **MILD)] * VIEWS}  # type: ignore[arg-type]
    made = ViewSet(images, makers, asked.seed)
    keys = [[(0, row) for row in piece.tolist()] for piece in rows.split(AT_ONCE // VIEWS)]
    found: list[Tensor] = []
    with closing(embed_views(encoder, made, keys, asked.workers, asked.device)) as batches:
        for batch in batches:
            found.append(batch)
            asked.progress("embedding views of images", sum(map(len, found)), len(rows))
    return torch.cat(found)


def batches_of(number: int, size: int, seed: int) -> list[Tensor]:
    """Random batches of that size, which have no image in common; (B,) int64 each.

    What is left over and fills no batch is left out, unless there is no batch otherwise.
    """
    shuffled = torch.randperm(number, generator=torch.Generator().manual_seed(seed))
    whole = [each for each in shuffled.split(size) if len(each) == size]
    return whole or [shuffled]
