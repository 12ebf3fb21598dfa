"""Features and pictures of some images, for the report's map."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from falseneg.data import ImageSet, Subset
from falseneg.evaluation import extract_features
from falseneg.files import replacing
from falseneg.train.names import EMBEDDING
from falseneg.train.observers.base import Figures, Observer
from falseneg.train.session import Session
from falseneg.train.thumbnails import thumbnail

MAPPED, MAP_SIDE = 600, 48
"""The map: images on it at most, and pixels of a side of their pictures."""


class EmbeddingMap(Observer):
    """Writes embedding.npz: features and pictures of images that are evenly spread over the data set."""

    def finish(self, session: Session) -> Figures:
        images, encoder = session.plan.train, session.learner.method.towers["image"]
        rows = torch.linspace(0, len(images) - 1, min(MAPPED, len(images))).long()
        features = extract_features(encoder, Subset(images, rows), session.plan.size, device=session.fabric.device)
        arrays: dict[str, Any] = {"features": features.numpy(), "rows": rows.numpy()}
        arrays["names"] = np.array([images.describe(row) for row in rows.tolist()], dtype=str)
        pictures = [thumbnail(_small(images, row), MAP_SIDE) for row in rows.tolist()]
        arrays["images"] = torch.stack(pictures).permute(0, 2, 3, 1).numpy()
        if images.labels is not None:
            arrays["labels"] = images.labels[rows].numpy()
        with replacing(session.folder / EMBEDDING) as file:
            np.savez_compressed(file, **arrays)
        return {}


def _small(images: ImageSet, row: int) -> Tensor:
    """An image, decoded at a smaller size where that takes less time."""
    return images.reduced(row, lambda height, width: max(1, min(height, width) // (2 * MAP_SIDE)))
