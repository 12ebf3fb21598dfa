"""Both backends against the loops of the papers' equations, in value and gradient, for the whole catalogue."""

import math
from dataclasses import replace

import catalogue
import pytest
import torch
from catalogue import temperature, values_and_gradients
from reference import loops, moco_loops
from torch.utils._python_dispatch import TorchDispatchMode

import falseneg as fn
from falseneg.statistics import scan, stats_of_levels, tiles

KINDS = ("batch", "bank", "alone")
RULES = list(catalogue.rules(catalogue.contrast_of("batch")[0]))


@pytest.fixture(params=["dense", "tiled", "tiled-uneven"])
def backend(request, monkeypatch):
    if request.param == "tiled-uneven":
        monkeypatch.setattr(tiles, "TILE", 3)
    return request.param.split("-")[0]


def by_loop(contrast, flagged, tau, objective, strategy):
    """(N,) losses pair by pair."""
    anchors, candidates = contrast.anchors, contrast.candidates
    losses = []
    for i in range(len(anchors)):
        columns = loops.negatives_of(i, anchors.sample.tolist(), candidates.sample.tolist())
        s_neg = [loops.similarity(anchors.z[i], candidates.z[j]) for j in columns]
        losses.append(
            catalogue.LOOPS[objective](
                list(contrast.positives[i]),
                s_neg,
                [bool(flagged[i, j]) for j in columns],
                tau.expand(len(anchors))[i],
                strategy.positive,
                strategy.negative,
                strategy.renormalise,
            )
        )
    return torch.stack(losses)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule_name", RULES)
