"""FNC: the negatives that resemble a support set of further views of the anchor's image."""

from __future__ import annotations

import torch

from falseneg.clock import Clock
from falseneg.contrast import Contrast
from falseneg.detectors.base import Detector
from falseneg.detectors.threshold import check_cosine, check_share
from falseneg.errors import UserError
from falseneg.facts import Facts
from falseneg.rules import AboveThreshold, PairRule
from falseneg.statistics.scan import columns_rule, same_sample, top_k


class SupportSet(Detector):
    """False Negative Cancellation (Huynh et al. 2022, arXiv 2011.11765, section 3.2.3).

    A negative's score is its largest (or mean) cosine with the S support views of the anchor's image. Flagged are the
    best by number, by threshold, or by both. Costs one sweep of the matrix for a number, S products for each pair.

    Args:
        top_k: how many candidate rows to flag for each anchor; None to leave it to ``share``.
        share: the same as a share of the candidates, from 0 to 1; if this, ``top_k`` and ``threshold`` are all left
            open, one over the number of expected classes.
        threshold: flag only scores above this cosine, from −1 to 1.
        mean: aggregate by the mean cosine with the support views instead of the largest.
        distinct: count distinct images, not rows (several views or old keys of one image), and flag all their rows.
        part: look only in this part of the candidates ("batch", "bank"); None for all.
        space: the similarity to score in; "support" is the support set, None the anchor itself (no support set).

    Raises:
        UserError: an option is outside its range, or options contradict one another.
    """

    def __init__(
        self,
        top_k: int | None = None,
        share: float | None = None,
        threshold: float | None = None,
        mean: bool = False,
        distinct: bool = False,
        part: str | None = None,
        space: str | None = "support",
    ) -> None:
        super().__init__()
        if top_k is not None and share is not None:
            raise UserError(f"SupportSet: top_k ({top_k}) and share ({share}) both say how many to flag; give one")
        if top_k is not None and top_k < 1:
            raise UserError(f"SupportSet: top_k is {top_k}; give at least 1, or NoDetection to flag nothing")
        if mean and space is None:
            raise UserError("SupportSet: the mean over a support set needs one; drop mean, or set space to 'support'")
        check_share("SupportSet: share", share)
        check_cosine("SupportSet: threshold", threshold)
        self.top_k, self.share, self.threshold = top_k, share, threshold
        self.mean, self.distinct, self.part, self.space = mean, distinct, part, space

    def prepare(self, facts: Facts) -> None:
        if self.top_k is None and self.share is None and self.threshold is None:
            if facts.classes is None:
                raise UserError(
                    "SupportSet: nothing says how many negatives to flag; "
                    "give top_k, share or threshold, or the number of expected classes"
                )
            self.share = 1 / facts.classes
        if self.top_k is not None and self.top_k >= facts.negatives + (self.threshold is not None):
            raise UserError(
                f"SupportSet: top_k is {self.top_k}, but an anchor is compared with {facts.negatives} candidates of "
                "other images; lower top_k or raise the batch size"
            )

    def check_number(self, contrast: Contrast) -> None:
        """Refuse a batch so small that all negatives of all anchors are flagged, whatever they look like.

        Elimination would leave nothing to learn from, without a word. Waits for the device.

        Raises:
            UserError: the number to flag is at least that of each anchor's negatives, and there is no threshold.
        """
        if self.threshold is not None or (self.top_k is None and self.share is None):
            return
        cols = contrast.columns(self.part)
        columns, _, own = same_sample(contrast, cols)
        negatives = int((len(columns) - own).max())
        most = len(contrast.candidates.sample[cols].unique()) - 1 if self.distinct else negatives
        if self._number(contrast, cols) >= most:
            given = f"share is {self.share}" if self.top_k is None else f"top_k is {self.top_k}"
            raise UserError(
                f"SupportSet: {given}, which flags all {negatives} negatives of each anchor in this batch and leaves nothing "
                f"to learn from; give a smaller {given.split()[0]}, or leave out a small last batch, for instance with "
                "drop_last=True in the DataLoader"
            )

    @torch.no_grad()
    def flag(self, contrast: Contrast, clock: Clock) -> PairRule:
        space = contrast.space(self.space)
        if space is not None and self.mean:
            space = space.mean()
        cols = contrast.columns(self.part)
        if self.top_k is None and self.share is None:
            if self.threshold is None:
                raise UserError("SupportSet: give top_k, share or threshold")
            rule = AboveThreshold(torch.full((), self.threshold, device=contrast.anchors.z.device), space)
            return rule if self.part is None else rule & columns_rule(contrast, cols)
        return top_k(contrast, self._number(contrast, cols), space, self.part, self.threshold, self.distinct)

    def _number(self, contrast: Contrast, cols: slice) -> int:
        """How many to flag for each anchor."""
        if self.top_k is not None:
            return self.top_k
        sample = contrast.candidates.sample[cols]
        return max(1, round((self.share or 0) * (len(sample.unique()) if self.distinct else len(sample))))
