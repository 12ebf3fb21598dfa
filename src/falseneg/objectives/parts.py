"""What the objectives share."""

from __future__ import annotations

import torch
from torch import Tensor

from falseneg.contrast import Contrast
from falseneg.statistics.negatives import NegativeStats
from falseneg.strategy import Strategy


def log_mass(stats: NegativeStats, strategy: Strategy) -> Tensor:
    """(N,) log of the mass of the negatives, rescaled to the full count if the strategy says so; −inf for none."""
    if not strategy.renormalise:
        return stats.log_sum
    rescaled = torch.where(stats.weight > 0, stats.count / stats.weight, 1)
    return stats.log_sum + rescaled.log()


def log_weight(stats: NegativeStats, strategy: Strategy) -> Tensor:
    """(N,) log of the weight of the negatives, or of their count if the strategy renormalises; −inf for no weight."""
    weight = torch.where(stats.weight > 0, stats.count, 0) if strategy.renormalise else stats.weight.clamp(min=0)
    return weight.to(stats.log_sum.dtype).log()


def mean_positive(contrast: Contrast, stats: NegativeStats, strategy: Strategy) -> Tensor:
    """(N,) the mean cosine of the known positives and the attracted pairs, each attracted pair weighing ``positive``."""
    total = contrast.positives.sum(dim=1)
    if strategy.positive > 0:
        total = total + strategy.positive * stats.flagged_sim
    return total / number_of_positives(contrast, stats, strategy)


def number_of_positives(contrast: Contrast, stats: NegativeStats, strategy: Strategy) -> Tensor:
    """(N,) P and the attracted pairs by their weight."""
    return contrast.positives.shape[1] + strategy.positive * stats.flagged.to(stats.log_sum.dtype)
