"""What a loader yields and what a method makes of it: streams of tensors by name, one line for each item of the data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Batch:
    """B items of the data set as a method sees them.

    Attributes:
        index: (B,) int64 data-set rows of the items.
        streams: what is seen of them, by name, each (B, …): "image" (B, V, 3, H, W) uint8 views, "support" further ones.
            Where the views of a stream come in several sizes, the second size is "support 2", and so on.
    """

    index: Tensor
    streams: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, items: slice) -> Batch:
        """Some of the items of the batch."""
        return self._each(lambda tensor: tensor[items])

    def sizes(self, stream: str) -> list[Tensor]:
        """That stream, one tensor for each size of its views; none where the batch does not have it."""
        return [tensor for name, tensor in self.streams.items() if name.rstrip("0123456789 ") == stream]

    def pieces(self, number: int) -> list[Batch]:
        """The batch in that many parts, whose lengths differ by one at most."""
        cuts = [len(self) * piece // number for piece in range(number + 1)]
        return [self[start:stop] for start, stop in pairwise(cuts)]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        return Batch(change(self.index), {name: change(tensor) for name, tensor in self.streams.items()})


@dataclass(frozen=True, eq=False)
class Embeddings:
    """What a method makes of a `Batch`: unit rows by name, item by item, so that pieces of a batch can be put together.

    Attributes:
        index: (B,) int64 data-set rows; −1 for an item that repeats no other.
        rows: (B, …, D) unit rows by name. The names are the method's own: "image" are the embedded views of that stream.
    """

    index: Tensor
    rows: Mapping[str, Tensor]

    @staticmethod
    def cat(pieces: Sequence[Embeddings]) -> Embeddings:
        """One batch from pieces of it, which all have the same rows."""
        rows = {name: torch.cat([piece.rows[name] for piece in pieces]) for name in pieces[0].rows}
        return Embeddings(torch.cat([piece.index for piece in pieces]), rows)