def test_product_of_rules_strategies_and_objectives(kind, rule_name, backend):
    for strategy in catalogue.STRATEGIES.values():
        for name, objective in catalogue.OBJECTIVES.items():
            results = []
            for by in ("loop", "library"):
                contrast, leaves = catalogue.contrast_of(kind)
                rule, tau = catalogue.rules(contrast)[rule_name], temperature(kind)
                every = slice(0, len(contrast.anchors)), slice(0, len(contrast.candidates))
                sim = (contrast.anchors.z @ contrast.candidates.z.T).detach()
                if by == "loop":
                    losses = by_loop(contrast, rule.tile(*every, sim), tau, name, strategy)
                else:
                    stats = fn.negative_stats(contrast, tau, rule, strategy, backend=backend)
                    losses = objective(contrast, stats, tau, strategy)
                results.append(values_and_gradients(losses, [leaf for leaf in (*leaves, tau) if leaf is not None]))
            for expected, got in zip(*results, strict=True):
                expected = torch.zeros(()) if expected is None else expected
                got = torch.zeros_like(expected) if got is None else got
                assert torch.isfinite(got).all()
                torch.testing.assert_close(got, expected.to(got.dtype).expand_as(got), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("objective", ["InfoNCE", "OwnDenominators"])
@pytest.mark.parametrize("strategy", ["ignore", "eliminate", "attract-outside", "half"])
def test_several_rules_at_once_are_each_as_if_alone(strategy, objective, kind, backend):
    results, strategy = [], catalogue.STRATEGIES[strategy]
    for by in ("loop", "library"):
        contrast, leaves = catalogue.contrast_of(kind)
        rules, tau = [catalogue.rules(contrast)[name] for name in RULES], temperature(kind)
        every = slice(0, len(contrast.anchors)), slice(0, len(contrast.candidates))
        sim = (contrast.anchors.z @ contrast.candidates.z.T).detach()
        if by == "loop":
            levels = [by_loop(contrast, rule.tile(*every, sim), tau, objective, strategy) for rule in rules]
        else:
            stats = stats_of_levels(contrast, tau, rules, strategy, backend)
            levels = [catalogue.OBJECTIVES[objective](contrast, of_rule, tau, strategy) for of_rule in stats]
        weighed = torch.cat([(1 + number) * losses for number, losses in enumerate(levels)])
        results.append(values_and_gradients(weighed, [leaf for leaf in (*leaves, tau) if leaf is not None]))
    for expected, got in zip(*results, strict=True):
        expected = torch.zeros(()) if expected is None else expected
        got = torch.zeros_like(expected) if got is None else got
        torch.testing.assert_close(got, expected.to(got.dtype).expand_as(got), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule_name", RULES)
@pytest.mark.parametrize("part", ["first", "second"])
def test_flagged_pairs_outside_the_denominator_are_attracted_and_not_pushed(part, rule_name, kind, backend):
    for strategy in catalogue.STRATEGIES.values():
        results = []
        for by in ("loop", "library"):
            contrast, leaves = catalogue.contrast_of(kind)
            contrast = replace(contrast, denominator=part)
            rule, tau = catalogue.rules(contrast)[rule_name], temperature(kind)
            if by == "library":
                stats = fn.negative_stats(contrast, tau, rule, strategy, backend=backend)
                losses = fn.InfoNCE()(contrast, stats, tau, strategy)
            else:
                losses = by_loop_in_parts(contrast, rule, tau, strategy)
            results.append(values_and_gradients(losses, [leaf for leaf in (*leaves, tau) if leaf is not None]))
        for expected, got in zip(*results, strict=True):
            got = torch.zeros_like(expected) if got is None else got
            torch.testing.assert_close(got, expected.to(got.dtype).expand_as(got), rtol=1e-10, atol=1e-12)


def by_loop_in_parts(contrast, rule, tau, strategy):
    """(N,) losses pair by pair, where only one part of the candidates is pushed away."""
    anchors, candidates = contrast.anchors, contrast.candidates
    sim = (anchors.z @ candidates.z.T).detach()
    flagged = rule.tile(slice(0, len(anchors)), slice(0, len(candidates)), sim)
    inside, losses = contrast.parts[contrast.denominator], []
    for i in range(len(anchors)):
        columns = loops.negatives_of(i, anchors.sample.tolist(), candidates.sample.tolist())
        negatives = [
            (loops.similarity(anchors.z[i], candidates.z[j]), bool(flagged[i, j]), inside.start <= j < inside.stop)
            for j in columns
        ]
        weights = strategy.positive, strategy.negative, strategy.renormalise
        losses.append(moco_loops.parted(list(contrast.positives[i]), negatives, tau.expand(len(anchors))[i], *weights))
    return torch.stack(losses)


def test_counts_and_weight(backend):
    contrast, _ = catalogue.contrast_of("bank")
    rule = catalogue.rules(contrast)["groups"]
    flagged = rule.tile(slice(0, 4), slice(0, 11), contrast.anchors.z @ contrast.candidates.z.T)
    stats = fn.negative_stats(contrast, torch.tensor(0.1), rule, fn.Strategy(0, 0.25), backend=backend)
    for i in range(4):
        columns = loops.negatives_of(i, contrast.anchors.sample.tolist(), contrast.candidates.sample.tolist())
        count = sum(bool(flagged[i, j]) for j in columns)
        assert (int(stats.count[i]), int(stats.flagged[i])) == (len(columns), count)
        assert float(stats.weight[i]) == pytest.approx(len(columns) - 0.75 * count)


def test_log_sum_at_another_scale(backend):
    contrast, _ = catalogue.contrast_of("bank")
    stats = fn.negative_stats(contrast, torch.tensor(0.2), fn.NoPairs(), fn.IGNORE, backend=backend)
    other = fn.negative_stats(contrast, torch.tensor(0.1), fn.NoPairs(), fn.IGNORE, backend=backend)
    torch.testing.assert_close(stats.log_sum_at(2.0), other.log_sum, rtol=1e-12, atol=0)


@pytest.mark.parametrize("backend_name", ["dense", "tiled"])
@pytest.mark.parametrize("kind", ["batch", "bank"])
def test_gradcheck(backend_name, kind, monkeypatch):
    monkeypatch.setattr(tiles, "TILE", 4)
    _, bank, of_anchor, of_candidate, _ = catalogue.make(kind)
    flagged = torch.rand(len(of_anchor), len(of_candidate), generator=torch.Generator().manual_seed(1)) < 0.3
    listed = fn.Listed.from_pairs(*flagged.nonzero().unbind(1), len(of_anchor))

    def all_statistics(z, keys, tau):
        anchors = fn.Embedded(z, of_anchor)
        candidates = anchors if bank is None else fn.Embedded(keys, of_candidate)
        contrast = fn.Contrast("views", anchors, candidates, z[:, :1])
        stats = fn.negative_stats(contrast, tau, listed, fn.Strategy(1, 0.5), backend=backend_name)
        return stats.log_sum, stats.attracted_sim, stats.log_sum_at(1.5), stats.over_attracted(stats.log_sum)

    z = torch.randn(len(of_anchor), 3, dtype=torch.float64, requires_grad=True)
    keys = torch.randn(len(of_candidate), 3, dtype=torch.float64, requires_grad=True)
    tau = torch.rand(len(of_anchor), dtype=torch.float64).add(0.5).requires_grad_()
    assert torch.autograd.gradcheck(all_statistics, (z, keys, tau))


@pytest.mark.parametrize("seed", range(3))
def test_tiles_of_every_size_agree(seed, monkeypatch):
    results = []
    for size in (1, 4, 7, 1024):
        monkeypatch.setattr(tiles, "TILE", size)
        contrast, leaves = catalogue.contrast_of("bank", seed)
        stats = fn.negative_stats(
            contrast, torch.tensor(0.1), catalogue.rules(contrast)["either"], fn.ATTRACT, backend="tiled"
        )
        results.append(values_and_gradients(stats.log_sum + stats.attracted_sim, leaves[:2]))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-12, atol=1e-12)


def test_bfloat16_is_multiplied_as_given_and_accumulated_in_float32(backend):
    """Against float64 products of the same rounded rows: only float32 accumulation is allowed for (2e-6 relative)."""
    low, _ = catalogue.contrast_of("batch", dtype=torch.bfloat16)
    z = low.anchors.z.detach().double()
    anchors = fn.Embedded(z, low.anchors.sample)
    exact = fn.Contrast("views", anchors, anchors, low.positives.double())
    tau = torch.tensor(0.05)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = fn.negative_stats(low, tau, fn.NoPairs(), fn.IGNORE, backend=backend)
    expected = fn.negative_stats(exact, tau, fn.NoPairs(), fn.IGNORE, backend="dense")
    assert got.log_sum.dtype == torch.float32
    torch.testing.assert_close(got.log_sum.double(), expected.log_sum, rtol=2e-6, atol=2e-6)


def test_under_autocast_a_loss_and_its_gradient_stay_in_float32(backend):
    contrast, (z, _, _) = catalogue.contrast_of("batch", dtype=torch.float32)
    results = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            stats = fn.negative_stats(
                contrast, torch.tensor(0.1), catalogue.rules(contrast)["groups"], fn.ATTRACT, backend=backend
            )
            total = (stats.log_sum + stats.attracted_sim + stats.over_attracted(stats.log_sum)).sum()
        results.append([total, *torch.autograd.grad(total, z, retain_graph=True)])
    assert all(map(torch.equal, *results))


def test_bfloat16_gradients_come_back_in_bfloat16(backend):
    """Rounding the finished gradient to 8 bits is all that bfloat16 may cost: 1/256 relative."""
    low, (z, _, _) = catalogue.contrast_of("batch", dtype=torch.bfloat16)
    fn.negative_stats(low, torch.tensor(0.1), fn.NoPairs(), fn.IGNORE, backend=backend).log_sum.sum().backward()
    z64 = z.detach().double().requires_grad_()
    anchors = fn.Embedded(z64, low.anchors.sample)
    exact = fn.Contrast("views", anchors, anchors, low.positives.double())
    fn.negative_stats(exact, torch.tensor(0.1), fn.NoPairs(), fn.IGNORE, backend="dense").log_sum.sum().backward()
    assert z.grad.dtype == torch.bfloat16
    # Autograd adds the two roles of a row (anchor, candidate) in bfloat16: two roundings.
    torch.testing.assert_close(z.grad.double(), z64.grad, rtol=2 / 256, atol=2 / 256 * float(z64.grad.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_counts_and_the_loss_share_the_product_of_a_single_tile(dtype):
    class Products(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            counted.append(function._schema.name == "aten::mm")
            return function(*args, **(kwargs or {}))

    gradients = []
    for counts in (False, True):
        contrast, (z, _, _) = catalogue.contrast_of("batch", dtype=dtype)
        counted = []
        with Products():
            if counts:
                scan.count_above(contrast, torch.tensor(0.2))
            stats = fn.negative_stats(contrast, torch.tensor(0.1), fn.NoPairs(), fn.IGNORE, backend="tiled")
            stats.log_sum.sum().backward()
        gradients.append(z.grad)
        assert sum(counted) == 1
    assert torch.equal(*gradients)


def test_auto_is_dense_for_few_pairs_and_tiled_for_many():
    small, _ = catalogue.contrast_of("batch")
    assert type(fn.negative_stats(small, torch.tensor(1.0), fn.NoPairs(), fn.IGNORE).sweep).__name__ == "DenseSweep"
    z = catalogue.unit(1100, 2, seed=0)
    anchors = fn.Embedded(z, torch.arange(1100))
    large = fn.Contrast("views", anchors, anchors, z[:, :1])
    assert type(fn.negative_stats(large, torch.tensor(1.0), fn.NoPairs(), fn.IGNORE).sweep).__name__ == "TiledSweep"


def test_unknown_backend_is_refused():
    contrast, _ = catalogue.contrast_of("batch")
    with pytest.raises(ValueError, match="choose 'auto', 'dense' or 'tiled'"):
        fn.negative_stats(contrast, torch.tensor(1.0), fn.NoPairs(), fn.IGNORE, backend="fast")


def test_very_low_temperature_in_float32(backend):
    """Trap 1: at tau .02 the flagged terms are the largest of the row; taking them from a finished sum leaves -inf."""
    z = catalogue.unit(4, 8, seed=3, dtype=torch.float32)
    near = torch.nn.functional.normalize(z[:1] + 0.01 * z[1:2], dim=-1)
    candidates = fn.Embedded(torch.cat([near, z[1:]]), torch.arange(10, 14))
    contrast = fn.Contrast("views", fn.Embedded(z[:1], torch.tensor([0])), candidates, z[:1, :1])
    rule = fn.AboveThreshold(torch.tensor(0.9))
    stats = fn.negative_stats(contrast, torch.tensor(0.02), rule, fn.ELIMINATE, backend=backend)
    expected = math.log(sum(math.exp(float(z[0].double() @ z[j].double()) / 0.02) for j in (1, 2, 3)))
    assert int(stats.flagged) == 1
    assert float(stats.log_sum) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("tau", [0.02, 0.01])
def test_a_pair_that_outweighs_its_row_leaves_nothing_where_several_rules_drop_it(tau):
    """In float32, at tau .02: what one rule keeps and another drops is e^100 times the rest of its row.

    At .01 no shift suits both rules.
    """
    z = catalogue.unit(3, 8, seed=3)
    near = torch.nn.functional.normalize(z[:1] + 0.01 * z[1:2], dim=-1)
    rows = torch.cat([z[:1], near, -z[:1] + 0.3 * z[1:2], -z[:1] + 0.3 * z[2:3]])
    rules = [fn.AboveThreshold(torch.tensor(threshold)) for threshold in (0.9, 0.8, 2.0)]
    results = []
    for dtype, backend in ((torch.float32, "tiled"), (torch.float64, "dense")):
        leaf = torch.nn.functional.normalize(rows, dim=-1).to(dtype).requires_grad_()
        anchors = fn.Embedded(leaf, torch.arange(4))
        contrast = fn.Contrast("views", anchors, anchors, leaf[:, :1])
        for drops in (rules[:2], rules):
            levels = stats_of_levels(contrast, torch.tensor(tau), drops, fn.ELIMINATE, backend)
            logs = torch.stack([stats.log_sum for stats in levels])
            results.append([logs, *torch.autograd.grad(logs[:2].sum(), leaf)])
    for got, expected in zip(results[:2], results[2:], strict=True):
        for ours, exact in zip(got, expected, strict=True):
            torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rules", [1, 2])
@pytest.mark.parametrize("tau", [0.002, 0.01, 0.05])
def test_rows_far_below_the_others_at_cold_temperatures(tau, rules):
    """Sums that would be 0 or infinite in float32 are right: some rows' best cosine is -0.6, others' is 1."""
    far = torch.nn.functional.normalize(torch.tensor([[-1.0, 0.75], [-1.0, 0.76]]), dim=1)
    near = torch.tensor([[1.0, 0.0]]).repeat(300, 1)
    candidates = fn.Embedded(near, torch.arange(10, 310))
    anchors = fn.Embedded(torch.cat([far, near[:2]]), torch.arange(4))
    results = []
    for dtype, backend in ((torch.float32, "tiled"), (torch.float64, "dense")):
        z = anchors.z.to(dtype).requires_grad_()
        contrast = fn.Contrast(
            "views",
            fn.Embedded(z, anchors.sample),
            fn.Embedded(candidates.z.to(dtype), candidates.sample),
            z[:, :1],
        )
        flagged = [fn.NoPairs(), fn.AboveThreshold(torch.tensor(0.9))][:rules]
        levels = stats_of_levels(contrast, torch.tensor(tau), flagged, fn.Strategy(0, 0.5), backend)
        results.append(values_and_gradients(torch.cat([stats.log_sum for stats in levels]), [z]))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)


SECOND = {
    "a constant gradient comes in": lambda stats: stats.log_sum.sum(),
    "a gradient that depends on the rows comes in": lambda stats: (stats.log_sum**2).sum(),
    "cosines of attracted pairs": lambda stats: stats.attracted_sim.sum(),
    "another scale": lambda stats: stats.log_sum_at(2.0).sum(),
    "over attracted": lambda stats: stats.over_attracted(torch.zeros(len(stats.count), dtype=torch.float64)).sum(),
}


@pytest.mark.parametrize("form", SECOND)
@pytest.mark.parametrize("kind", KINDS)
def test_second_derivatives_without_the_matrix_are_refused(kind, form):
    """Also where what comes in is a constant, for which `once_differentiable` takes the first gradient."""
    contrast, leaves = catalogue.contrast_of(kind)
    rule = fn.AboveThreshold(torch.tensor(0.1, dtype=torch.float64))
    stats = fn.negative_stats(contrast, torch.tensor(0.3), rule, fn.ATTRACT, "tiled")
    total = SECOND[form](stats)
    with pytest.raises(fn.UserError, match=r"second derivatives.*backend='dense'"):
        torch.autograd.grad(total, leaves[0], create_graph=True)


def test_second_derivatives_of_a_criterion():
    """Of few pairs by the matrix of all, where differences confirm them; of more they are refused, for any objective."""
    draw = torch.Generator().manual_seed(4)
    few = [torch.randn(4, 3, dtype=torch.float64, generator=draw).requires_grad_() for _ in range(2)]
    for objective in (fn.InfoNCE(), fn.Decoupled()):
        assert torch.autograd.gradgradcheck(fn.ContrastiveLoss(objective=objective, temperature=0.5), few)
        many = [torch.randn(150, 3, generator=draw).requires_grad_() for _ in range(2)]
        with pytest.raises(fn.UserError, match="second derivatives.*65,536 pairs"):
            torch.autograd.grad(fn.ContrastiveLoss(objective=objective)(*many), many, create_graph=True)


def test_a_rule_from_pairs_in_any_order():
    flagged = torch.rand(5, 7, generator=torch.Generator().manual_seed(2)) < 0.4
    flagged[0] = flagged[3] = flagged[4] = False  # anchors without pairs: the first, one between, the last
    pairs = flagged.nonzero()
    mixed = pairs[torch.randperm(len(pairs), generator=torch.Generator().manual_seed(3))]
    listed = fn.Listed.from_pairs(mixed[:, 0], mixed[:, 1], 5)
    assert listed.offsets.tolist() == [0, 0, *flagged[1:].sum(1).cumsum(0).tolist()]
    assert torch.equal(listed.columns, pairs[:, 1])
    assert torch.equal(listed.tile(slice(0, 5), slice(0, 7), torch.zeros(5, 7)), flagged)
    none = fn.Listed.from_pairs(mixed[:0, 0], mixed[:0, 1], 5)
    assert not none.tile(slice(1, 5), slice(2, 7), torch.zeros(4, 5)).any()
