"""The reference backend: stores the whole matrix and leaves the gradient to autograd."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from falseneg.contrast import Contrast
from falseneg.rules import PairRule, at_least_float32
from falseneg.statistics.pairs import Totals, masks, pushed_away, weighted_logits
from falseneg.strategy import Strategy

SOFTPLUS_IS_LINEAR = 50.0
"""From here on softplus(x) is x to the last bit of float64 (torch's default of 20 is not)."""


class DenseSweep:
    """All pairs at once: O(N · M) memory."""

    def __init__(self, contrast: Contrast, tau: Tensor, rule: PairRule, strategy: Strategy) -> None:
        anchors, candidates = at_least_float32(contrast.anchors.z), at_least_float32(contrast.candidates.z)
        with torch.autocast(anchors.device.type, enabled=False):
            self.sim = anchors @ candidates.T
        self.tau = tau.to(self.sim.dtype).expand(len(anchors))[:, None]
        rows, cols = slice(0, len(anchors)), slice(0, len(candidates))
        negative, self.flagged = masks(contrast, rule, rows, cols, self.sim)
        self.pushed = pushed_away(contrast, cols, negative)
        self.strategy = strategy

    def totals(self, scale: float) -> Totals:
        logits = weighted_logits(scale * self.sim / self.tau, self.pushed, self.flagged, self.strategy)
        empty = (logits == -torch.inf).all(dim=1)
        log_sum = logits.masked_fill(empty[:, None], 0).logsumexp(dim=1).masked_fill(empty, -torch.inf)
        flagged_sim = (self.sim * self.flagged).sum(dim=1)
        flagged_of_count = (self.pushed & self.flagged).sum(dim=1)
        return log_sum, flagged_sim, self.pushed.sum(dim=1), self.flagged.sum(dim=1), flagged_of_count

    def over_flagged(self, log_rest: Tensor) -> Tensor:
        terms = softplus(log_rest[:, None] - self.sim / self.tau, threshold=SOFTPLUS_IS_LINEAR)
        return torch.where(self.flagged, terms, 0).sum(dim=1)
