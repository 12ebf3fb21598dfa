"""What is kept for the backward pass, and the peak of both passes, grow with N + M and not with N x M."""

import subprocess
import sys

import catalogue
import pytest
import torch

import falseneg as fn


def kept_bytes(images, backend):
    """Bytes that autograd keeps for the backward pass of a loss with detection."""
    z = catalogue.unit(2 * images, 32, seed=0, dtype=torch.float32).requires_grad_()
    anchors = fn.Embedded(z, torch.arange(images).repeat_interleave(2))
    contrast = fn.Contrast("views", anchors, anchors, (z * z.flip(0)).sum(1, keepdim=True))
    rule = fn.AboveThreshold(torch.full((2 * images,), 0.3))
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        tau = torch.tensor(0.1)
        stats = fn.negative_stats(contrast, tau, rule, fn.ELIMINATE, backend=backend)
        loss = fn.InfoNCE()(contrast, stats, tau, fn.ELIMINATE).mean()
    loss.backward()
    return sum(kept.values())


def test_what_is_kept_grows_with_the_rows():
    small, large = kept_bytes(128, "tiled"), kept_bytes(512, "tiled")
    assert large < 4.2 * small
    assert large < 1.5 * 1024 * 32 * 4 + 1024 * 4 * 12
    assert kept_bytes(512, "dense") > 1024 * 1024 * 4  # the check can fail


PEAK = """
import resource, torch, falseneg as fn
from torch.nn.functional import normalize
N = 12288
z = normalize(torch.randn(N, 16), dim=-1).requires_grad_()
positives = (z * z.flip(0)).sum(1, keepdim=True).detach()
anchors = fn.Embedded(z, torch.arange(N // 2).repeat_interleave(2))
def step(rows):
    part = fn.Contrast("views", fn.Embedded(z[:rows], anchors.sample[:rows]), anchors, positives[:rows])
    tau = torch.tensor(0.1)
    rule = fn.SupportSet(top_k=10, space=None).flag(part, fn.Clock(0, 1, 1))
    stats = fn.negative_stats(part, tau, rule, fn.ATTRACT)
    fn.InfoNCE()(part, stats, tau, fn.ATTRACT).mean().backward()
step(256)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
step(N)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux")
def test_peak_of_a_step_with_exact_top_k():
    """12,288 x 12,288 would be 576 MiB for one matrix; the whole step with detection takes less than a fifth of one."""
    out = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    assert float(out.stdout) < 115
