"""What the objectives share."""

from __future__ import annotations

import torch
from torch import Tensor

from falseneg.contrast import Contrast
from falseneg.statistics.negatives import NegativeStats


def log_mass(stats: NegativeStats) -> Tensor:
    """(N,) log of the mass of the negatives, rescaled to the full count by strategies that say so; −inf for none."""
    return stats.log_sum + torch.where(stats.weight > 0, stats.full / stats.weight, 1).log()


def log_weight(stats: NegativeStats) -> Tensor:
    """(N,) log of the weight of the negatives after that rescaling; −inf for no weight."""
    return torch.where(stats.weight > 0, stats.full, 0).to(stats.log_sum.dtype).log()


def mean_positive(contrast: Contrast, stats: NegativeStats) -> Tensor:
    """(N,) the mean cosine of the known positives and the attracted pairs, each attracted pair by its weight."""
    return (contrast.positives.sum(dim=1) + stats.attracted_sim) / number_of_positives(contrast, stats)


def number_of_positives(contrast: Contrast, stats: NegativeStats) -> Tensor:
    """(N,) P and the attracted pairs by their weight."""
    return contrast.positives.shape[1] + stats.attracted
