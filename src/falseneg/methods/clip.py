"""CLIP with towers of one's own: a timm backbone for images, a small transformer for texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

from torch import Tensor, nn

from falseneg.errors import UserError
from falseneg.files import write_bytes
from falseneg.methods.two_towers import TwoTowers
from falseneg.models import Encoder
from falseneg.models.encoder import described_in, load_exactly
from falseneg.models.text import TextEncoder

TOWERS = "towers.safetensors"
"""Of a run's folder: both towers."""


class CLIP(TwoTowers):
    """CLIP (Radford et al. 2021, arXiv 2103.00020) with any backbone of timm and a small text transformer.

    Each tower ends with a linear layer into the shared space, without a bias. For the models of open_clip take
    `OpenCLIP`. CLIP learns its temperature: give `LearnedTemperature`.

    Args:
        encoder: images to features.
        text: texts to features.
        dim: D, of the embedding that is compared.
        support_views: further views of each image that help to detect false negatives.
        support_texts: further captions of each image that help to detect them; an image with too few repeats its own.

    Raises:
        UserError: a number is outside its range.
    """

    ABOUT: ClassVar[str] = "falseneg.clip"
    """In the metadata of a file of towers: what they were built with."""

    encoder: Encoder
    text: TextEncoder

    def __init__(
        self, encoder: Encoder, text: TextEncoder, dim: int = 256, support_views: int = 0, support_texts: int = 0
    ) -> None:
        super().__init__(dim, support_views, support_texts)
        if dim < 1:
            raise UserError(f"CLIP: dim is {dim}; give at least 1")
        self.encoder, self.text = encoder, text
        self.image_head = nn.Linear(encoder.feature_dim, dim, bias=False)
        self.text_head = nn.Linear(text.feature_dim, dim, bias=False)
        for head in (self.image_head, self.text_head):
            nn.init.normal_(head.weight, std=head.in_features**-0.5)
        self.tokenize = text.tokenize

    @property
    def towers(self) -> dict[str, nn.Module]:
        return {"image": self.encoder, "text": self.text}

    def image_embeddings(self, images: Tensor) -> Tensor:
        embeddings: Tensor = self.image_head(self.encoder(images))
        return embeddings

    def text_embeddings(self, tokens: Tensor) -> Tensor:
        embeddings: Tensor = self.text_head(self.text(tokens))
        return embeddings

    def export(self, folder: Path, tau: float | None = None) -> None:
        super().export(folder, tau)
        self.save(folder / TOWERS)

    def save(self, path: str | Path) -> None:
        """Write both towers and their constructor arguments to a safetensors file, whole or not at all.

        Raises:
            UserError: the file cannot be written.
        """
        from safetensors.torch import save

        about = {"encoder": self.encoder.about(), "text": self.text.about(), "dim": self.dim}
        state = {key: value.detach().cpu().contiguous() for key, value in self.state_dict().items()}
        write_bytes(Path(path), save(state, {CLIP.ABOUT: json.dumps(about)}))

    @staticmethod
    def load(path: str | Path) -> CLIP:
        """The towers that `save` wrote, for `embed` and `embed_texts`. Runs no code from the file.

        Raises:
            UserError: there is no such file, or it holds no towers of falseneg, or it is damaged.
        """

        def built(about: dict[str, dict[str, object] | int]) -> CLIP:
            return CLIP(Encoder(**about["encoder"]), TextEncoder(**about["text"]), about["dim"])  # type: ignore[arg-type]

        method, state = described_in(Path(path), CLIP.ABOUT, {"encoder": dict, "text": dict, "dim": int}, built)
        load_exactly(method, state, str(path))
        return method
