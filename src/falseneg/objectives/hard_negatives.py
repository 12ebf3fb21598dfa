"""Hard negatives weigh more, and the false ones among them are estimated and taken away."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from falseneg.clock import Clock
from falseneg.contrast import Contrast
from falseneg.errors import UserError
from falseneg.facts import Facts
from falseneg.objectives.base import Objective
from falseneg.objectives.debiased import check_prior, debiased, known_prior, prior_of
from falseneg.objectives.parts import log_weight, mean_positive
from falseneg.statistics.negatives import NegativeStats
from falseneg.strategy import Strategy


class HardNegatives(Objective):
    """Contrastive loss with hard negatives (Robinson et al. 2021, arXiv 2010.04592, section 3).

    Each negative weighs e^{β·s/τ}, divided by the mean of these weights, so that the total weight stays W_i:

    mass_i = W_i · Σ_j w_j e^{(1+β)·s_ij/τ} / Σ_j w_j e^{β·s_ij/τ}

    with w the strategy's weights. Then the loss is that of `Debiased`, with the mass of the true negatives estimated
    from this one and from the positives, which are weighted alike where there are several. The weights carry gradient,
    as in the released code. Two more sweeps of the matrix.

    Args:
        beta: β, how much more a hard negative weighs, at least 0; 0 is `Debiased`.
        class_prior: π (the paper's τ⁺), the share of false negatives among the negatives, from 0 (no debiasing) to
            below 1; None for one over the number of expected classes.

    Raises:
        UserError: an option is outside its range.
    """

    def __init__(self, beta: float = 1.0, class_prior: float | None = None) -> None:
        super().__init__()
        if not (math.isfinite(beta) and beta >= 0):
            raise UserError(f"HardNegatives: beta is {beta}; give a number of at least 0")
        check_prior("HardNegatives", class_prior)
        self.beta, self.class_prior = beta, class_prior

    def prepare(self, facts: Facts) -> None:
        self.class_prior = prior_of("HardNegatives", self.class_prior, facts)

    def forward(
        self, contrast: Contrast, stats: NegativeStats, tau: Tensor, strategy: Strategy, clock: Clock | None = None
    ) -> Tensor:
        prior = known_prior("HardNegatives", self.class_prior)
        tau = tau.to(stats.log_sum.dtype).expand(len(contrast.anchors))
        positives = contrast.positives / tau[:, None]
        log_positive = ((1 + self.beta) * positives).logsumexp(dim=1) - (self.beta * positives).logsumexp(dim=1)
        log_count = log_weight(stats)
        log_negatives = log_count + self._mean_of_negatives(stats)
        log_negatives = debiased(log_negatives, log_count, log_positive, tau, prior)
        log_denominator = torch.logaddexp(positives.logsumexp(dim=1), log_negatives)
        return log_denominator - mean_positive(contrast, stats) / tau

    def _mean_of_negatives(self, stats: NegativeStats) -> Tensor:
        """(N,) log of the weighted mean of e^{s/τ}; 0 where nothing has weight."""
        empty = stats.weight <= 0
        hard, weights = stats.log_sum_at(1 + self.beta), stats.log_sum_at(self.beta)
        return hard.masked_fill(empty, 0) - weights.masked_fill(empty, 0)
