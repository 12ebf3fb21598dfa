"""SimCLR: the views of a batch against one another."""

from __future__ import annotations

import torch
from torch import Tensor

from falseneg.batch import Batch, Embeddings
from falseneg.contrast import Contrast, Embedded, Space
from falseneg.errors import UserError
from falseneg.methods.base import Method, told_apart, unit_rows, with_support_set
from falseneg.models import Encoder, ProjectionHead
from falseneg.statistics.gather import gather


class SimCLR(Method):
    """SimCLR (Chen et al. 2020, arXiv 2002.05709) for any number of views, with FNC's support views.

    Every main view is an anchor; the other main views of its image are its positives; all main views of all other
    images, of all ranks, are its negatives.

    Args:
        encoder: images to features.
        head_layers: layers of the projection head, 1 to 3.
        head_hidden: width inside the head; None for the width of the features.
        head_dim: dimensions of the embedding that is compared.
        head_batch_norm: BatchNorm between the layers of the head.
        head_last_batch_norm: end the head with a BatchNorm, as FNC's and GloFND's released code do.
        head_last_affine: whether that one has weights and biases; GloFND's has none.
        views: main views of each image, at least 2.
        support_views: further views of each image that help to detect false negatives (FNC).
        support_as_positives: the support views are positives as well, and are encoded with gradient: multi-crop, if they
            are small, as in section 4.1.2 of FNC. They are neither anchors nor candidates.
        support_from_views: the main views are themselves the support set, at no further cost: one set of flagged
            negatives for each image, shared by its V anchors. With 10 views and attraction this is FNC as released; the
            paper has 2 main views and 8 further ones.

    Raises:
        UserError: fewer than two views, or fewer than no support views. When a step's contrasts are formed: support
            views are asked for as positives where there are none, or beside main views that are the support set.
    """

    def __init__(
        self,
        encoder: Encoder,
        head_layers: int = 2,
        head_hidden: int | None = None,
        head_dim: int = 128,
        head_batch_norm: bool = True,
        head_last_batch_norm: bool = False,
        head_last_affine: bool = True,
        views: int = 2,
        support_views: int = 0,
        support_as_positives: bool = False,
        support_from_views: bool = False,
    ) -> None:
        super().__init__()
        if views < 2:
            raise UserError(f"SimCLR: views is {views}; an anchor needs a positive, so give at least 2")
        if support_views < 0:
            raise UserError(f"SimCLR: support_views is {support_views}; give 0 or more")
        hidden, norms = head_hidden or encoder.feature_dim, (head_last_batch_norm, head_last_affine, head_batch_norm)
        self.encoder = encoder
        self.head = ProjectionHead(encoder.feature_dim, hidden, head_dim, head_layers, *norms)
        self.views = views
        self.streams = {"image": views} | ({"support": support_views} if support_views else {})
        self.with_gradient = ("image", "support") if support_as_positives else ("image",)
        self.support_as_positives, self.support_from_views = support_as_positives, support_from_views

    def encode(self, batch: Batch) -> Embeddings:
        rows = {"image": self._embed(batch.streams["image"])}
        if support := batch.sizes("support"):
            with torch.set_grad_enabled(self.support_as_positives and torch.is_grad_enabled()):
                rows["support"] = torch.cat([self._embed(group) for group in support], dim=1)
        return Embeddings(batch.index, rows)

    def encode_again(self, batch: Batch) -> Embeddings:
        if self.support_as_positives:
            return self.encode(batch)
        return Embeddings(batch.index, {"image": self._embed(batch.streams["image"])})

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        return self._embed(images[:, None])[:, 0]

    def contrasts(self, embeddings: Embeddings) -> list[Contrast]:
        asked = self.support_as_positives, self.support_from_views
        embeddings = with_support_set(embeddings, embeddings.rows["image"].detach(), *asked, owner="SimCLR")
        return [contrast_views(embeddings, self.support_as_positives)]

    def negatives(self, images: int) -> int:
        return self.views * (images - 1)

    def _embed(self, images: Tensor) -> Tensor:
        """(B, V, 3, H, W) images to (B, V, D) unit rows."""
        return unit_rows(lambda flat: self.head(self.encoder(flat)), images)


def contrast_views(embeddings: Embeddings, support_as_positives: bool = False) -> Contrast:
    """All main views of a batch against one another, image by image: anchor b · V + v is view v of image b.

    Args:
        embeddings: "image" (B, V, D), the main views, and "support" (B, S, D), the support views, if any.
        support_as_positives: count the support views among the positives.
    """
    main, support = embeddings.rows["image"], embeddings.rows.get("support")
    images, views, _ = main.shape
    anchors = Embedded(main.flatten(0, 1), told_apart(embeddings.index).repeat_interleave(views))
    candidates = gather(anchors)
    positives = _with_other_views(main)
    if support is not None and support_as_positives:
        positives = torch.cat([positives, main @ support.mT], dim=2)
    spaces = {}
    if support is not None:
        image_of = torch.arange(images, device=main.device).repeat_interleave(views)
        spaces["support"] = Space(support.detach(), image_of, candidates.z.detach())
    return Contrast("views", anchors, candidates, positives.flatten(0, 1), spaces)


def _with_other_views(main: Tensor) -> Tensor:
    """(B, V, D) to (B, V, V − 1): the cosines of each view with the others of its image."""
    views = main.shape[1]
    if views == 2:  # each has the other; a third of the time of many tiny products
        return (main[:, 0] * main[:, 1]).sum(dim=1)[:, None, None].expand(-1, 2, 1)
    square = main @ main.mT
    # By shapes alone: a mask would have the program wait for the device to count it.
    after_first = square.flatten(1)[:, 1:].unflatten(1, (views - 1, views + 1))
    return after_first[:, :, :-1].reshape(len(main), views, views - 1)
