"""GloFND's thresholds on a data set whose similarities stay as they are, within stated bands.

The numbers in brackets are those of the list of faults of the released code that the tests were written from.
"""

import pytest
import torch
from torch.nn.functional import normalize

import falseneg as fn

CLOCK = fn.Clock(step=0, steps_per_epoch=10, epochs=10)


def prepared(rows=40, contrasts=("views",), **options):
    detector = fn.GlobalThreshold(**options)
    detector.prepare(fn.Facts(rows=rows, negatives=10, contrasts=contrasts))
    return detector


class Fixed:
    """A data set whose similarities stay as they are: n unit rows, and the true quantiles."""

    def __init__(self, alpha, n=600, dim=12):
        draw = torch.Generator().manual_seed(3)
        # More or less close to one direction, so that some rows have many near neighbours and others few.
        rows = torch.randn(n, dim, generator=draw) + torch.linspace(0, 3, n)[:, None]
        self.z, self.alpha, self.draw = normalize(rows, dim=1), alpha, draw
        self.sim = (self.z @ self.z.T).fill_diagonal_(-9)
        k = round(alpha * (n - 1))
        self.true = self.sim.topk(k + 1, dim=1).values[:, -2:].mean(1)

    def epoch(self, detector, batch_size):
        for rows in torch.randperm(len(self.z), generator=self.draw).split(batch_size):
            anchors = fn.Embedded(self.z[rows], rows)
            detector.flag(fn.Contrast("views", anchors, anchors, torch.ones(len(rows), 1)), CLOCK)

    def shares(self, detector):
        """The share of all negatives above each learned threshold."""
        threshold = detector.per_sample()["threshold"]
        return (self.sim > threshold[:, None]).sum(1) / (len(self.z) - 1)


@pytest.mark.parametrize(
    "step, epochs, batch_size, error, share",
    [
        (fn.GradientStep(0.2), 60, 600, 0.002, 0.01),
        (fn.AdamStep(0.01), 120, 600, 0.002, 0.01),
        (fn.GradientStep(0.2), 60, 100, 0.01, 0.03),
        (fn.AdamStep(0.01), 150, 100, 0.01, 0.03),
    ],
)
@pytest.mark.parametrize("initial", [None, 0.8])
def test_thresholds_converge_to_the_quantile_of_the_whole_set(step, epochs, batch_size, error, share, initial):
    """The mean distance from the true (1 − alpha) quantile, and the mean share above, relative to alpha, in a band."""
    fixed = Fixed(alpha=0.1)
    detector = prepared(rows=600, alpha=0.1, step=step, initial=initial)
    for _ in range(epochs):
        fixed.epoch(detector, batch_size)
    learned = detector.per_sample()["threshold"]
    assert float((learned - fixed.true).abs().mean()) < error
    assert abs(float(fixed.shares(detector).mean()) / 0.1 - 1) < share
    by_batch = fixed.true.mean().expand(600)
    assert float((by_batch - fixed.true).abs().mean()) > 10 * error  # one threshold for all would not do


@pytest.mark.parametrize("alpha, batch_size", [(0.1, 100), (0.02, 200), (0.02, 120)])
@pytest.mark.parametrize("step", [fn.AdamStep(), fn.AdamStep(0.01), fn.GradientStep(0.05)])
def test_no_transient_with_the_quantile_start(alpha, batch_size, step):
    """[5] From the third visit on, the share of all negatives that is flagged stays within 20% of alpha."""
    fixed, detector = Fixed(alpha), prepared(rows=600, alpha=alpha, step=step)
    for epoch in range(1, 26):
        fixed.epoch(detector, batch_size)
        if epoch >= 3:
            assert abs(float(fixed.shares(detector).mean()) / alpha - 1) < 0.2, epoch


def test_the_transient_from_one_is_what_the_quantile_start_removes():
    """[5] The released start: nothing at first, then far too much, then too little."""
    fixed, detector = Fixed(alpha=0.1), prepared(rows=600, alpha=0.1, initial=1.0)
    shares = []
    for _ in range(30):
        fixed.epoch(detector, 100)
        shares.append(float(fixed.shares(detector).mean()) / 0.1)
    assert shares[0] < 0.1 and max(shares) > 1.3 and min(shares[5:]) < 0.8
