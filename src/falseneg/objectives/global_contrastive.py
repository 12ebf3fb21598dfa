"""SogCLR, iSogCLR and FastCLIP: each anchor against the negatives of the whole data set, whatever the batch size."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from falseneg.clock import Clock
from falseneg.contrast import Contrast
from falseneg.errors import UserError
from falseneg.facts import Facts
from falseneg.objectives.base import Objective
from falseneg.objectives.parts import mean_positive
from falseneg.objectives.running_mean import RunningMean
from falseneg.rules import NoPairs
from falseneg.sample_table import of_contrast
from falseneg.schedule import Schedule, extremes, value_at
from falseneg.statistics.negatives import NegativeStats, negative_stats
from falseneg.strategy import IGNORE, Strategy

LARGEST = 50.0
"""Above e to this, the ratio of a step's mean to the running mean is cut off."""


class GlobalContrastive(Objective):
    """SogCLR (Yuan et al. 2022, arXiv 2202.12387); with `IndividualTemperature` and rho iSogCLR (Qiu et al. 2023).

    loss_v = −(mean cosine of the positives and attracted pairs) + τ_i · log(epsilon + u_v) + rho · τ_i

    for each anchor v, a view of sample i, where u_v = (1 − gamma) u_i + gamma g_v and g_v is the mean of e^{s/τ} over the
    negatives that it keeps. Its gradient is that of τ_i · g_v / (epsilon + u_v), with u_v held fixed; with respect to τ_i
    it is log(epsilon + u_v) + rho + τ_i · (∂g_v/∂τ_i) / (epsilon + u_v). The u_i that is kept for the next visit is the
    mean of its views' u_v. So do the released programs of SogCLR, iSogCLR, LibAUC and GloFND; the text of GloFND
    (Algorithm 1) has one u_i, by which all views of the sample are divided: ``shared_mean``. The two differ by as much
    as the views of an image do, and more at lower temperatures.

    The loss is a cosine, not a number of nats: it is τ times that of InfoNCE, and so is its gradient. To renormalise
    changes nothing. An anchor that lost all its negatives keeps the attraction only, and its u stays. When filtering
    starts for a sample, u is rescaled by the share of the mean that stays, at the cost of one more sweep in that step.
    In evaluation mode u stays, too.

    Two towers (bimodal SogCLR and iSogCLR, FastCLIP: Wei et al. 2024, arXiv 2407.01445) take the mean of e^{(s − s⁺)/τ}
    instead, s⁺ being the mean cosine of the positives and attracted pairs, which has a gradient, too: ``relative``. Then

    loss_v = τ_i · log(epsilon + u_v) + rho · τ_i, with the gradient of τ_i · g_v / (epsilon + u_v)

    FastCLIP-v0 leaves out the factor τ: ``times_tau`` = False, with one learned temperature. v1 has a fixed temperature,
    v2 an `IndividualTemperature` with `AdamStep`, v3 one `LearnedTemperature` with a step of its own. All of them mask the
    own pair; iSogCLR counts it among the negatives: ``own_pair``. The means are held as logarithms, so that no temperature
    overflows; the released programs of v0, v1 and v3 do in float32 at a temperature of .01.

    Args:
        gamma: the weight of the current step in u, above 0 and at most 1, or a schedule of it (FastCLIP: a cosine from
            1 to .2 over half of the training).
        epsilon: is added to u; at least 0.
        rho: the price of a high temperature, for temperatures that are learned; at least 0.
        shared_mean: all views of a sample are divided by its updated u_i (GloFND, Algorithm 1), not each by its own u_v.
        relative: take the mean of e^{(s − s⁺)/τ}, as two towers do, instead of that of e^{s/τ}.
        own_pair: the known positive counts as one of those that the mean is over; with ``relative`` only.
        times_tau: multiply by the temperature; without, a loss in nats (FastCLIP-v0).

    Raises:
        UserError: an option is outside its range.
    """

    def __init__(
        self,
        gamma: float | Schedule = 0.9,
        epsilon: float = 1e-14,
        rho: float = 0.0,
        shared_mean: bool = False,
        relative: bool = False,
        own_pair: bool = False,
        times_tau: bool = True,
    ) -> None:
        super().__init__()
        for value in extremes(gamma):
            if not 0 < value <= 1:
                raise UserError(f"GlobalContrastive: gamma is {value}; give a number above 0 and at most 1")
        for name, number in (("epsilon", epsilon), ("rho", rho)):
            if not (math.isfinite(number) and number >= 0):
                raise UserError(f"GlobalContrastive: {name} is {number}; give a number of at least 0")
        if own_pair and not relative:
            raise UserError("GlobalContrastive: own_pair counts e^0 of the pair itself; give relative, too")
        self.gamma, self.epsilon, self.rho, self.shared_mean = gamma, epsilon, rho, shared_mean
        self.relative, self.own_pair, self.times_tau = relative, own_pair, times_tau
        self.running = nn.ModuleDict()
        self._of_anchors: dict[str, Tensor] = {}

    def prepare(self, facts: Facts) -> None:
        """Make the tables, empty, one for each contrast."""
        self.running = nn.ModuleDict({name: RunningMean(facts.rows) for name in facts.contrasts})

    @torch.no_grad()
    def observe(
        self, contrast: Contrast, levels: Sequence[NegativeStats], tau: Tensor, strategy: Strategy, clock: Clock
    ) -> None:
        """Update u by the mean of the levels."""
        self._of_anchors.pop(contrast.name, None)
        if not self.training:
            return
        running, row = self._running(contrast), contrast.anchors.table_row
        positives = [mean_positive(contrast, stats) for stats in levels]
        logs = torch.stack([self._log_mean(*each, tau) for each in zip(levels, positives, strict=True)])
        log_kept = _log_mean_of_levels(logs)
        filtered = torch.stack([stats.weight < stats.count for stats in levels]).any(dim=0)
        log_all = log_kept
        # Whether one more sweep is needed only the device knows; not asked where nothing can be filtered out.
        if any(stats.filters for stats in levels) and bool((filtered & running.before_filtering(row)).any()):
            log_all = self._log_mean(negative_stats(contrast, tau, NoPairs(), IGNORE), positives[0], tau)
        log_u = running.update(row, log_kept, log_all, filtered, value_at(self.gamma, clock))
        if not self.shared_mean:
            self._of_anchors[contrast.name] = log_u

    def forward(
        self, contrast: Contrast, stats: NegativeStats, tau: Tensor, strategy: Strategy, clock: Clock | None = None
    ) -> Tensor:
        """(N,) losses, in units of the cosine."""
        tau, kept = tau.to(stats.log_sum.dtype), (stats.weight > 0) | self.own_pair
        # Masked before it meets any gradient: -inf times zero would be NaN.
        positive = mean_positive(contrast, stats)
        log_mean = self._log_mean(stats, positive, tau).masked_fill(~kept, 0)
        log_u = self._of_anchors.get(contrast.name) if self.training else None
        if log_u is None:
            log_u = self._running(contrast).log_mean(contrast.anchors.table_row)
        log_u = log_u.to(log_mean.dtype)
        log_u = torch.where(log_u.isnan(), log_mean.detach(), log_u)
        if self.epsilon > 0:
            log_u = torch.logaddexp(log_u, torch.full_like(log_u, math.log(self.epsilon)))
        # In training u holds this step's g, and the ratio is at most a few times 1 / gamma; else it may be more.
        ratio = (log_mean - log_u).clamp(max=LARGEST).exp()
        pushed = (log_u + ratio - ratio.detach()).masked_fill(~kept, 0) + self.rho
        if self.relative:  # the mean holds the attraction, unless nothing is left in it
            positive = positive.masked_fill(kept, 0)
        return tau * pushed - positive if self.times_tau else pushed - positive / tau

    def _log_mean(self, stats: NegativeStats, positive: Tensor, tau: Tensor) -> Tensor:
        """(N,) log of the mean of e^{s/τ} or e^{(s − s⁺)/τ} over the negatives, by their weights; −inf where none has any.

        Args:
            stats: of the negatives.
            positive: (N,) s⁺.
            tau: the temperature.
        """
        if not self.relative:
            return _log_mean(stats.log_sum, stats.weight)
        log_sum = stats.log_sum - positive / tau.to(stats.log_sum.dtype)
        if not self.own_pair:
            return _log_mean(log_sum, stats.weight)
        return _log_mean(torch.logaddexp(log_sum, torch.zeros_like(log_sum)), stats.weight + 1)

    def _running(self, contrast: Contrast) -> RunningMean:
        running: RunningMean = of_contrast(self.running, contrast, self)
        return running


def _log_mean(log_sum: Tensor, weight: Tensor) -> Tensor:
    return log_sum - torch.where(weight > 0, weight, 1).log()


def _log_mean_of_levels(logs: Tensor) -> Tensor:
    """(L, N) logs to (N,): the log of the mean of those levels that have anything; −inf where none has."""
    number = (logs > -torch.inf).sum(dim=0)
    return logs.logsumexp(dim=0) - number.clamp(min=1).log()
