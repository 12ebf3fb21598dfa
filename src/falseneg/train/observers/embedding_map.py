"""Features of some images, for the report's map."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from falseneg.data import Subset
from falseneg.evaluation import extract_features
from falseneg.files import replacing
from falseneg.train.observers.base import Figures, Observer
from falseneg.train.session import Session

MAPPED = 1000
"""Images in the embedding that the map is drawn of, at most."""


class EmbeddingMap(Observer):
    """Writes embedding.npz: features of images that are evenly spread over the data set."""

    def finish(self, session: Session) -> Figures:
        images, encoder = session.plan.train, session.learner.method.towers["image"]
        rows = torch.linspace(0, len(images) - 1, min(MAPPED, len(images))).long()
        features = extract_features(encoder, Subset(images, rows), session.plan.size, device=session.fabric.device)
        arrays: dict[str, Any] = {"features": features.numpy(), "rows": rows.numpy()}
        if images.labels is not None:
            arrays["labels"] = images.labels[rows].numpy()
        with replacing(session.folder / "embedding.npz") as file:
            np.savez(file, **arrays)
        return {}
