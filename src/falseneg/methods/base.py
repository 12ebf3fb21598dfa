"""Where anchors, candidates and positives come from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from falseneg.contrast import Contrast


@dataclass(frozen=True, eq=False)
class Views:
    """A batch of B images, each seen several times; what the loader yields and a method encodes.

    Attributes:
        main: (B, V, 3, H, W) uint8 views that are compared.
        support: (B, S, 3, H', W') uint8 further views that only help to detect, or None.
        sample: (B,) int64 data-set rows of the images.
    """

    main: Tensor
    support: Tensor | None
    sample: Tensor

    def __len__(self) -> int:
        return self.main.shape[0]

    def __getitem__(self, images: slice) -> Views:
        """Some of the images of the batch."""
        return Views(self.main[images], None if self.support is None else self.support[images], self.sample[images])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Views:
        support = None if self.support is None else self.support.to(device, non_blocking=non_blocking)
        return Views(
            self.main.to(device, non_blocking=non_blocking), support, self.sample.to(device, non_blocking=non_blocking)
        )

    def pin_memory(self) -> Views:
        support = None if self.support is None else self.support.pin_memory()
        return Views(self.main.pin_memory(), support, self.sample.pin_memory())


@dataclass(frozen=True, eq=False)
class Embeddings:
    """What a method makes of `Views`: unit rows, image by image, so that pieces of a batch can be put together.

    Attributes:
        main: (B, V, D) with gradient.
        support: (B, S, D), or None; with gradient only if the method uses the support views as positives.
        sample: (B,) int64 data-set rows.
    """

    main: Tensor
    support: Tensor | None
    sample: Tensor

    @staticmethod
    def cat(pieces: list[Embeddings]) -> Embeddings:
        """One batch from pieces of it."""
        supports = [piece.support for piece in pieces if piece.support is not None]
        return Embeddings(
            torch.cat([piece.main for piece in pieces]),
            torch.cat(supports) if supports else None,
            torch.cat([piece.sample for piece in pieces]),
        )


class Method(nn.Module):
    """Where anchors, candidates and positives come from. Open: SimCLR, a memory bank, two towers."""

    encoder: nn.Module
    """The part that is evaluated and exported: images to features."""

    views: int = 2
    """How many main views of each image the method wants."""

    support_views: int = 0
    """How many support views of each image the method wants."""

    def encode(self, views: Views) -> Embeddings:
        """Embed a batch, or a piece of one: apart from `contrasts`, so that a gradient cache can run it in pieces.

        The main views come first, and do not depend on the support views: the cache encodes only what has a gradient
        a second time, with the same random draws.
        """
        raise NotImplementedError

    def contrasts(self, embeddings: Embeddings) -> list[Contrast]:
        """The comparisons of one step, over the rows of all ranks."""
        raise NotImplementedError

    def negatives(self, images: int) -> int:
        """Candidates of other images for each anchor, when a step sees this many images over all ranks."""
        raise NotImplementedError

    def after_step(self) -> None:
        """Called after each optimiser step: momentum update, enqueue."""
