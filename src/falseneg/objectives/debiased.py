"""Debiased contrastive learning: the false negatives' mass is estimated from the positives and taken away."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from falseneg.clock import Clock
from falseneg.contrast import Contrast
from falseneg.errors import UserError
from falseneg.facts import Facts
from falseneg.objectives.base import Objective
from falseneg.objectives.parts import log_mass, log_weight, mean_positive
from falseneg.statistics.negatives import NegativeStats
from falseneg.strategy import Strategy


class Debiased(Objective):
    """Debiased contrastive loss (Chuang et al. 2020, arXiv 2007.00224, equations 7 and 8).

    A negative shows the anchor's class with probability π. What such negatives add to the mean of e^{s/τ} over the
    negatives is taken away, and what remains is at least its smallest possible value:

    g_i = max((mass_i / W_i − π · mean_p e^{s_ip/τ}) / (1 − π), e^{−1/τ})

    loss_i = log(Σ_p e^{s_ip/τ} + W_i · g_i) − (Σ_p s_ip + a · Σ_F s_if) / (τ (P + a·|F_i|)), in the letters of
    `InfoNCE`; W_i is the weight of the negatives (their number, if none is flagged). Not to be confused with
    `Decoupled`. No detector is needed; what one takes out of the negatives is not estimated a second time: then give a
    smaller ``class_prior``.

    Args:
        class_prior: π (the paper's τ⁺), the share of false negatives among the negatives, from 0 (`InfoNCE`) to below
            1; None for one over the number of expected classes.

    Raises:
        UserError: the prior is outside its range.
    """

    def __init__(self, class_prior: float | None = None) -> None:
        super().__init__()
        check_prior("Debiased", class_prior)
        self.class_prior = class_prior

    def prepare(self, facts: Facts) -> None:
        self.class_prior = prior_of("Debiased", self.class_prior, facts)

    def forward(
        self, contrast: Contrast, stats: NegativeStats, tau: Tensor, strategy: Strategy, clock: Clock | None = None
    ) -> Tensor:
        prior = known_prior("Debiased", self.class_prior)
        tau = tau.to(stats.log_sum.dtype).expand(len(contrast.anchors))
        positives = contrast.positives / tau[:, None]
        log_positive = positives.logsumexp(dim=1) - math.log(positives.shape[1])
        log_negatives = debiased(log_mass(stats), log_weight(stats), log_positive, tau, prior)
        log_denominator = torch.logaddexp(positives.logsumexp(dim=1), log_negatives)
        return log_denominator - mean_positive(contrast, stats) / tau


def debiased(log_negatives: Tensor, log_count: Tensor, log_positive: Tensor, tau: Tensor, prior: float) -> Tensor:
    """(N,) log of the mass of the true negatives: log of W · max((mass / W − π e⁺) / (1 − π), e^{−1/τ}).

    In logarithms throughout, so that no temperature overflows; where nothing has weight it stays −inf.

    Args:
        log_negatives: (N,) log of the mass of all negatives.
        log_count: (N,) log of W, their weight.
        log_positive: (N,) log of e⁺, what a false negative adds to the mass, estimated from the positives.
        tau: (N,) temperatures.
        prior: π, from 0 to below 1.
    """
    if prior == 0:
        return log_negatives
    gap = math.log(prior) + log_count + log_positive - log_negatives
    some_left = gap < 0
    # A gap that is not used must not overflow, nor be the NaN of an anchor without negatives: its gradient would be NaN.
    gap = torch.where(some_left, gap, -1)
    left = log_negatives + torch.log(-torch.expm1(gap)) - math.log1p(-prior)
    least = log_count - 1 / tau
    return torch.where(some_left & (left > least), left, least)


def check_prior(owner: str, prior: float | None) -> None:
    """Refuse what is not a prior; None is left open.

    Raises:
        UserError: the prior is outside [0, 1).
    """
    if prior is not None and not 0 <= prior < 1:
        raise UserError(
            f"{owner}: class_prior is {prior}; it is the share of false negatives, so give a number from 0 to below 1"
        )


def prior_of(owner: str, prior: float | None, facts: Facts) -> float:
    """The prior that was given, or one over the number of expected classes.

    Raises:
        UserError: neither is known.
    """
    if prior is None and facts.classes is None:
        raise UserError(f"{owner}: give class_prior, or the number of expected classes")
    return prior if prior is not None else 1 / (facts.classes or 1)


def known_prior(owner: str, prior: float | None) -> float:
    """The prior, for a step.

    Raises:
        UserError: it was left open, and nobody set it.
    """
    if prior is None:
        raise UserError(f"{owner}: give class_prior")
    return prior
