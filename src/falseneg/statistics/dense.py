"""The reference backend: stores the whole matrix and leaves the gradient to autograd."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import softplus

from falseneg.contrast import Contrast
from falseneg.rules import PairRule, at_least_float32
from falseneg.statistics.pairs import Totals, masks, pushed_away, stacked, weighted_logits
from falseneg.strategy import Strategy

SOFTPLUS_IS_LINEAR = 50.0
"""From here on softplus(x) is x to the last bit of float64 (torch's default of 20 is not)."""


class DenseSweep:
    """All pairs at once: O(N · M) memory."""

    def __init__(self, contrast: Contrast, tau: Tensor, strategy: Strategy) -> None:
        self.contrast, self.strategy = contrast, strategy
        anchors, candidates = at_least_float32(contrast.anchors.z), at_least_float32(contrast.candidates.z)
        with torch.autocast(anchors.device.type, enabled=False):
            self.sim = anchors @ candidates.T
        self.tau = tau.to(self.sim.dtype).expand(len(anchors))[:, None]
        self._known: dict[PairRule, tuple[Tensor, Tensor]] = {}

    def totals(self, rules: Sequence[PairRule], scale: float, cosines: bool) -> Totals:
        return stacked([self._totals(rule, scale) for rule in rules])

    def _totals(self, rule: PairRule, scale: float) -> Totals:
        pushed, flagged = self._masks(rule)
        logits = weighted_logits(scale * self.sim / self.tau, pushed, flagged, self.strategy)
        empty = (logits == -torch.inf).all(dim=1)
        log_sum = logits.masked_fill(empty[:, None], 0).logsumexp(dim=1).masked_fill(empty, -torch.inf)
        flagged_sim = (self.sim * flagged).sum(dim=1)
        return log_sum, flagged_sim, pushed.sum(dim=1), flagged.sum(dim=1), (pushed & flagged).sum(dim=1)

    def over_flagged(self, rule: PairRule, log_rest: Tensor) -> Tensor:
        _, flagged = self._masks(rule)
        terms = softplus(log_rest[:, None] - self.sim / self.tau, threshold=SOFTPLUS_IS_LINEAR)
        return torch.where(flagged, terms, 0).sum(dim=1)

    def _masks(self, rule: PairRule) -> tuple[Tensor, Tensor]:
        """(N, M) bool: the pairs that are pushed away, and the flagged negatives; found once, for all that asks."""
        if rule not in self._known:
            rows, cols = (slice(0, length) for length in self.sim.shape)
            negative, flagged = masks(self.contrast, rule, rows, cols, self.sim)
            self._known[rule] = pushed_away(self.contrast, cols, negative), flagged
        return self._known[rule]
