"""The running mean of each sample's negatives over the whole data set: what the global contrastive losses share."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from falseneg.sample_table import SampleTable
from falseneg.statistics.gather import place_of_rank


class RunningMean(nn.Module):
    """u of SogCLR (Yuan et al. 2022, arXiv 2202.12387), held as a natural log: safe at a temperature of .01 in float32.

    Each anchor v of a sample i (a view, on whatever rank) has its own update, u_v = (1 − gamma) u_i + gamma g_v, where g_v
    is what it sees in the step. What is stored as u_i is the mean of its anchors' u_v. A sample that was never seen
    starts at g_v.

    Args:
        rows: images in the data set.
    """

    filtering: Tensor

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.table = SampleTable(rows, {"log_mean": torch.nan, "filtered": 0.0})
        self.register_buffer("filtering", torch.tensor(False))

    def log_mean(self, row: Tensor) -> Tensor:
        """(N,) float32 log u; NaN for samples that were never seen."""
        return self.table.read("log_mean", row)

    def before_filtering(self, row: Tensor) -> Tensor:
        """(N,) bool: whether u still is the mean over all negatives, from before some of them were filtered out."""
        return (self.table.visits[row] > 0) & (self.table.read("filtered", row) == 0)

    @torch.no_grad()
    def update(self, row: Tensor, log_kept: Tensor, log_all: Tensor, filtered: Tensor, gamma: float) -> Tensor:
        """One step, over the anchors of all ranks.

        When filtering starts for a sample, u loses the mass that is filtered out from now on: it is rescaled by the
        ratio of the two means of that step. Otherwise it would stay too large for 1 / gamma visits, and the gradient
        too small.

        Args:
            row: (N,) int64 rows of the anchors.
            log_kept: (N,) log g; −inf where nothing is kept: such an anchor changes nothing.
            log_all: (N,) log of the same mean with the filtered negatives; needed only where ``filtered`` and
                `before_filtering` both hold.
            filtered: (N,) bool, whether any negatives of the anchor were filtered out.
            gamma: the weight of this step, above 0 and at most 1.

        Returns:
            (N,) float64 log u_v of each anchor of this rank; NaN where nothing is kept.
        """
        log_kept = log_kept.masked_fill(log_kept == -torch.inf, torch.nan)
        gathered = self.table.gather_by_row(row, {"kept": log_kept, "all": log_all, "filtered": filtered})
        kept, whole, filtered = gathered.log_mean("kept"), gathered.log_mean("all"), gathered.mean("filtered") > 0

        old, known = self.table.read("log_mean", gathered.line).double(), self.table.visits[gathered.line] > 0
        starts = filtered & self.before_filtering(gathered.line)
        old = torch.where(starts, old + kept - whole, old)
        past = math.log1p(-gamma) if gamma < 1 else -math.inf
        new, of_anchor = (
            torch.where(known, torch.logaddexp(old + past, log_g + math.log(gamma)), log_g)
            for log_g in (kept, gathered.values["kept"].masked_fill(~gathered.known, torch.nan))
        )

        # What is first seen when others are filtered already has nothing to lose, even if none of its own are.
        self.filtering |= filtered.any()
        done = ~self.before_filtering(gathered.line) & (known | self.filtering) | filtered
        self.table.update(gathered, {"log_mean": new, "filtered": done})
        return of_anchor[place_of_rank(row)]
