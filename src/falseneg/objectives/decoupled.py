"""Decoupled contrastive learning: the positives leave the denominator."""

from __future__ import annotations

from torch import Tensor

from falseneg.clock import Clock
from falseneg.contrast import Contrast
from falseneg.objectives.base import Objective
from falseneg.objectives.parts import log_mass, mean_positive
from falseneg.statistics.negatives import NegativeStats
from falseneg.strategy import Strategy


class Decoupled(Objective):
    """Decoupled contrastive loss (Yeh et al. 2022, arXiv 2110.06848, equation 6 without the weighting).

    loss_i = log(c · mass_i) − (Σ_p s_ip + a · Σ_F s_if) / (τ (P + a·|F_i|)), in the letters of `InfoNCE`.

    An anchor that lost all its negatives keeps the attraction only.
    """

    def forward(
        self, contrast: Contrast, stats: NegativeStats, tau: Tensor, strategy: Strategy, clock: Clock | None = None
    ) -> Tensor:
        log_negatives = log_mass(stats)
        # Masked before it meets any gradient: -inf times zero would be NaN.
        log_negatives = log_negatives.masked_fill(stats.weight <= 0, 0)
        return log_negatives - mean_positive(contrast, stats) / tau.to(log_negatives.dtype)
