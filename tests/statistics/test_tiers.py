"""Tiers: each flagged pair is treated by the strategy of the first tier that flags it. Against loops, for the catalogue."""

from dataclasses import replace

import catalogue
import pytest
import torch
from catalogue import temperature, values_and_gradients
from reference import loops, tier_loops

import falseneg as fn
from falseneg.statistics import stats_of_levels, tiles

KINDS = ("batch", "bank", "alone")
NAMES = list(catalogue.tiers(catalogue.contrast_of("batch")[0]))
HALF = catalogue.STRATEGIES["half"]


@pytest.fixture(params=["dense", "tiled", "tiled-uneven"])
def backend(request, monkeypatch):
    if request.param == "tiled-uneven":
        monkeypatch.setattr(tiles, "TILE", 3)
    return request.param.split("-")[0]


def weights_of(contrast, tiers, i, j, run):
    """(a, w, restores) of the pair of anchor i and candidate j, by the first tier that flags it; and whether one does."""
    sim = (contrast.anchors.z[i : i + 1] @ contrast.candidates.z[j : j + 1].T).detach()
    for rule, own in tiers.tiers:
        if rule.tile(slice(i, i + 1), slice(j, j + 1), sim):
            strategy = own or run
            return (strategy.positive, strategy.negative, strategy.renormalise), True
    return (0.0, 1.0, False), False


def pairs_of(contrast, tiers, i, run=HALF):
    columns = loops.negatives_of(i, contrast.anchors.sample.tolist(), contrast.candidates.sample.tolist())
    for j in columns:
        weights, flagged = weights_of(contrast, tiers, i, j, run)
        yield j, loops.similarity(contrast.anchors.z[i], contrast.candidates.z[j]), weights, flagged


