"""Where anchors, candidates and positives come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from falseneg.batch import Batch, Embeddings
from falseneg.clock import Clock
from falseneg.contrast import NOBODY, Contrast
from falseneg.errors import UserError
from falseneg.models import Encoder
from falseneg.rules import at_least_float32
from falseneg.statistics.gather import rank

ENCODER = "encoder.safetensors"
"""Of a run's folder: what outlives training."""


def told_apart(index: Tensor) -> Tensor:
    """(B,) samples of this rank in which each that is nobody has its own number: less than −1, and on no other rank.

    In a batch it is known that no row is another image's: its own views must not become its negatives.
    """
    own = -(2**62) - rank() * 2**40 - torch.arange(len(index), device=index.device)
    return torch.where(index == NOBODY, own, index)


def unit_rows(network: Callable[[Tensor], Tensor], views: Tensor) -> Tensor:
    """(B, V, 3, H, W) views to (B, V, D) unit rows of a network, in at least float32."""
    z = network(views.flatten(0, 1))
    return normalize(at_least_float32(z), dim=-1).unflatten(0, views.shape[:2])


def with_support_set(
    embeddings: Embeddings, own_views: Tensor, as_positives: bool, from_views: bool, owner: str
) -> Embeddings:
    """A step's embeddings with the support set that the method was asked for.

    Checked in a step and not at construction: multi-crop gives support views to a method that has none yet.

    Args:
        embeddings: as `Method.encode` made them.
        own_views: (B, V, D) what is the support set where the main views are.
        as_positives: the method's ``support_as_positives``.
        from_views: its ``support_from_views``.
        owner: its name.

    Raises:
        UserError: support views are asked for as positives where there are none, or beside main views that are the
            support set.
    """
    if as_positives and "support" not in embeddings.rows:
        raise UserError(f"{owner}: support_as_positives needs support views; give support_views, or multi_crop")
    if not from_views:
        return embeddings
    if "support" in embeddings.rows:
        raise UserError(
            f"{owner}: support_from_views makes the main views the support set, but there are further support views; "
            "leave support_views and multi_crop out, or support_from_views"
        )
    return Embeddings(embeddings.index, {**embeddings.rows, "support": own_views})


class Method(nn.Module):
    """Where anchors, candidates and positives come from. Open: SimCLR, a memory bank, two towers."""

    encoder: nn.Module
    """The part that is evaluated and exported: images to features."""

    streams: Mapping[str, int] = {"image": 2}
    """The streams of a batch that the method wants, and how many views of an image there are in each."""

    texts: Mapping[str, int] = {}
    """The streams of texts that it wants, and how many captions of an image there are in each."""

    tokenize: Callable[[Sequence[str]], Tensor] | None = None
    """n texts to (n, L) tokens, where it wants texts."""

    with_gradient: tuple[str, ...] = ("image",)
    """The names of the rows of its embeddings that learn; the others have no gradient."""

    shuffle_groups: int = 0
    """Whether the method shuffles BatchNorm, which synchronised statistics would undo."""

    contrast_names: tuple[str, ...] = ("views",)
    """The names of the contrasts of a step."""

    dim: int = 2
    """D, where a method keeps embeddings of earlier steps; made-up embeddings have it."""

    @property
    def towers(self) -> Mapping[str, nn.Module]:
        """The networks from a stream to its features, by the name of the stream."""
        return {"image": self.encoder}

    def encode(self, batch: Batch) -> Embeddings:
        """Embed a batch, or a piece of one: apart from `contrasts`, so that a gradient cache can run it in pieces.

        What has a gradient comes first, and does not depend on the rest: the cache encodes only that a second time, with
        the same random draws.
        """
        raise NotImplementedError

    def encode_again(self, batch: Batch) -> Embeddings:
        """What of `encode` has a gradient: the gradient cache's second pass. The rest may be left out."""
        return self.encode(batch)

    def embed(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) images to (B, D) unit rows, without gradient: the embedding in which images are candidates."""
        raise NotImplementedError

    def export(self, folder: Path, tau: float | None = None) -> None:
        """Write what outlives training into a run's folder: the encoder.

        Args:
            folder: of the run.
            tau: the temperature at the end, where it is one for all.

        Raises:
            UserError: a file cannot be written.
        """
        if isinstance(self.encoder, Encoder):
            self.encoder.save(folder / ENCODER)

    def made_up(self, streams: Mapping[str, int], device: torch.device) -> Embeddings:
        """What `encode` could make of two items, all rows alike: it is enough to see which contrasts there will be.

        Args:
            streams: how many views there are of an item, by stream.
            device: of the embeddings.
        """
        rows = {
            name: torch.full((2, views, self.dim), self.dim**-0.5, device=device) for name, views in streams.items()
        }
        return Embeddings(torch.arange(2, device=device), rows)

    def contrasts(self, embeddings: Embeddings) -> list[Contrast]:
        """The comparisons of one step, over the rows of all ranks. Changes nothing of the method."""
        raise NotImplementedError

    def negatives(self, images: int) -> int:
        """Candidates of other images for each anchor, when a step sees this many images over all ranks.

        Raises:
            UserError: the method cannot work with so many.
        """
        raise NotImplementedError

    def caution(self) -> str:
        """What should be known before training, in a sentence; nothing for most methods."""
        return ""

    def after_step(self, embeddings: Embeddings, clock: Clock) -> None:
        """Called after each optimiser step: momentum update, enqueue.

        Args:
            embeddings: those that the step's contrasts were formed of.
            clock: where training stood in the step.
        """

    def after_loading(self) -> None:
        """Called when a run has loaded weights to start from: what follows from them starts again."""
