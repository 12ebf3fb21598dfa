"""iSogCLR: each sample's temperature against plain loops."""

import math

import pytest
import torch
from objectives.global_parts import BATCHES, CLOCK, ROWS, batch, pairs, prepared, raw_rows
from reference import global_loops

import falseneg as fn


def test_isogclr_temperatures_and_losses():
    """Each sample's temperature by the loop: gradients by hand, mean of the views, clip, running mean, step, bounds."""
    rho, rate, of_new, clip, bounds = 0.4, 0.5, 0.2, 0.5, (0.1, 0.4)
    temperature = prepared(fn.IndividualTemperature(0.2, *bounds, fn.GradientStep(rate, 1 - of_new), clip))
    criterion = fn.Criterion(fn.NoDetection(), fn.ELIMINATE, prepared(fn.GlobalContrastive(0.6, rho=rho)), temperature)
    taus, momenta, u = dict.fromkeys(range(ROWS), 0.2), {}, {}
    clipped = at_bound = 0
    for seed, samples in enumerate(BATCHES * 4):
        contrast = batch(raw_rows(samples, seed), samples)
        ids, positives, negatives, _ = pairs(contrast)
        g = [float(global_loops.kept_mean(n, [False] * len(n), taus[s])) for s, n in zip(ids, negatives, strict=True)]
        of_view = [g[i] if s not in u else 0.4 * u[s] + 0.6 * g[i] for i, s in enumerate(ids)]
        for s, views in global_loops.views_of(ids).items():
            u[s] = global_loops.mean(of_view[i] for i in views)
        expected = [
            taus[s] * (math.log(u_v) + rho) - float(p) for s, u_v, p in zip(ids, of_view, positives, strict=True)
        ]
        gradients = [
            global_loops.isogclr_gradient(n, taus[s], u_v, rho)
            for s, u_v, n in zip(ids, of_view, negatives, strict=True)
        ]
        loss, _ = criterion([contrast], CLOCK)
        assert float(loss) == pytest.approx(global_loops.mean(expected), abs=1e-5)
        loss.backward()
        temperature.after_backward(CLOCK)
        global_loops.isogclr(taus, momenta, ids, gradients, rate, of_new, clip, bounds)
        clipped += sum(  # only the mean shows it, or only one of the views
            abs(sum(gradients[i] for i in views)) / 2 < clip < max(abs(gradients[i]) for i in views)
            for views in global_loops.views_of(ids).values()
        )
        at_bound += sum(taus[s] in bounds for s in ids)
        with torch.no_grad():
            got = temperature(contrast)
        torch.testing.assert_close(got, torch.tensor([taus[s] for s in ids]), rtol=0, atol=1e-5)
    assert clipped and at_bound and len(set(taus.values())) > 5


def test_isogclr_gradient_does_not_depend_on_weights_levels_or_scale():
    """A contrast's weight, the number of a detector's levels and float16's loss scaling leave the step as it is."""

    class Twice(fn.Detector):
        def flag(self, contrast, clock):
            return fn.NoPairs(), fn.NoPairs()

    after = []
    for weight, detector, scale in [(1.0, fn.NoDetection(), 1.0), (0.25, Twice(), 1024.0)]:
        temperature = prepared(fn.IndividualTemperature())
        criterion = fn.Criterion(detector, fn.ELIMINATE, prepared(fn.GlobalContrastive(rho=0.3)), temperature)
        contrast = batch(raw_rows(BATCHES[0], 0), BATCHES[0])
        contrast = fn.Contrast("views", contrast.anchors, contrast.candidates, contrast.positives, weight=weight)
        loss, _ = criterion([contrast], CLOCK)
        (loss * scale).backward()
        temperature.after_backward(CLOCK, scale)
        after.append(temperature.tables["views"].column("tau")[:4].clone())
    torch.testing.assert_close(after[0], after[1])
    assert not torch.equal(after[0], torch.full((4,), 0.07))


def test_temperatures_move_only_by_training():
    temperature = prepared(fn.IndividualTemperature())
    contrast = batch(raw_rows(BATCHES[0], 0), BATCHES[0])
    with torch.no_grad():
        assert not temperature(contrast).requires_grad  # as the log line asks
    temperature.after_backward(CLOCK)
    temperature(contrast)  # no backward pass follows
    temperature.after_backward(CLOCK)
    tau = temperature(contrast)
    (tau * torch.inf).sum().backward()  # as float16 overflows
    temperature.after_backward(CLOCK)
    assert torch.equal(temperature.tables["views"].column("tau"), torch.full((ROWS,), 0.07))
    assert int(temperature.tables["views"].visits.sum()) == 0
    temperature.eval()
    assert not temperature(contrast).requires_grad


def test_defaults_are_the_authors_for_one_modality():
    temperature = prepared(fn.IndividualTemperature())
    tau = temperature(batch(raw_rows(BATCHES[0], 0), BATCHES[0]))
    torch.testing.assert_close(tau.detach(), torch.full((8,), 0.07))
    (-tau * torch.tensor([2.0, 30.0] * 4)).mean().backward()  # means of 16 for each sample: clipped at 3
    temperature.after_backward(CLOCK)
    moved = temperature.tables["views"].column("tau")[:4]
    torch.testing.assert_close(moved, torch.full((4,), 0.07 + 0.001 * 0.9 * 3))
