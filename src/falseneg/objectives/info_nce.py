"""InfoNCE: the positives share one denominator."""

from __future__ import annotations

import torch
from torch import Tensor

from falseneg.clock import Clock
from falseneg.contrast import Contrast
from falseneg.objectives.base import Objective
from falseneg.objectives.parts import log_mass, mean_positive
from falseneg.statistics.negatives import NegativeStats
from falseneg.strategy import Strategy


class InfoNCE(Objective):
    """NT-Xent (SimCLR) for one positive; FNC's equations 1–3 and SupCon's "out" form for many.

    loss_i = log(Σ_p e^{s_ip/τ} + c · mass_i) − (Σ_p s_ip + a · Σ_F s_if) / (τ (P + a·|F_i|))

    where a is the strategy's ``positive``, mass_i the weighted sum of e^{s/τ} over the negatives, and c rescales it to
    the full count if the strategy renormalises. An anchor that lost all its negatives keeps its positives only.
    """

    def forward(
        self, contrast: Contrast, stats: NegativeStats, tau: Tensor, strategy: Strategy, clock: Clock | None = None
    ) -> Tensor:
        tau = tau.to(stats.log_sum.dtype)
        log_positives = (contrast.positives / tau.expand(len(contrast.anchors))[:, None]).logsumexp(dim=1)
        log_denominator = torch.logaddexp(log_positives, log_mass(stats))
        return log_denominator - mean_positive(contrast, stats) / tau
