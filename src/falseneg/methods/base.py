"""Where anchors, candidates and positives come from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from falseneg.clock import Clock
from falseneg.contrast import NOBODY, Contrast
from falseneg.errors import UserError
from falseneg.rules import at_least_float32
from falseneg.statistics.gather import rank


@dataclass(frozen=True, eq=False)
class Views:
    """A batch of B images, each seen several times; what the loader yields and a method encodes.

    Attributes:
        main: (B, V, 3, H, W) uint8 views that are compared.
        support: further views, in groups of one size each: (B, S', 3, H', W') uint8; () for none.
        sample: (B,) int64 data-set rows of the images.
    """

    main: Tensor
    support: tuple[Tensor, ...]
    sample: Tensor

    def __len__(self) -> int:
        return self.main.shape[0]

    def __getitem__(self, images: slice) -> Views:
        """Some of the images of the batch."""
        return Views(self.main[images], tuple(group[images] for group in self.support), self.sample[images])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Views:
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Views:
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Views:
        return Views(change(self.main), tuple(change(group) for group in self.support), change(self.sample))


@dataclass(frozen=True, eq=False)
class Embeddings:
    """What a method makes of `Views`: unit rows, image by image, so that pieces of a batch can be put together.

    Attributes:
        main: (B, V, D) with gradient; of those views that the method compares, should it not compare all.
        support: (B, S, D), or None; with gradient only if the method uses the support views as positives.
        sample: (B,) int64 data-set rows; −1 for an image that is no other's repetition.
        keys: (B, V, D) main views as a momentum encoder sees them, without gradient, of those views that the method
            compares with; None without such an encoder.
        support_keys: (B, S, D) support views as a momentum encoder sees them, without gradient, where ``support`` is
            what the main one makes of them as positives; None elsewhere.
    """

    main: Tensor
    support: Tensor | None
    sample: Tensor
    keys: Tensor | None = None
    support_keys: Tensor | None = None

    @staticmethod
    def cat(pieces: list[Embeddings]) -> Embeddings:
        """One batch from pieces of it."""

        def whole(parts: list[Tensor | None]) -> Tensor | None:
            given = [part for part in parts if part is not None]
            return torch.cat(given) if given else None

        return Embeddings(
            torch.cat([piece.main for piece in pieces]),
            whole([piece.support for piece in pieces]),
            torch.cat([piece.sample for piece in pieces]),
            whole([piece.keys for piece in pieces]),
            whole([piece.support_keys for piece in pieces]),
        )


def told_apart(sample: Tensor) -> Tensor:
    """(B,) samples of this rank in which each that is nobody has a number of its own: less than −1, and on no other rank.

    In a batch it is known that no row is another image's: its own views must not become its negatives.
    """
    own = -(2**62) - rank() * 2**40 - torch.arange(len(sample), device=sample.device)
    return torch.where(sample == NOBODY, own, sample)


def unit_rows(network: Callable[[Tensor], Tensor], views: Tensor) -> Tensor:
    """(B, V, 3, H, W) views to (B, V, D) unit rows of a network, in at least float32."""
    z = network(views.flatten(0, 1))
    return normalize(at_least_float32(z), dim=-1).unflatten(0, views.shape[:2])


def with_support_set(
    embeddings: Embeddings, own_views: Tensor | None, as_positives: bool, from_views: bool, owner: str
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
    if as_positives and embeddings.support is None:
        raise UserError(f"{owner}: support_as_positives needs support views; give support_views, or multi_crop")
    if not from_views:
        return embeddings
    if embeddings.support is not None:
        raise UserError(
            f"{owner}: support_from_views makes the main views the support set, but there are further support views; "
            "leave support_views and multi_crop out, or support_from_views"
        )
    return replace(embeddings, support=own_views)


class Method(nn.Module):
    """Where anchors, candidates and positives come from. Open: SimCLR, a memory bank, two towers."""

    encoder: nn.Module
    """The part that is evaluated and exported: images to features."""

    views: int = 2
    """How many main views of each image the method wants."""

    support_views: int = 0
    """How many support views of each image the method wants."""

    shuffle_groups: int = 0
    """Whether the method shuffles BatchNorm, which synchronised statistics would undo."""

    contrast_names: tuple[str, ...] = ("views",)
    """The names of the contrasts of a step."""

    dim: int = 2
    """D, where a method keeps embeddings of earlier steps; made-up embeddings must have it."""

    def encode(self, views: Views) -> Embeddings:
        """Embed a batch, or a piece of one: apart from `contrasts`, so that a gradient cache can run it in pieces.

        The main views come first, and do not depend on the support views: the cache encodes only what has a gradient
        a second time, with the same random draws.
        """
        raise NotImplementedError

    def encode_again(self, views: Views) -> Embeddings:
        """What of `encode` has a gradient: the gradient cache's second pass. The rest may be left out."""
        return self.encode(views)

    def embed(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) images to (B, D) unit rows, without gradient: the embedding in which images are candidates."""
        raise NotImplementedError

    def contrasts(self, embeddings: Embeddings) -> list[Contrast]:
        """The comparisons of one step, over the rows of all ranks."""
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

    def after_step(self, clock: Clock) -> None:
        """Called after each optimiser step: momentum update, enqueue."""

    def after_loading(self) -> None:
        """Called when a run has loaded weights to start from: what follows from them begins anew."""
