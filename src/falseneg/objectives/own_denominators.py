"""The form in which every positive has its own denominator."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import softplus

from falseneg.clock import Clock
from falseneg.contrast import Contrast
from falseneg.objectives.base import Objective
from falseneg.objectives.parts import log_mass, number_of_positives
from falseneg.statistics.dense import SOFTPLUS_IS_LINEAR
from falseneg.statistics.negatives import NegativeStats
from falseneg.strategy import Strategy


class OwnDenominators(Objective):
    """IFND's attraction (Chen et al. 2022, arXiv 2106.03719), for any number of known positives.

    loss_i = mean over q in {p} ∪ F_i of −log e^{s_iq/τ} / (e^{s_iq/τ} + c · mass_i), in the letters of `InfoNCE`;
    attracted pairs weigh ``positive`` in the mean. With `ATTRACT_OUTSIDE`, as in IFND, the mass is that of the
    negatives outside F_i. Attraction costs one more sweep of the matrix.
    """

    def forward(
        self, contrast: Contrast, stats: NegativeStats, tau: Tensor, strategy: Strategy, clock: Clock | None = None
    ) -> Tensor:
        log_rest = log_mass(stats)
        tau = tau.to(log_rest.dtype).expand(len(contrast.anchors))
        known = softplus(log_rest[:, None] - contrast.positives / tau[:, None], threshold=SOFTPLUS_IS_LINEAR)
        total = known.sum(dim=1)
        if stats.attracts:
            total = total + stats.over_attracted(log_rest)
        return total / number_of_positives(contrast, stats)