def assert_close(results):
    for expected, got in zip(*results, strict=True):
        expected = torch.zeros(()) if expected is None else expected
        got = torch.zeros_like(expected) if got is None else got
        assert torch.isfinite(got).all()
        torch.testing.assert_close(got, expected.to(got.dtype).expand_as(got), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_product_of_tiers_and_objectives(kind, name, backend):
    for objective_name, objective in catalogue.OBJECTIVES.items():
        results = []
        for by in ("loop", "library"):
            contrast, leaves = catalogue.contrast_of(kind)
            tiers, tau = catalogue.tiers(contrast)[name], temperature(kind)
            if by == "loop":
                losses = []
                for i in range(len(contrast.anchors)):
                    pairs = [(s, *weights) for _, s, weights, _ in pairs_of(contrast, tiers, i)]
                    one = tau.expand(len(contrast.anchors))[i]
                    losses.append(tier_loops.loss(objective_name, list(contrast.positives[i]), pairs, one))
                losses = torch.stack(losses)
            else:
                stats = fn.negative_stats(contrast, tau, tiers, HALF, backend=backend)
                losses = objective(contrast, stats, tau, HALF)
            results.append(values_and_gradients(losses, [leaf for leaf in (*leaves, tau) if leaf is not None]))
        assert_close(results)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("part", ["first", "second"])
def test_what_a_tier_takes_outside_the_denominator_is_attracted_and_not_pushed(part, name, kind, backend):
    results = []
    for by in ("loop", "library"):
        contrast, leaves = catalogue.contrast_of(kind)
        contrast = replace(contrast, denominator=part)
        tiers, tau = catalogue.tiers(contrast)[name], temperature(kind)
        if by == "library":
            stats = fn.negative_stats(contrast, tau, tiers, HALF, backend=backend)
            losses = fn.InfoNCE()(contrast, stats, tau, HALF)
        else:
            losses = torch.stack([outside_by_loop(contrast, tiers, i, tau) for i in range(len(contrast.anchors))])
        results.append(values_and_gradients(losses, [leaf for leaf in (*leaves, tau) if leaf is not None]))
    assert_close(results)


def outside_by_loop(contrast, tiers, i, tau):
    tau, inside = tau.expand(len(contrast.anchors))[i], contrast.parts[contrast.denominator]
    pairs = [(j, s, *weights) for j, s, weights, _ in pairs_of(contrast, tiers, i)]
    pushed = [(s, a, w, restores) for j, s, a, w, restores in pairs if inside.start <= j < inside.stop]
    mass = sum((w * (s / tau).exp() for s, _, w, _ in pushed), start=0.0 * tau)
    if sum(w for _, _, w, _ in pushed) > 0:
        mass = tier_loops.rescaled(mass, pushed)
    return tier_loops.info_nce(list(contrast.positives[i]), [pair[1:] for pair in pairs], tau, mass)


@pytest.mark.parametrize("name", NAMES)
def test_counts_and_weights(name, backend):
    contrast, _ = catalogue.contrast_of("bank")
    tiers = catalogue.tiers(contrast)[name]
    stats = fn.negative_stats(contrast, torch.tensor(0.1), tiers, HALF, backend=backend)
    for i in range(len(contrast.anchors)):
        found = [(weights, flagged) for _, _, weights, flagged in pairs_of(contrast, tiers, i)]
        assert int(stats.count[i]) == len(found) and int(stats.flagged[i]) == sum(flagged for _, flagged in found)
        assert float(stats.attracted[i]) == pytest.approx(sum(a for (a, _, _), _ in found))
        assert float(stats.weight[i]) == pytest.approx(sum(w for (_, w, _), _ in found))
        given_back = sum(1 - w for (_, w, restores), _ in found if restores)
        assert float(stats.full[i]) == pytest.approx(float(stats.weight[i]) + given_back)


def test_tiers_of_one_strategy_are_that_strategy_for_what_any_of_them_flags(backend):
    for strategy in catalogue.STRATEGIES.values():
        results = []
        for tiered in (False, True):
            contrast, leaves = catalogue.contrast_of("batch")
            of = catalogue.rules(contrast)
            rule = fn.Tiers(((of["groups"], strategy), (of["above"], None))) if tiered else of["groups"] | of["above"]
            tau = temperature("batch")
            stats = fn.negative_stats(contrast, tau, rule, strategy, backend=backend)
            losses = fn.OwnDenominators()(contrast, stats, tau, strategy)
            results.append(values_and_gradients(losses, [*leaves[::2], tau]))
        assert_close(results)


def test_tiers_may_be_one_of_several_levels(backend):
    contrast, _ = catalogue.contrast_of("bank")
    tiers, tau = catalogue.tiers(contrast)["three"], torch.tensor(0.2)
    rules = [catalogue.rules(contrast)["groups"], tiers]
    together = stats_of_levels(contrast, tau, rules, HALF, backend)
    for rule, got in zip(rules, together, strict=True):
        alone = fn.negative_stats(contrast, tau, rule, HALF, backend)
        for name in ("log_sum", "count", "flagged", "weight", "full", "attracted", "attracted_sim"):
            torch.testing.assert_close(getattr(got, name), getattr(alone, name), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(got.log_sum_at(1.5), alone.log_sum_at(1.5), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("tau", [0.002, 0.01, 0.05])
def test_cold_temperatures_in_float32(tau):
    """What a tier drops is e^100 times the rest of its row, or e^-100; other rows are the other way round."""
    z = catalogue.unit(3, 8, seed=3)
    near = torch.nn.functional.normalize(z[:1] + 0.01 * z[1:2], dim=-1)
    rows = torch.cat([z[:1], near, -z[:1] + 0.3 * z[1:2], -z[:1] + 0.3 * z[2:3], z[1:]])
    results = []
    for dtype, backend in ((torch.float64, "dense"), (torch.float32, "tiled"), (torch.float32, "dense")):
        leaf = torch.nn.functional.normalize(rows, dim=-1).to(dtype).requires_grad_()
        anchors = fn.Embedded(leaf, torch.arange(len(rows)))
        contrast = fn.Contrast("views", anchors, anchors, leaf[:, :1])
        above = [fn.AboveThreshold(torch.tensor(threshold)) for threshold in (0.9, 0.3, -0.5)]
        tiers = fn.Tiers(((above[0], fn.ELIMINATE), (above[1], fn.Strategy(1, 0.5)), (above[2], fn.Strategy(0, 1e-3))))
        stats = fn.negative_stats(contrast, torch.tensor(tau), tiers, fn.IGNORE, backend)
        results.append(values_and_gradients(stats.log_sum + stats.attracted_sim, [leaf]))
    for ours in results[1:]:
        for got, expected in zip(ours, results[0], strict=True):
            torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)


def test_what_any_tier_flags_is_counted_and_listed():
    class Tiered(fn.Detector):
        def flag(self, contrast, clock):
            first, second = (fn.AboveThreshold(torch.tensor(threshold)) for threshold in (0.3, -0.1))
            return fn.Tiers(((first, fn.ATTRACT), (second, fn.ELIMINATE)))

    views = [torch.randn(6, 4, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
    tiered, plain = fn.ContrastiveLoss(Tiered()), fn.ContrastiveLoss(fn.FixedThreshold(-0.1))
    first, second = tiered(*views), plain(*views)
    assert not torch.isclose(first, second)
    assert tiered.flagged.share == plain.flagged.share > 0
    assert all(map(torch.equal, tiered.flagged.pairs(), plain.flagged.pairs()))
    labels = torch.arange(6) % 2
    anchors = fn.Embedded(torch.nn.functional.normalize(views[0], dim=1), torch.arange(6))
    contrast = fn.Contrast("views", anchors, anchors, anchors.z[:, :1])
    rules = [detector.flag(contrast, fn.Clock(0, 1, 1)) for detector in (Tiered(), fn.FixedThreshold(-0.1))]
    counted = [vars(fn.confusion(contrast, rule, labels)) for rule in rules]
    assert counted[0] == counted[1]
    with pytest.raises(fn.UserError, match="AnyOf: Tiered flags tiers, each with a strategy of its own"):
        fn.AnyOf([fn.FixedThreshold(0.9), Tiered()]).flag(contrast, fn.Clock(0, 1, 1))
    started = fn.StartAt(Tiered(), "50%")
    assert isinstance(started.flag(contrast, fn.Clock(0, 1, 2)), fn.NoPairs)
    assert isinstance(started.flag(contrast, fn.Clock(1, 1, 2)), fn.Tiers)


def test_what_tiers_cannot_be():
    rule = fn.AboveThreshold(torch.tensor(0.5))
    for wrong in ((), ((fn.Tiers(((rule, None),)), None),)):
        with pytest.raises(fn.UserError, match="give at least one pair of a rule and a strategy, and no tiers among"):
            fn.Tiers(wrong)


def test_nothing_of_the_size_of_the_matrix_is_kept():
    sizes = []
    for images in (128, 512):
        z = catalogue.unit(2 * images, 32, seed=0, dtype=torch.float32).requires_grad_()
        anchors = fn.Embedded(z, torch.arange(images).repeat_interleave(2))
        contrast = fn.Contrast("views", anchors, anchors, (z * z.flip(0)).sum(1, keepdim=True))
        tiers = fn.Tiers(
            ((fn.AboveThreshold(torch.tensor(0.4)), fn.ATTRACT), (fn.AboveThreshold(torch.tensor(0.2)), None))
        )
        kept = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x, kept=kept: kept.setdefault(x.untyped_storage().data_ptr(), x), lambda x: x
        ):
            stats = fn.negative_stats(contrast, torch.tensor(0.1), tiers, fn.ELIMINATE, "tiled")
            fn.InfoNCE()(contrast, stats, torch.tensor(0.1), fn.ELIMINATE).mean()
        sizes.append(sum(x.untyped_storage().nbytes() for x in kept.values()))
    assert sizes[1] < 4.2 * sizes[0] < 4.2 * 256 * 256 * 4
