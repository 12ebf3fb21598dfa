"""SogCLR against plain loops, in value and gradient, and the faults of the released code.

The numbers in brackets are those of the list of faults that the tests were written from.
"""

import math
from functools import partial

import catalogue
import pytest
import torch
from objectives.global_parts import BATCHES, CLOCK, ROWS, TAU, batch, losses_of, pairs, prepared, raw_rows
from reference import global_loops
from torch.nn.functional import normalize

import falseneg as fn
from falseneg.train.checkpoint import load_module


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("gamma", [0.9, 0.3, 1.0])
@pytest.mark.parametrize("backend", ["dense", "tiled"])
def test_sogclr_value_and_gradient(gamma, backend, shared):
    """[8] Samples that are first met late start at their own mean; [1] the mask exists before it is used."""
    objective, u = prepared(fn.GlobalContrastive(gamma, shared_mean=shared)), {}
    threshold = fn.AboveThreshold(torch.tensor(0.6))
    for seed, samples in enumerate(BATCHES):
        raw = raw_rows(samples, seed)
        contrast = batch(raw, samples)
        ids, positives, negatives, _ = pairs(contrast)
        flagged = [[float(s) > 0.6 for s in row] for row in negatives]
        got = losses_of(objective, contrast, threshold, fn.ELIMINATE, backend=backend)
        assert seed > 0 or any(map(any, flagged))  # filtering starts with the first step: nothing to rescale
        values, terms = global_loops.sogclr(u, ids, positives, negatives, flagged, TAU, gamma, shared=shared)
        torch.testing.assert_close(got, values, rtol=0, atol=1e-6)
        expected, gradient = (torch.autograd.grad(x.mean(), raw, retain_graph=True)[0] for x in (terms, got))
        torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-9)
    held = objective.running["views"].log_mean(torch.arange(ROWS)).exp()
    assert held.isnan().tolist() == [row not in u for row in range(ROWS)]
    for row, value in u.items():
        assert float(held[row]) == pytest.approx(value, rel=1e-5)


def test_the_two_forms_are_told_apart():
    """At a temperature of .1 the views of an image differ enough: by a third of the gradient and more."""
    raw, tau = raw_rows(BATCHES[0], 0), torch.tensor(0.1, dtype=torch.float64)
    contrast = batch(raw, BATCHES[0])
    gradients = [
        torch.autograd.grad(
            losses_of(objective, contrast, fn.NoPairs(), fn.ELIMINATE, tau).mean(), raw, retain_graph=True
        )[0]
        for objective in (prepared(fn.GlobalContrastive()), prepared(fn.GlobalContrastive(shared_mean=True)))
    ]
    assert float((gradients[0] - gradients[1]).norm() / gradients[0].norm()) > 0.3


@pytest.mark.parametrize("strategy", catalogue.STRATEGIES)
def test_every_strategy_on_one_visit(strategy):
    """Attraction averages over positives and flagged pairs; to renormalise changes nothing, as the mean is one already."""
    strategy = catalogue.STRATEGIES[strategy]
    raw = raw_rows(BATCHES[0], 0)
    contrast = batch(raw, BATCHES[0])
    got = losses_of(prepared(fn.GlobalContrastive()), contrast, fn.AboveThreshold(torch.tensor(0.3)), strategy)
    _, positives, negatives, _ = pairs(contrast)
    terms, values = [], []
    for i, row in enumerate(negatives):
        weights = [strategy.negative if s > 0.3 else 1.0 for s in row]
        g = sum(w * (s / TAU).exp() for w, s in zip(weights, row, strict=True)) / sum(weights)
        attracted = [s for s in row if s > 0.3]
        mean = (positives[i] + strategy.positive * sum(attracted)) / (1 + strategy.positive * len(attracted))
        terms.append(-mean + TAU * g / float(g))
        values.append(-mean + TAU * math.log(float(g)))
    torch.testing.assert_close(got, torch.stack(values), rtol=0, atol=1e-6)
    expected, gradient = (torch.autograd.grad(sum(x), raw, retain_graph=True)[0] for x in (terms, got))
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-8)


