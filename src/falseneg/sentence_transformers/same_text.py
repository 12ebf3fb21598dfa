"""Equal texts in a batch: false negatives that need no similarity to be found."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from falseneg.clock import Clock
from falseneg.contrast import Contrast
from falseneg.detectors import Detector
from falseneg.rules import AboveThreshold, PairRule

BITS = 64
# Two texts that differ in one bit of 64 have a cosine of 1 − 2/64.
_NEARLY_ONE = 1 - 1 / BITS


class SameText(Detector):
    """Flags a negative that is the anchor's own text, or whose pair has the same query or the same document.

    What other losses need ``BatchSamplers.NO_DUPLICATES`` for, without leaving pairs out of a batch. Texts are the same
    if their tokens are, after the model's truncation. Only in `FalseNegativeRankingLoss`.
    """

    def flag(self, contrast: Contrast, clock: Clock) -> PairRule:
        return AboveThreshold(
            torch.full((), _NEARLY_ONE, device=contrast.anchors.z.device), contrast.space("same text")
        )


def tokens_of(features: Mapping[str, Tensor]) -> Tensor | None:
    """(B, L) int64 tokens of padded texts, 0 for padding and 1 more than the token elsewhere; None of anything else."""
    ids, mask = features.get("input_ids"), features.get("attention_mask")
    if ids is None or mask is None or ids.ndim != 2 or mask.shape != ids.shape or "cu_seq_lens_q" in features:
        return None
    return (ids.long() + 1) * mask.long()


def signs_of(tokens: Tensor) -> Tensor:
    """(B, 64) unit rows: the bits of a hash of each text as signs, whatever its padding.

    Args:
        tokens: (B, L) as `tokens_of` gives them.
    """
    place = (tokens > 0).cumsum(dim=1)
    # Sums of odd multiples, which wrap around at 2^64; the multiple of a place is mixed as splitmix64 does.
    multiple = place * -7046029254386353131
    multiple = (multiple ^ (multiple >> 30)) * -4658895280553007687
    multiple = ((multiple ^ (multiple >> 27)) * -7723592293110705685) | 1
    code = (tokens * multiple).sum(dim=1)
    bits = (code[:, None] >> torch.arange(BITS, device=code.device)) & 1
    return (2.0 * bits - 1) / BITS**0.5
