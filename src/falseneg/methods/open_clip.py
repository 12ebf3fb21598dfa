"""CLIP with the models of open_clip: their towers, tokenizers and weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from falseneg.errors import UserError
from falseneg.files import write_bytes
from falseneg.methods.two_towers import TwoTowers
from falseneg.models.clip_images import ClipImages, build_model, channel_statistics, check_model, of_one_process
from falseneg.models.encoder import first_difference, read_weights
from falseneg.models.text import CutTokenizer, open_clip

OPEN_CLIP = "open_clip"
"""Of a run's folder: the part that open_clip loads."""


class OpenCLIP(TwoTowers):
    """CLIP (Radford et al. 2021, arXiv 2103.00020) with a model of open_clip, and its tokenizer.

    The run writes a folder ``open_clip``, which ``open_clip.create_model_from_pretrained("local-dir:RUN/open_clip")``
    loads. Its temperature is the run's: give `LearnedTemperature`.

    Args:
        model: one of ``open_clip.list_models()``, such as "ViT-B-32" or "RN50".
        weights: None for random weights; a local file in open_clip's form (.safetensors, .pt, .pth, .bin); or one of
            ``open_clip.list_pretrained_tags_by_model(model)``, which is downloaded once.
        image_size: side of the square images, in pixels; None for the model's own.
        support_views: further views of each image that help to detect false negatives.
        support_texts: further captions of each image that help to detect them; an image with too few repeats its own.

    Raises:
        UserError: open_clip is not installed or has no such model, or the weights cannot be loaded.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: str = "ViT-B-32",
        weights: str | Path | None = None,
        image_size: int | None = None,
        support_views: int = 0,
        support_texts: int = 0,
    ) -> None:
        check_model(model, "OpenCLIP: ")
        config = open_clip().get_model_config(model)
        super().__init__(int(config["embed_dim"]), support_views, support_texts)
        self.name, self.image_size, self.config = model, image_size, config
        self.model, self.tokenize = _create(model, weights, image_size)
        self.model.logit_scale.requires_grad_(False)  # the run's temperature stands for it
        # Held here, so that they follow the model to its device once and not in each step.
        for key, values in zip(("mean", "std"), channel_statistics(self.model.visual), strict=True):
            self.register_buffer(key, values, persistent=False)

    @property
    def encoder(self) -> ClipImages:  # type: ignore[override]
        """The image tower, with the last layer into the shared space; not a part of its own, whose weights would be twice
        in a checkpoint.
        """
        return ClipImages(self.model.visual, self.name, self.dim, (self.mean, self.std))

    @property
    def towers(self) -> dict[str, nn.Module]:
        return {"image": self.encoder, "text": _TextTower(self.model)}

    def image_embeddings(self, images: Tensor) -> Tensor:
        embeddings: Tensor = self.encoder(images)
        return embeddings

    def text_embeddings(self, tokens: Tensor) -> Tensor:
        embeddings: Tensor = self.model.encode_text(tokens)
        return embeddings

    def export(self, folder: Path, tau: float | None = None) -> None:
        from safetensors.torch import save

        visual, vision = self.model.visual, {**self.config["vision_cfg"], "image_size": self.encoder.image_size}
        about = {
            "model_cfg": {**self.config, "vision_cfg": vision},
            "preprocess_cfg": {"mean": list(visual.image_mean), "std": list(visual.image_std)},
        }
        state = {key: value.detach().cpu().contiguous().clone() for key, value in self.model.state_dict().items()}
        if tau is not None:
            state["logit_scale"] = torch.full_like(state["logit_scale"], tau).log().neg()
        (folder / OPEN_CLIP).mkdir(exist_ok=True)
        write_bytes(folder / OPEN_CLIP / "open_clip_model.safetensors", save(state))
        write_bytes(folder / OPEN_CLIP / "open_clip_config.json", json.dumps(about, indent=2).encode())


class _TextTower(nn.Module):
    """(B, L) tokens to (B, D). Shares the model's tower."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        embeddings: Tensor = self.model.encode_text(tokens)
        return embeddings


def _create(name: str, weights: str | Path | None, image_size: int | None) -> tuple[Any, CutTokenizer]:
    """The model and its tokenizer."""
    library = open_clip()
    tags = library.list_pretrained_tags_by_model(name)
    tag = str(weights) if weights is not None and str(weights) in tags else None
    state = None if weights is None or tag is not None else _state(Path(weights), tags)
    try:
        model = build_model(
            name, pretrained=tag, load_weights=tag is not None, pretrained_text=False, force_image_size=image_size
        )
        tokenizer = CutTokenizer(library.get_tokenizer(name))
    except UserError:
        raise
    except Exception as error:  # whatever a model, its tokenizer or the download raises
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"OpenCLIP: {name!r} could not be built ({reason}); models with a Hugging Face tokenizer and tags of "
            "weights are downloaded once: choose another model, or give a local file as weights"
        ) from error
    if state is not None:
        if (difference := first_difference(model, state)) is not None:
            raise UserError(f"OpenCLIP: the weights in {weights} are of another model than {name!r}: {difference}")
        model.load_state_dict(state)
    return model, tokenizer


def _state(path: Path, tags: list[str]) -> dict[str, Tensor]:
    """The weights in a file, by open_clip's names."""
    if not path.is_file():
        raise UserError(
            f"OpenCLIP: there is no file {path}; give a local file of weights, or one of the tags {', '.join(tags) or '(none)'}"
        )
    state = of_one_process(read_weights(path))
    if "logit_scale" in state:
        state["logit_scale"] = state["logit_scale"].reshape(())
    return state