def test_gradient_is_tau_times_that_of_the_decoupled_loss_at_first_sight():
    """One view of each sample, never seen: u is g, and −s + τ log g is τ times the decoupled loss."""
    raw = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    z = normalize(raw, dim=1)
    anchors = fn.Embedded(z, torch.arange(6))
    contrast = fn.Contrast("views", anchors, anchors, (z * z.roll(1, 0)).sum(1, keepdim=True))
    tau = torch.tensor(TAU, dtype=torch.float64)
    ours = losses_of(prepared(fn.GlobalContrastive()), contrast, fn.NoPairs(), fn.ELIMINATE, tau)
    stats = fn.negative_stats(contrast, tau, fn.NoPairs(), fn.ELIMINATE)
    decoupled = fn.Decoupled()(contrast, stats, tau, fn.ELIMINATE) * TAU
    torch.testing.assert_close(ours, decoupled - TAU * math.log(5), rtol=0, atol=1e-6)
    a, b = (torch.autograd.grad(x.mean(), raw, retain_graph=True)[0] for x in (ours, decoupled))
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-9)


def test_sogclr_with_glofnd_runs_and_agrees_with_the_loops():
    """[1] The released combination stops before its first step. Update, then flag, then u, then the loss."""
    criterion = fn.Criterion(
        fn.GlobalThreshold(alpha=0.3, initial=0.5), fn.ELIMINATE, fn.GlobalContrastive(0.6), torch.tensor(TAU).item()
    )
    prepared(criterion)
    thresholds, states, u = {}, {}, {}
    step = partial(global_loops.adam_step, rate=0.05)
    for seed, samples in enumerate(BATCHES):
        raw = raw_rows(samples, seed)
        contrast = batch(raw, samples)
        loss, _ = criterion([contrast], CLOCK)
        ids, positives, negatives, _ = pairs(contrast)
        flagged = global_loops.glofnd(thresholds, states, ids, negatives, 0.3, step, initial=0.5)
        values, terms = global_loops.sogclr(u, ids, positives, negatives, flagged, TAU, 0.6)
        torch.testing.assert_close(loss, values.mean(), rtol=0, atol=1e-6)
        expected, gradient = (torch.autograd.grad(x, raw, retain_graph=True)[0] for x in (terms.mean(), loss))
        torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-9)


def seen_over_epochs(gamma, rescaled, epochs=(4, 3)):
    """The mean of log(g / u), epoch by epoch, when an oracle starts to filter after some; it should stay near 0."""
    draw = torch.Generator().manual_seed(1)
    classes, centres = torch.arange(240) % 4, torch.eye(4, 8, dtype=torch.float64)
    z = normalize(centres[classes] + 0.2 * torch.randn(240, 8, generator=draw, dtype=torch.float64), dim=1)
    objective, oracle, ratios = prepared(fn.GlobalContrastive(gamma), rows=240), fn.Oracle(classes), []
    running, tau = objective.running["views"], torch.tensor(0.1, dtype=torch.float64)
    if not rescaled:
        running.before_filtering = lambda row: torch.zeros_like(row, dtype=torch.bool)
    for epoch in range(sum(epochs)):
        rule = fn.NoPairs() if epoch < epochs[0] else oracle
        of_epoch = []
        for rows in torch.randperm(240, generator=draw).split(80):
            anchors = fn.Embedded(z[rows], rows)
            contrast = fn.Contrast("views", anchors, anchors, z.new_ones(80, 1))
            found = rule if isinstance(rule, fn.NoPairs) else rule.flag(contrast, CLOCK)
            stats = fn.negative_stats(contrast, tau, found, fn.ELIMINATE)
            objective.observe(contrast, [stats], tau, fn.ELIMINATE, CLOCK)
            log_g = stats.log_sum - stats.weight.log()
            of_epoch.append(float((log_g - running.log_mean(rows)).mean()))
        ratios.append(global_loops.mean(of_epoch))
    return ratios


def test_no_transient_when_filtering_starts():
    """[9] Without the rescaling the gradient of the negatives nearly vanishes for 1 / gamma visits."""
    rescaled, left = seen_over_epochs(0.2, rescaled=True), seen_over_epochs(0.2, rescaled=False)
    assert all(abs(ratio) < 0.08 for ratio in rescaled)
    assert max(left[4:]) < -4 and left[:4] == rescaled[:4]


