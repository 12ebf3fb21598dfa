"""How an audit is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from falseneg.errors import UserError
from falseneg.train.run import check_batch_size


@dataclass(frozen=True)
class Asked:
    """How an audit is made.

    Attributes:
        size: side of the images in pixels.
        batch_size: B, images of the batches in which detectors flag.
        kinds: the number of classes to expect; None lets the data say.
        near: cosine above which images are near duplicates; None goes by the images' own views.
        seed: of views, batches and clusters.
        device: where the encoder lies.
        workers: processes that read images.
        progress: called with what is being done, how much of it is done, and how much there is.
    """

    size: int
    batch_size: int = 256
    kinds: int | None = None
    near: float | None = None
    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    workers: int = 0
    progress: Callable[[str, int, int], None] = lambda what, done, total: None

    def check(self) -> None:
        """Refuse what cannot be.

        Raises:
            UserError: a value is outside its range.
        """
        check_batch_size(self.batch_size)
        if self.kinds is not None and self.kinds < 2:
            raise UserError(f"expected_classes is {self.kinds}; give at least 2, or leave it out")
        if self.near is not None and not -1 <= self.near <= 1:
            raise UserError(f"near_duplicates is {self.near}; it is a cosine, so give a number from -1 to 1")
