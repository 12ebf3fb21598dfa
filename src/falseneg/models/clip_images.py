"""The image tower of an open_clip model as an encoder."""

from __future__ import annotations

import difflib
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from falseneg.errors import UserError
from falseneg.models.encoder import load_exactly, read_weights
from falseneg.models.text import open_clip

_TOWER = "visual."


class ClipImages(nn.Module):
    """An image tower of open_clip, up to its embedding. Images go in as they are; scaling and normalising happen inside.

    Args:
        visual: the tower; it is shared, not copied.
        name: of its model.
        feature_dim: F, the width of the embedding.
        statistics: (3, 1, 1) mean and standard deviation of each channel of images in [0, 1], where the tower lies; None
            takes the tower's own.

    Attributes:
        image_size: side of the square images, in pixels.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, visual: Any, name: str, feature_dim: int, statistics: tuple[Tensor, Tensor] | None = None
    ) -> None:
        super().__init__()
        self.visual, self.name, self.feature_dim = visual, name, feature_dim
        for key, values in zip(("mean", "std"), statistics or channel_statistics(visual), strict=True):
            self.register_buffer(key, values, persistent=False)
        side = visual.image_size
        self.image_size = int(side[0] if isinstance(side, tuple | list) else side)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) images, uint8 in [0, 255] or floating point in [0, 1], to (B, F) embeddings, not normalised."""
        if images.dtype == torch.uint8:
            images = images.to(self.mean.dtype) / 255
        features: Tensor = self.visual((images.to(self.mean.dtype) - self.mean) / self.std)
        return features


def channel_statistics(visual: Any) -> tuple[Tensor, Tensor]:
    """(3, 1, 1) mean and standard deviation of each channel, as a tower of open_clip wants its images."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (visual.image_mean, visual.image_std))
    return mean, std


def clip_images(name: str, weights: Path | None = None, image_size: int | None = None) -> ClipImages:
    """The image tower of an open_clip model (extra ``image-text``) by the model's name.

    Args:
        name: a model of open_clip, such as "ViT-B-32".
        weights: a local file with weights of that model, or of its image tower alone; None for random weights.
        image_size: side of the square images in pixels; None takes the model's own.

    Raises:
        UserError: open_clip is not installed, the model is unknown, or the weights are not its own.
    """
    check_model(name)
    library = open_clip()
    try:
        model = build_model(name, load_weights=False, pretrained_text=False, force_image_size=image_size, device="cpu")
    except (ImportError, RuntimeError, ValueError, AssertionError, OSError) as error:
        raise UserError(f"open_clip cannot build {name!r}: {str(error).strip().splitlines()[0]}") from error
    tower = ClipImages(model.visual, name, int(library.get_model_config(name)["embed_dim"]))
    if weights is not None:
        load_exactly(tower.visual, _of_tower(of_one_process(read_weights(weights))), f"{weights}")
    return tower


def build_model(name: str, **options: Any) -> Any:
    """`open_clip.create_model`, without its warning that weights are random where that is what was asked for."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        return open_clip().create_model(name, **options)
    finally:
        logging.disable(before)


def check_model(name: str, owner: str = "") -> None:
    """Refuse what is not one of open_clip's own models: other names would load whatever lies in a folder or on a hub.

    Args:
        name: of a model.
        owner: what the sentence begins with, such as "OpenCLIP: ".

    Raises:
        UserError: open_clip is not installed, or has no such model.
    """
    if name not in (known := open_clip().list_models()):
        near = difflib.get_close_matches(name, known, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "open_clip.list_models() names them all"
        raise UserError(f"{owner}open_clip has no model {name!r}; {hint}")


def of_one_process(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights by open_clip's names: a training checkpoint of several processes prefixes them."""
    return {key.removeprefix("module."): value for key, value in state.items()}


def _of_tower(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The image tower's part of a whole model's weights."""
    tower = {key.removeprefix(_TOWER): value for key, value in state.items() if key.startswith(_TOWER)}
    return tower or state