def test_rescaling_is_by_the_ratio_of_the_two_means_of_that_step():
    objective, gamma = prepared(fn.GlobalContrastive(0.3)), 0.3
    first, second = (batch(raw_rows(BATCHES[0], seed), BATCHES[0]) for seed in (0, 1))
    losses_of(objective, first, fn.NoPairs(), fn.ELIMINATE)
    losses_of(objective, second, fn.AboveThreshold(torch.tensor(0.3)), fn.ELIMINATE)
    ids, _, before, _ = pairs(first)
    _, _, after, _ = pairs(second)
    for sample, anchors in global_loops.views_of(ids).items():
        unfiltered = [global_loops.kept_mean(row, [False] * len(row), TAU) for row in before]
        u = float(global_loops.mean(unfiltered[i] for i in anchors))
        flags = [[float(s) > 0.3 for s in row] for row in after]
        kept = float(global_loops.mean(global_loops.kept_mean(after[i], flags[i], TAU) for i in anchors))
        everything = float(
            global_loops.mean(global_loops.kept_mean(after[i], [False] * len(after[i]), TAU) for i in anchors)
        )
        started = any(any(flags[i]) for i in anchors)
        u = (1 - gamma) * (u * kept / everything if started else u) + gamma * kept
        assert float(objective.running["views"].log_mean(torch.tensor([sample]))) == pytest.approx(
            math.log(u), abs=1e-5
        )


def test_only_those_for_whom_filtering_starts_are_rescaled():
    """In one step some are, and others were before."""
    objective, everything = prepared(fn.GlobalContrastive(0.3)), fn.AboveThreshold(torch.tensor(0.0))
    losses_of(objective, batch(raw_rows([0, 1, 2, 3], 0), [0, 1, 2, 3]), fn.NoPairs(), fn.ELIMINATE)
    losses_of(objective, batch(raw_rows([0, 1, 10, 11], 1), [0, 1, 10, 11]), everything, fn.ELIMINATE)
    last, running = batch(raw_rows([0, 1, 2, 3], 2), [0, 1, 2, 3]), objective.running["views"]
    assert running.before_filtering(torch.arange(5)).tolist() == [False, False, True, True, False]
    before = running.log_mean(torch.arange(4)).exp()
    losses_of(objective, last, everything, fn.ELIMINATE)
    alone = prepared(fn.GlobalContrastive())
    losses_of(alone, last, everything, fn.ELIMINATE)
    plain = 0.7 * before + 0.3 * alone.running["views"].log_mean(torch.arange(4)).exp()
    after = running.log_mean(torch.arange(4)).exp()
    torch.testing.assert_close(after[:2], plain[:2])
    assert (after[2:] < plain[2:] - 0.01).all()


def test_what_is_first_seen_later_is_not_rescaled_and_one_sweep_is_made_only_once(monkeypatch):
    from falseneg.objectives import global_contrastive

    sweeps, real = [], global_contrastive.negative_stats
    monkeypatch.setattr(global_contrastive, "negative_stats", lambda *a: sweeps.append(1) or real(*a))
    objective, everything = prepared(fn.GlobalContrastive(0.3)), fn.AboveThreshold(torch.tensor(0.3))
    counts = []
    for seed, rule in enumerate([fn.NoPairs(), everything, everything, everything]):
        losses_of(objective, batch(raw_rows(BATCHES[0], seed), BATCHES[0]), rule, fn.ELIMINATE)
        counts.append(len(sweeps))
    assert counts[0] == 0 and counts[1] == 1 and counts[3] <= 2
    later = batch(raw_rows([10, 11, 12], 7), [10, 11, 12])
    for rule in (fn.AboveThreshold(torch.tensor(2.0)), everything):  # nothing of it flagged at first
        losses_of(objective, later, rule, fn.ELIMINATE)
    assert len(sweeps) == counts[3]


