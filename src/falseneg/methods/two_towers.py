"""Two towers: what an image and a text have in common, compared in both directions."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from falseneg.batch import Batch, Embeddings
from falseneg.contrast import Contrast, Embedded, Space
from falseneg.errors import UserError
from falseneg.methods.base import Method, told_apart, unit_rows
from falseneg.models.text import Tokenizer
from falseneg.statistics.gather import gather

IMAGE_TO_TEXT, TEXT_TO_IMAGE = "image->text", "text->image"


class TwoTowers(Method):
    """Images against texts and texts against images, each direction with half of the loss. Abstract.

    An image is an anchor with its text as the positive, and the texts of all other images, of all ranks, as negatives;
    and the other way round. Each direction has a name, so that detectors, objectives and temperatures keep state for
    each image and for each text. Where an image has several captions, each epoch draws one of them.

    A detector may compare in the ``space`` "image" or "text" (the anchor's own image or text with those of the other
    pairs, in either direction), or in "support": an image's further crops with the texts, a text's other captions with
    the images; where there are none of a kind, the image or the text itself.

    Args:
        dim: D, of the embedding that is compared.
        support_views: further views of each image that help to detect false negatives.
        support_texts: further captions of each image that help to detect them; an image with too few repeats its own.

    Raises:
        UserError: fewer than no support views or texts.
    """

    contrast_names = (IMAGE_TO_TEXT, TEXT_TO_IMAGE)
    with_gradient = ("image", "text")

    tokenize: Tokenizer
    """Texts to what `embed_texts` takes."""

    def __init__(self, dim: int, support_views: int = 0, support_texts: int = 0) -> None:
        super().__init__()
        for name, number in (("support_views", support_views), ("support_texts", support_texts)):
            if number < 0:
                raise UserError(f"{type(self).__name__}: {name} is {number}; give 0 or more")
        self.dim = dim
        self.streams = {"image": 1} | ({"support": support_views} if support_views else {})
        self.texts = {"text": 1} | ({"support text": support_texts} if support_texts else {})

    @abstractmethod
    def image_embeddings(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 images to (B, D), of any length."""

    @abstractmethod
    def text_embeddings(self, tokens: Tensor) -> Tensor:
        """(B, L) tokens to (B, D), of any length."""

    def encode(self, batch: Batch) -> Embeddings:
        rows = dict(self.encode_again(batch).rows)
        with torch.no_grad():
            if support := batch.sizes("support"):
                rows["support"] = torch.cat([unit_rows(self.image_embeddings, group) for group in support], dim=1)
            if texts := batch.sizes("support text"):
                rows["support text"] = torch.cat([unit_rows(self.text_embeddings, group) for group in texts], dim=1)
        return Embeddings(batch.index, rows)

    def encode_again(self, batch: Batch) -> Embeddings:
        image = unit_rows(self.image_embeddings, batch.streams["image"])
        return Embeddings(batch.index, {"image": image, "text": unit_rows(self.text_embeddings, batch.streams["text"])})

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        return unit_rows(self.image_embeddings, images[:, None])[:, 0]

    @torch.no_grad()
    def embed_texts(self, tokens: Tensor) -> Tensor:
        """(B, L) tokens to (B, D) unit rows, without gradient."""
        return unit_rows(self.text_embeddings, tokens[:, None])[:, 0]

    def contrasts(self, embeddings: Embeddings) -> list[Contrast]:
        return contrast_pairs(embeddings)

    def negatives(self, images: int) -> int:
        return images - 1


def contrast_pairs(embeddings: Embeddings) -> list[Contrast]:
    """Both directions of B pairs: anchor b of each is its side of pair b.

    Args:
        embeddings: "image" (B, 1, D) and "text" (B, 1, D), the two sides; "support" (B, S, D) and "support text"
            (B, T, D), further views of the first and of the second, if any.
    """
    sample = told_apart(embeddings.index)
    sides = [Embedded(embeddings.rows[name].squeeze(1), sample) for name in ("image", "text")]
    everyone = [gather(side) for side in sides]
    positives = (sides[0].z * sides[1].z).sum(dim=1, keepdim=True)
    contrasts = []
    for own, support, name in ((0, "support", IMAGE_TO_TEXT), (1, "support text", TEXT_TO_IMAGE)):
        spaces = {kind: _own_kind(sides[side], everyone[side]) for side, kind in enumerate(("image", "text"))}
        if "support" in embeddings.rows or "support text" in embeddings.rows:
            queries = embeddings.rows.get(support, sides[own].z[:, None]).detach()
            spaces["support"] = Space(queries, _each(sample), everyone[1 - own].z.detach())
        contrasts.append(Contrast(name, sides[own], everyone[1 - own], positives, spaces, weight=0.5))
    return contrasts


def _own_kind(side: Embedded, everyone: Embedded) -> Space:
    """Rows of one side against all rows of the same side, which are in the order of their pairs."""
    return Space(side.z.detach()[:, None], _each(side.sample), everyone.z.detach())


def _each(sample: Tensor) -> Tensor:
    return torch.arange(len(sample), device=sample.device)
