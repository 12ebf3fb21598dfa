"""The memory bank: embeddings of earlier steps, and who they are."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from falseneg.contrast import NOBODY, Embedded
from falseneg.errors import UserError

MOST = 2**31
"""Places: at 128 dimensions these take a terabyte."""


class MemoryBank(nn.Module):
    """A ring of embeddings, in which the newest take the places of the oldest; saved with the checkpoint.

    It is filled from the first place on, and only places that are filled are handed out. Its length need not be a
    multiple of anything. Memory: 4 · dim + 16 bytes a place.

    Args:
        length: places, at least 1.
        dim: D, dimensions of an embedding.

    Raises:
        UserError: there are no places, or more than any memory has.
    """

    z: Tensor
    sample: Tensor
    row: Tensor
    written: Tensor

    def __init__(self, length: int, dim: int) -> None:
        super().__init__()
        if not 1 <= length <= MOST:
            raise UserError(
                f"MemoryBank: length is {length}; give the number of embeddings to keep, from 1 to {MOST:,}"
            )
        self.length = length
        self.register_buffer("z", torch.zeros(length, dim))
        self.register_buffer("sample", torch.full((length,), NOBODY))
        self.register_buffer("row", torch.full((length,), NOBODY))
        self.register_buffer("written", torch.zeros((), dtype=torch.int64))
        self.filled = 0  # as ``written`` says; known here, so that nobody waits for the device to say it
        self.register_load_state_dict_post_hook(_count_again)

    @torch.no_grad()
    def enqueue(self, keys: Embedded) -> None:
        """Store embeddings after those that are there; they must be the same on all ranks.

        Args:
            keys: (n, D); of more than there are places, the last are kept.
        """
        kept = slice(max(0, len(keys) - self.length), len(keys))
        places = (self.written + torch.arange(kept.start, kept.stop, device=self.z.device)) % self.length
        self.z[places] = keys.z[kept].to(self.z.dtype)
        self.sample[places], self.row[places] = keys.sample[kept], keys.table_row[kept]
        self.written += len(keys)
        self.filled = min(self.filled + len(keys), self.length)

    def contents(self) -> Embedded:
        """(m, D) what is stored, place by place: m is the length once that many were enqueued. Views, not copies."""
        return Embedded(self.z[: self.filled], self.sample[: self.filled], self.row[: self.filled])

    def clear(self) -> None:
        """Forget everything."""
        self.written.zero_()
        self.filled = 0


def _count_again(bank: MemoryBank, _: object) -> None:
    """After a state was loaded."""
    bank.filled = min(int(bank.written), bank.length)