def test_levels_are_averaged_before_u():
    raw = raw_rows(BATCHES[0], 0)
    contrast = batch(raw, BATCHES[0])
    objective, tau = prepared(fn.GlobalContrastive()), torch.tensor(TAU, dtype=torch.float64)
    rules = fn.NoPairs(), fn.AboveThreshold(torch.tensor(0.3)), fn.AboveThreshold(torch.tensor(-2.0))
    levels = [fn.negative_stats(contrast, tau, rule, fn.ELIMINATE) for rule in rules]
    objective.observe(contrast, levels, tau, fn.ELIMINATE, CLOCK)
    g = [(stats.log_sum.exp() / stats.weight).detach() for stats in levels[:2]]  # the third keeps nothing
    expected = ((g[0] + g[1]) / 2).unflatten(0, (4, 2)).mean(1).log()
    got = objective.running["views"].log_mean(torch.arange(4))
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("strategy", ["eliminate", "attract-outside", "eliminate-renormalised"])
@pytest.mark.parametrize("backend", ["dense", "tiled"])
def test_all_negatives_filtered(strategy, backend):
    """Only the attraction is left, u stays, nothing is NaN."""
    objective, strategy = prepared(fn.GlobalContrastive()), catalogue.STRATEGIES[strategy]
    losses_of(objective, batch(raw_rows(BATCHES[0], 0), BATCHES[0]), fn.NoPairs(), strategy)
    before = objective.running["views"].log_mean(torch.arange(4))
    raw = raw_rows(BATCHES[0], 1)
    contrast = batch(raw, BATCHES[0])
    everything = fn.AboveThreshold(torch.tensor(-2.0))
    tau = torch.tensor(TAU, dtype=torch.float64, requires_grad=True)
    losses = losses_of(objective, contrast, everything, strategy, tau, backend=backend)
    if strategy.positive == 0:
        torch.testing.assert_close(losses, -contrast.positives[:, 0], rtol=0, atol=1e-12)
    losses.mean().backward()
    assert torch.isfinite(raw.grad).all() and torch.isfinite(tau.grad)
    assert torch.equal(objective.running["views"].log_mean(torch.arange(4)), before)


@pytest.mark.parametrize("autocast", [False, True])
def test_safe_at_a_temperature_of_a_hundredth(autocast):
    """In float32 e^{s/τ} would overflow; and the same numbers as in float64, autocast or not."""
    results = []
    for dtype in (torch.float64, torch.float32):
        objective = prepared(fn.GlobalContrastive(0.5))
        for seed in (0, 1):
            raw = raw_rows(BATCHES[0], seed).detach().to(dtype).requires_grad_()
            z = normalize(raw + 3, dim=1)  # cosines near 1: e^{s/τ} near e^100
            anchors = fn.Embedded(z, torch.arange(4).repeat_interleave(2))
            contrast = fn.Contrast("views", anchors, anchors, (z * z[torch.arange(8) ^ 1]).sum(1, keepdim=True))
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast and dtype == torch.float32):
                loss = losses_of(
                    objective, contrast, fn.NoPairs(), fn.ELIMINATE, torch.tensor(0.01, dtype=dtype)
                ).mean()
            gradient = torch.autograd.grad(loss, raw)[0]
            assert torch.isfinite(loss) and loss.dtype == dtype
        results.append((loss.double().detach(), gradient.double()))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-2, atol=1e-4)
    assert float(results[0][0].exp()) > 0 and objective.running["views"].log_mean(torch.arange(4)).min() > 50


def test_gamma_follows_its_schedule():
    objective = prepared(fn.GlobalContrastive(fn.Cosine(1.0, 0.2, "50%")))
    first, second = (batch(raw_rows(BATCHES[0], seed), BATCHES[0]) for seed in (0, 1))
    means = []
    for contrast in (first, second):
        fresh = prepared(fn.GlobalContrastive())
        losses_of(fresh, contrast, fn.NoPairs(), fn.ELIMINATE)
        means.append(fresh.running["views"].log_mean(torch.arange(4)).exp())
    losses_of(objective, first, fn.NoPairs(), fn.ELIMINATE)
    losses_of(objective, second, fn.NoPairs(), fn.ELIMINATE, clock=fn.Clock(60, 10, 10))
    got = objective.running["views"].log_mean(torch.arange(4)).exp()
    torch.testing.assert_close(got, 0.8 * means[0] + 0.2 * means[1])


def test_in_evaluation_u_stays():
    objective, contrast = prepared(fn.GlobalContrastive()), batch(raw_rows(BATCHES[0], 0), BATCHES[0])
    losses_of(objective, contrast, fn.NoPairs(), fn.ELIMINATE)
    before = objective.state_dict()["running.views.table.column_log_mean"].clone()
    objective.eval()
    other = batch(raw_rows([2, 3, 9], 1), [2, 3, 9])
    assert torch.isfinite(losses_of(objective, other, fn.NoPairs(), fn.ELIMINATE)).all()
    after = objective.state_dict()["running.views.table.column_log_mean"]
    assert torch.equal(after.nan_to_num(7), before.nan_to_num(7))


