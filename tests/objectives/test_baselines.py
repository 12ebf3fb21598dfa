"""Debiased and hard-negative losses. The product with rules and strategies is in statistics/test_backends.py."""

import functools
import math

import catalogue
import pytest
import torch
from reference import baseline_loops, loops

import falseneg as fn
from falseneg.statistics import tiles

OBJECTIVES = {name: catalogue.OBJECTIVES[name] for name in ("Debiased", "HardNegatives")}


@pytest.fixture(params=["dense", "tiled", "tiled-uneven"])
def backend(request, monkeypatch):
    if request.param == "tiled-uneven":
        monkeypatch.setattr(tiles, "TILE", 3)
    return request.param.split("-")[0]


def assert_same(mass, objective):
    """Values and gradients of a loop and of the library, on ten anchors with temperatures from .3 to .6."""
    results = []
    for by_loop in (True, False):
        contrast, (z, _, key) = catalogue.contrast_of("batch")
        tau = torch.linspace(0.3, 0.6, 10, dtype=torch.float64).requires_grad_()
        sample = contrast.anchors.sample.tolist()
        if by_loop:
            losses = []
            for i in range(10):
                s_neg = [loops.similarity(z[i], z[j]) for j in loops.negatives_of(i, sample, sample)]
                losses.append(
                    baseline_loops.loss(mass, [*contrast.positives[i]], s_neg, [False] * 8, tau[i], 0, 1, False)
                )
            losses = torch.stack(losses)
        else:
            stats = fn.negative_stats(contrast, tau, fn.NoPairs(), fn.IGNORE)
            losses = objective(contrast, stats, tau, fn.IGNORE)
        results.append([losses.detach(), *torch.autograd.grad((losses * torch.arange(1, 11)).sum(), (z, key, tau))])
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("prior, some_at_least, some_above", [(0.02, 0, 1), (0.5, 1, 1), (0.95, 1, 0)])
def test_both_sides_of_the_least_value(prior, some_at_least, some_above):
    """The cases of the catalogue may all lie on one side of the max; here each side is known to occur."""
    contrast, _ = catalogue.contrast_of("batch")
    tau = torch.linspace(0.3, 0.6, 10, dtype=torch.float64)
    sim = contrast.anchors.z @ contrast.candidates.z.T
    negative = contrast.anchors.sample[:, None] != contrast.candidates.sample
    mean = ((sim / tau[:, None]).exp() * negative).sum(1) / negative.sum(1)
    above = (mean - prior * (contrast.positives[:, 0] / tau).exp()) / (1 - prior) > (-1 / tau).exp()
    assert bool((~above).any()) >= some_at_least and bool(above.any()) >= some_above
    assert_same(functools.partial(baseline_loops.debiased, prior=prior), fn.Debiased(prior))
    assert_same(functools.partial(baseline_loops.hard_negatives, prior=prior, beta=0.5), fn.HardNegatives(0.5, prior))


def test_without_prior_and_beta_it_is_info_nce():
    contrast, _ = catalogue.contrast_of("bank")
    tau, rule = torch.tensor(0.2, dtype=torch.float64), catalogue.rules(contrast)["groups"]
    for strategy in catalogue.STRATEGIES.values():
        stats = fn.negative_stats(contrast, tau, rule, strategy)
        plain = fn.InfoNCE()(contrast, stats, tau, strategy)
        for objective in (fn.Debiased(0.0), fn.HardNegatives(0.0, 0.0)):
            torch.testing.assert_close(objective(contrast, stats, tau, strategy), plain, rtol=1e-12, atol=1e-12)


EVERY = {**OBJECTIVES, "HardNegatives without debiasing": fn.HardNegatives(1.0, 0.0)}


