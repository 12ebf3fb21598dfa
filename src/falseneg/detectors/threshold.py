"""Detectors that compare the cosine with a threshold, and the one that flags nothing."""

from __future__ import annotations

import torch

from falseneg.clock import Clock
from falseneg.contrast import Contrast
from falseneg.detectors.base import Detector
from falseneg.errors import UserError
from falseneg.facts import Facts
from falseneg.rules import AboveThreshold, NoPairs, PairRule
from falseneg.statistics.scan import columns_rule, row_quantile


class NoDetection(Detector):
    """Flags nothing: the plain loss."""

    def flag(self, contrast: Contrast, clock: Clock) -> PairRule:
        return NoPairs()


class FixedThreshold(Detector):
    """Flags negatives above one fixed cosine.

    Args:
        threshold: cosine, from −1 to 1; strictly above it is flagged.
        space: the similarity to compare in, by name; None for the loss's own.

    Raises:
        UserError: the threshold is not a cosine.
    """

    def __init__(self, threshold: float, space: str | None = None) -> None:
        super().__init__()
        check_cosine("FixedThreshold: threshold", threshold)
        self.threshold, self.space = threshold, space

    def flag(self, contrast: Contrast, clock: Clock) -> PairRule:
        threshold = torch.full((), self.threshold, device=contrast.anchors.z.device)
        return AboveThreshold(threshold, contrast.space(self.space))


class BatchQuantile(Detector):
    """Flags the share alpha of each anchor's negatives that are most similar to it in this batch.

    The baseline that GloFND (Balmaseda et al. 2025, arXiv 2502.20612) is compared with. One sweep of the matrix.

    Args:
        alpha: share of the negatives, above 0 and below 1; None for one over the number of expected classes.
        space: the similarity to compare in, by name; None for the loss's own.
        part: look only in this part of the candidates ("batch", "bank"); None for all.

    Raises:
        UserError: alpha is outside its range.
    """

    def __init__(self, alpha: float | None = None, space: str | None = None, part: str | None = None) -> None:
        super().__init__()
        check_share("BatchQuantile: alpha", alpha)
        self.alpha, self.space, self.part = alpha, space, part

    def prepare(self, facts: Facts) -> None:
        if self.alpha is None:
            if facts.classes is None:
                raise UserError("BatchQuantile: give alpha, or the number of expected classes")
            self.alpha = 1 / facts.classes

    @torch.no_grad()
    def flag(self, contrast: Contrast, clock: Clock) -> PairRule:
        if self.alpha is None:
            raise UserError("BatchQuantile: give alpha")
        space = contrast.space(self.space)
        rule = AboveThreshold(row_quantile(contrast, self.alpha, space, self.part), space)
        return rule if self.part is None else rule & columns_rule(contrast, contrast.columns(self.part))


def check_cosine(name: str, value: float | None) -> None:
    """Refuse what is not a cosine; None is left open.

    Raises:
        UserError: the value is outside [−1, 1].
    """
    if value is not None and not -1 <= value <= 1:
        raise UserError(f"{name} is {value}; it is a cosine, so give a number from -1 to 1")


def check_share(name: str, value: float | None) -> None:
    """Refuse what is not a share of the negatives; None is left open.

    Raises:
        UserError: the value is outside (0, 1).
    """
    if value is not None and not 0 < value < 1:
        raise UserError(f"{name} is {value}; it is a share of the negatives, so give a number above 0 and below 1")