def test_over_a_bank_with_a_denominator_of_its_own():
    """As MoCo compares: keys without gradient, several positives, and flagged columns that are only attracted."""
    z = catalogue.unit(4, 5, seed=0).requires_grad_()
    keys = catalogue.unit(30, 5, seed=1)
    sample = torch.arange(30) % 12
    anchors, candidates = fn.Embedded(z, torch.arange(4)), fn.Embedded(keys, sample)
    positives = torch.stack([(z * keys[:4]).sum(1), (z * keys[12:16]).sum(1)], dim=1)
    parts = {"batch": slice(0, 8), "bank": slice(8, 30)}
    contrast = fn.Contrast("views", anchors, candidates, positives, parts=parts, denominator="bank")
    got = losses_of(
        prepared(fn.GlobalContrastive()), contrast, fn.AboveThreshold(torch.tensor(0.2)), fn.ATTRACT_OUTSIDE
    )
    for i in range(4):
        columns = [j for j in range(30) if sample[j] != i]
        s = {j: float(z[i].detach() @ keys[j]) for j in columns}
        attracted = [s[j] for j in columns if s[j] > 0.2]
        g = global_loops.mean(math.exp(s[j] / TAU) for j in columns if j >= 8 and not s[j] > 0.2)
        mean = (float(positives[i].sum()) + sum(attracted)) / (2 + len(attracted))
        assert float(got[i]) == pytest.approx(-mean + TAU * math.log(g), abs=1e-6)


def test_saved_with_the_checkpoint():
    def fresh(rows=ROWS):
        return prepared(fn.Criterion(None, fn.ELIMINATE, fn.GlobalContrastive(0.5), fn.IndividualTemperature()), rows)

    def step(criterion, seed, rule):
        contrast = batch(raw_rows(BATCHES[seed], seed), BATCHES[seed])
        criterion.detector = fn.FixedThreshold(rule)
        loss, _ = criterion([contrast], CLOCK)
        loss.backward()
        criterion.temperature.after_backward(CLOCK)
        return loss.detach()

    first, second = fresh(), fresh()
    for seed, rule in enumerate((1.0, 0.4)):
        step(first, seed, rule)
    load_module(second, first.state_dict(), "criterion")
    assert torch.equal(step(first, 2, 0.4), step(second, 2, 0.4))
    states = [criterion.state_dict() for criterion in (first, second)]
    assert all(torch.equal(states[0][name].nan_to_num(7), states[1][name].nan_to_num(7)) for name in states[0])
    assert bool(states[1]["objective.running.views.filtering"])
    with pytest.raises(fn.UserError, match="criterion.objective.running.views.table.* is .*40.* there and .*41"):
        load_module(fresh(41), first.state_dict(), "criterion")


@pytest.mark.parametrize(
    "make, sentence",
    [
        (lambda: fn.GlobalContrastive(0.0), "gamma is 0.0; give a number above 0 and at most 1"),
        (lambda: fn.GlobalContrastive(fn.Cosine(1.0, 1.2)), "gamma is 1.2"),
        (lambda: fn.GlobalContrastive(epsilon=-1.0), "epsilon is -1.0"),
        (lambda: fn.GlobalContrastive(rho=float("nan")), "rho is nan"),
        (
            lambda: fn.IndividualTemperature(2.0),
            r"initial is 2.0; give a value from minimum \(0.05\) to maximum \(1.0\)",
        ),
        (lambda: fn.IndividualTemperature(minimum=0.0), "minimum is 0.0; give a number above 0"),
        (lambda: fn.IndividualTemperature(clip=0.0), "clip is 0.0"),
        (
            lambda: losses_of(fn.GlobalContrastive(), batch(raw_rows([0, 1], 0), [0, 1]), fn.NoPairs(), fn.ELIMINATE),
            r"GlobalContrastive: there is no table for the contrast 'views' \(there are: none\); before training, call",
        ),
        (lambda: fn.IndividualTemperature()(batch(raw_rows([0, 1], 0), [0, 1])), "no table for the contrast 'views'"),
        (
            lambda: prepared(fn.IndividualTemperature(), rows=3)(batch(raw_rows([0, 9], 0), [0, 9])),
            "row 9 is outside the table of 3 rows",
        ),
    ],
)
def test_bad_input_is_answered_with_one_sentence(make, sentence):
    with pytest.raises(fn.UserError, match=sentence):
        make()
