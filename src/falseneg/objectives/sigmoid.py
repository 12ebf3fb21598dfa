"""SigLIP: each pair by itself, matching or not."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from falseneg.clock import Clock
from falseneg.contrast import Contrast
from falseneg.objectives.base import Objective
from falseneg.rules import PairRule, weighed_less
from falseneg.statistics.dense import SOFTPLUS_IS_LINEAR
from falseneg.statistics.negatives import NegativeStats, sweep_of
from falseneg.statistics.scan import columns_rule
from falseneg.strategy import IGNORE, Strategy


class Sigmoid(Objective):
    """SigLIP's pairwise loss (Zhai et al. 2023, arXiv 2303.15343), with a learned bias b.

    loss_i = Σ_p softplus(−s_ip/τ − b) + a · Σ_F softplus(−s_if/τ − b) + c · Σ_j w_ij softplus(s_ij/τ + b)

    over the known positives p, the flagged negatives F, which weigh the strategy's ``positive`` a among the positives, and
    the negatives j, of which flagged ones weigh its ``negative`` and others 1; c rescales to the full count if the strategy
    renormalises. The sum over both directions of two towers, each with half of the weight, is SigLIP's loss. SigLIP starts
    at τ = 0.1 (`LearnedTemperature`) and b = −10. Costs one more sweep of the matrix, and another one each
    for attraction and for a weight of flagged negatives between 0 and 1.

    Args:
        bias: b at the start.
    """

    def __init__(self, bias: float = -10.0) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.tensor(float(bias)))

    def forward(
        self, contrast: Contrast, stats: NegativeStats, tau: Tensor, strategy: Strategy, clock: Clock | None = None
    ) -> Tensor:
        tau = tau.to(stats.log_sum.dtype)
        bias = self.bias.to(stats.log_sum.dtype).expand(len(contrast.anchors))
        known = -contrast.positives / tau.expand(len(bias))[:, None] - bias[:, None]
        pulled = softplus(known, threshold=SOFTPLUS_IS_LINEAR).sum(dim=1)
        if stats.attracts:
            pulled = pulled + stats.over_attracted(-bias)
        # softplus(b − s/τ) is what a sweep sums: of the opposite anchors it is softplus(b + s/τ).
        opposite = replace(contrast, anchors=replace(contrast.anchors, z=-contrast.anchors.z))
        lighter, whole = weighed_less(stats.tiers)
        pushed = self._pushed(opposite, tau, ~_Opposite(whole), bias)
        for rule, weight in lighter:
            if weight > 0:
                pushed = pushed + weight * self._pushed(opposite, tau, _Opposite(rule), bias)
        return pulled + pushed * torch.where(stats.weight > 0, stats.full / stats.weight, 1)

    @staticmethod
    def _pushed(opposite: Contrast, tau: Tensor, rule: PairRule, bias: Tensor) -> Tensor:
        """(N,) the sum of softplus(s/τ + b) over the negatives of the denominator that the rule picks."""
        if opposite.denominator is not None:
            rule = rule & columns_rule(opposite, opposite.columns(opposite.denominator))
        return sweep_of(opposite, tau, [rule], IGNORE).over_flagged(rule, bias)


@dataclass(frozen=True, eq=False)
class _Opposite(PairRule):
    """The pairs that a rule flags, in a contrast whose anchors are the opposite of the rule's."""

    rule: PairRule

    def tile(self, rows: slice, cols: slice, sim: Tensor) -> Tensor:
        return self.rule.tile(rows, cols, -sim)
