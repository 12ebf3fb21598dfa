"""The image tower of an open_clip model as an encoder."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from falseneg.errors import UserError
from falseneg.models.encoder import load_exactly, read_weights

_TOWER = "visual."


class ClipImages(nn.Module):
    """The image tower of an open_clip model (extra ``image-text``), up to its embedding. Images go in as they are.

    Args:
        name: a model of open_clip, such as "ViT-B-32".
        weights: a local file with weights of that model, or of its image tower alone; None for random weights.
        image_size: side of the square images in pixels; None takes the model's own.

    Attributes:
        image_size: that side.
        feature_dim: F, the width of the embedding.

    Raises:
        UserError: open_clip is not installed, the model is unknown, or the weights are not its own.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, weights: Path | None = None, image_size: int | None = None) -> None:
        super().__init__()
        open_clip = _package()
        # Only names from its list: the name of a folder or of a hub repository would load whatever lies there.
        if name not in (known := open_clip.list_models()):
            near = difflib.get_close_matches(name, known, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else "open_clip.list_models() names them all"
            raise UserError(f"open_clip has no model {name!r}; {hint}")
        try:
            model = open_clip.create_model(
                name, load_weights=False, pretrained_text=False, force_image_size=image_size, device="cpu"
            )
        except (ImportError, RuntimeError, ValueError, AssertionError, OSError) as error:
            raise UserError(f"open_clip cannot build {name!r}: {str(error).strip().splitlines()[0]}") from error
        self.name = name
        self.visual = model.visual
        cfg = open_clip.get_model_preprocess_cfg(model)
        for key in ("mean", "std"):
            self.register_buffer(key, torch.tensor(cfg[key]).view(3, 1, 1), persistent=False)
        side = self.visual.image_size
        self.image_size = int(side[0] if isinstance(side, tuple | list) else side)
        if weights is not None:
            load_exactly(self.visual, _of_tower(read_weights(weights)), f"{weights}")
        self.feature_dim = int(open_clip.get_model_config(name)["embed_dim"])

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) images, uint8 in [0, 255] or floating point in [0, 1], to (B, F) embeddings, not normalised."""
        if images.dtype == torch.uint8:
            images = images.to(self.mean.dtype) / 255
        features: Tensor = self.visual((images.to(self.mean.dtype) - self.mean) / self.std)
        return features


def _package() -> Any:
    try:
        import open_clip
    except ImportError as error:
        raise UserError(
            "models of open_clip need the package open_clip_torch; pip install 'falseneg[image-text]'"
        ) from error
    return open_clip


def _of_tower(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The image tower's part of a whole model's weights, as trained in one process or in several."""
    state = {key.removeprefix("module."): value for key, value in state.items()}
    tower = {key.removeprefix(_TOWER): value for key, value in state.items() if key.startswith(_TOWER)}
    return tower or state
