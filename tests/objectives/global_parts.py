"""What the tests of the global contrastive losses share."""

import torch
from reference import loops
from torch.nn.functional import normalize

import falseneg as fn

CLOCK = fn.Clock(step=0, steps_per_epoch=10, epochs=10)
TAU = 0.2
ROWS = 40


def prepared(part, rows=ROWS, contrasts=("views",)):
    part.prepare(fn.Facts(rows=rows, negatives=10, contrasts=contrasts))
    return part


def raw_rows(samples, seed, views=2, dim=5):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(len(samples) * views, dim, generator=draw, dtype=torch.float64).requires_grad_()


def batch(raw, samples, views=2, name="views"):
    """A SimCLR contrast of two views; anchor 2 b + v is view v of image b."""
    z = normalize(raw, dim=1)
    anchors = fn.Embedded(z, torch.as_tensor(samples).repeat_interleave(views))
    other = torch.arange(len(z)) ^ 1
    return fn.Contrast(name, anchors, anchors, (z * z[other]).sum(1, keepdim=True))


def pairs(contrast):
    """Samples, positives and negatives of the anchors, with gradient, for the loops."""
    z, samples = contrast.anchors.z, contrast.anchors.sample.tolist()
    columns = [loops.negatives_of(i, samples, samples) for i in range(len(z))]
    return samples, contrast.positives[:, 0], [[z[i] @ z[j] for j in c] for i, c in enumerate(columns)], columns


def losses_of(objective, contrast, rule, strategy, tau=None, clock=CLOCK, backend="auto"):
    tau = torch.tensor(TAU, dtype=torch.float64) if tau is None else tau
    stats = fn.negative_stats(contrast, tau, rule, strategy, backend=backend)
    objective.observe(contrast, [stats], tau, strategy, clock)
    return objective(contrast, stats, tau, strategy, clock)


BATCHES = [[0, 1, 2, 3], [2, 5, 1, 6], [7, 2, 3, 0], [1, 2, 6, 8]]