@pytest.mark.parametrize("objective", EVERY.values(), ids=EVERY)
@pytest.mark.parametrize("strategy", [fn.ELIMINATE, fn.ELIMINATE.renormalised()])
def test_an_anchor_that_lost_all_its_negatives_keeps_its_positives(objective, strategy, backend):
    contrast, leaves = catalogue.contrast_of("batch")
    tau = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    everything = fn.AboveThreshold(torch.tensor(-2.0))
    stats = fn.negative_stats(contrast, tau, everything, strategy, backend=backend)
    losses = objective(contrast, stats, tau, strategy)
    torch.testing.assert_close(losses, torch.zeros_like(losses), rtol=0, atol=1e-12)
    losses.sum().backward()
    assert torch.isfinite(leaves[0].grad).all() and torch.isfinite(tau.grad)


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_a_temperature_of_a_hundredth_in_float32(objective, backend):
    """e^(s/t) itself would overflow; against the same numbers in float64."""
    results = []
    for dtype in (torch.float32, torch.float64):
        contrast, leaves = catalogue.contrast_of("batch", dtype=dtype)
        tau = torch.tensor(0.01, dtype=dtype)
        stats = fn.negative_stats(contrast, tau, fn.NoPairs(), fn.IGNORE, backend=backend)
        losses = objective(contrast, stats, tau, fn.IGNORE)
        assert losses.dtype == dtype
        results.append((losses.detach().double(), torch.autograd.grad(losses.mean(), leaves[0])[0].double()))
    (got, got_gradient), (expected, gradient) = results
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(got_gradient, gradient, rtol=1e-3, atol=1e-3 * float(gradient.abs().max()))


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_a_positive_that_outweighs_all_negatives(objective, backend):
    """At a temperature of a hundredth it does so by e^140, more than float32 holds; the mass is then the least possible."""
    angle = torch.tensor([0.0, 0.1, 2.0, 2.5])
    z = torch.stack([angle.cos(), angle.sin()], dim=1).requires_grad_()
    anchors, candidates = fn.Embedded(z[:1], torch.tensor([0])), fn.Embedded(z[2:], torch.tensor([1, 2]))
    contrast = fn.Contrast("views", anchors, candidates, (z[:1] * z[1:2]).sum(1, keepdim=True))
    tau = torch.tensor(0.01, requires_grad=True)
    stats = fn.negative_stats(contrast, tau, fn.NoPairs(), fn.IGNORE, backend=backend)
    losses = objective(contrast, stats, tau, fn.IGNORE)
    torch.testing.assert_close(losses, torch.zeros(1), rtol=0, atol=1e-5)
    losses.sum().backward()
    assert torch.isfinite(z.grad).all() and torch.isfinite(tau.grad)


def test_expected_classes_set_the_prior():
    for objective in (fn.Debiased(), fn.HardNegatives()):
        objective.prepare(fn.Facts(rows=100, negatives=20, classes=5))
        assert objective.class_prior == 0.2
    given = fn.Debiased(0.0)
    given.prepare(fn.Facts(rows=100, negatives=20, classes=5))
    assert given.class_prior == 0


@pytest.mark.parametrize(
    "make, sentence",
    [
        (lambda: fn.Debiased(1.0), "class_prior is 1.0; .*from 0 to below 1"),
        (lambda: fn.Debiased(-0.1), "class_prior is -0.1"),
        (lambda: fn.Debiased(math.nan), "class_prior is nan"),
        (lambda: fn.HardNegatives(class_prior=1.5), "HardNegatives: class_prior is 1.5"),
        (lambda: fn.HardNegatives(-1.0), "beta is -1.0; give a number of at least 0"),
        (lambda: fn.HardNegatives(math.inf), "beta is inf"),
        (lambda: fn.Debiased().prepare(fn.Facts(rows=9, negatives=16)), "Debiased: give class_prior, or the number"),
    ],
)
def test_bad_options_are_answered_with_one_sentence(make, sentence):
    with pytest.raises(fn.UserError, match=sentence):
        make()


@pytest.mark.parametrize("objective", [fn.Debiased(), fn.HardNegatives()])
def test_a_prior_that_nobody_set(objective):
    contrast, _ = catalogue.contrast_of("batch")
    stats = fn.negative_stats(contrast, torch.tensor(0.2), fn.NoPairs(), fn.IGNORE)
    with pytest.raises(fn.UserError, match="give class_prior"):
        objective(contrast, stats, torch.tensor(0.2), fn.IGNORE)
