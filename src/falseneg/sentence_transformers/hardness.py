"""Hard negatives weigh more: the ``hardness_mode`` of sentence-transformers."""

from __future__ import annotations

import torch
from torch import Tensor

from falseneg.clock import Clock
from falseneg.contrast import Contrast
from falseneg.objectives import InfoNCE, Objective
from falseneg.objectives.parts import mean_positive
from falseneg.statistics import NegativeStats
from falseneg.strategy import Strategy

DIRECTION = "query_to_doc"
"""The contrast in which negatives weigh more, as in sentence-transformers; elsewhere it is `InfoNCE`."""


class Hardness(Objective):
    """InfoNCE whose negatives weigh e^{α·s} more, without gradient (Lan et al. 2025, equation 5), queries against documents.

    loss_i = log(Σ_p e^{s_ip/τ} + Σ_j w_j e^{s_ij/τ + α·sg(s_ij)}) − mean positive / τ

    with sg the cosine as a constant. The sum is that of e^{(1 + α·τ)·s/τ}, of whose gradient 1 / (1 + α·τ) is that of s/τ. One
    more sweep of the matrix.

    Args:
        strength: α, above 0.
        tau: the temperature, which is fixed.
    """

    def __init__(self, strength: float, tau: float) -> None:
        super().__init__()
        self.strength, self.more = strength, 1 + strength * tau
        self.plain = InfoNCE()

    def forward(
        self, contrast: Contrast, stats: NegativeStats, tau: Tensor, strategy: Strategy, clock: Clock | None = None
    ) -> Tensor:
        if contrast.name != DIRECTION:
            loss: Tensor = self.plain(contrast, stats, tau, strategy, clock)
            return loss
        hard = stats.log_sum_at(self.more)
        hard = hard.detach() * (1 - 1 / self.more) + hard / self.more
        rescaled = torch.where(stats.weight > 0, stats.full / stats.weight, 1).log()
        tau = tau.to(hard.dtype)
        log_positives = (contrast.positives / tau).logsumexp(dim=1)
        return torch.logaddexp(log_positives, hard + rescaled) - mean_positive(contrast, stats) / tau
