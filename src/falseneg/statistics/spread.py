"""How the similarities of a few anchors with a whole data set are spread, seen piece by piece."""

from __future__ import annotations

import torch
from torch import Tensor

from falseneg.contrast import Contrast, Space
from falseneg.statistics.scan import row_blocks

BINS = 2**14
"""Bins between −1 and 1: a quantile is known to 0.00012, whatever the size of the data set."""


class Spread:
    """Counts the similarities of A anchors in fine bins, for their quantiles. Memory: O(A · BINS).

    Args:
        anchors: A.
        device: where the similarities are.
    """

    def __init__(self, anchors: int, device: torch.device | str = "cpu") -> None:
        self.counts = torch.zeros(anchors, BINS, dtype=torch.int64, device=device)

    @torch.no_grad()
    def add(self, contrast: Contrast, place: Tensor, space: Space | None = None, part: str | None = None) -> None:
        """Count the similarities with some more candidates; pairs of one sample are left out.

        Args:
            contrast: N anchors, of which several may be views of one, against M candidates.
            place: (N,) int64, which of the A each of them belongs to.
            space: where to compare; None for the contrast's own cosines.
            part: the part of the candidates to look at; None for all.
        """
        for rows, _, scores, negative in row_blocks(contrast, space, contrast.columns(part)):
            bins = ((scores + 1) / 2 * BINS).long().clamp(0, BINS - 1) + BINS * place[rows, None]
            self.counts += bins[negative].bincount(minlength=self.counts.numel()).view_as(self.counts)

    @property
    def seen(self) -> Tensor:
        """(A,) int64, how many similarities of each anchor were counted."""
        return self.counts.sum(dim=1)

    def quantile(self, alpha: float) -> Tensor:
        """(A,) float64: the k-th highest similarity of each anchor, k = ceil(alpha · seen); NaN where none was seen.

        This is the minimiser of alpha · nu + mean of (s − nu)_+, GloFND's problem for one anchor. Within a bin,
        similarities are taken to be evenly spread.
        """
        k = (alpha * self.seen.double() - 1e-9).ceil().clamp(min=1)
        from_above = self.counts.flip(1).cumsum(1)
        place = (from_above < k[:, None]).sum(dim=1).clamp(max=BINS - 1)[:, None]
        inside = self.counts.flip(1).gather(1, place)[:, 0].double()
        above = from_above.gather(1, place)[:, 0] - inside
        edge = 1 - 2 * place[:, 0].double() / BINS
        quantile = edge - 2 / BINS * (k - above - 0.5) / inside.clamp(min=1)
        return quantile.masked_fill(self.seen == 0, torch.nan)
