"""The fused backend against plain loops and the dense backend in float64.

test_fused.py runs this file in a process of its own, with TRITON_INTERPRET=1, which must be set before Triton is imported.
On a machine with a GPU, where it is not set, the kernels run on the GPU.
"""

import os
from dataclasses import replace

import catalogue
import pytest
import torch
from reference import loops
from torch.nn.functional import normalize

import falseneg as fn
from falseneg.statistics import fused
from falseneg.statistics.dense import DenseSweep
from falseneg.statistics.fused import FusedSweep
from falseneg.statistics.tiled import TiledSweep

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
RULES = ("none", "above", "groups", "everything")
EPSILON = 2.0**-23


@pytest.fixture(autouse=INTERPRETED)
def _products_of_bfloat16(monkeypatch):
    """Triton's interpreter holds bfloat16 as the integers of its bits, and multiplies these; here as what they stand for."""
    import numpy as np
    from triton.language import bfloat16
    from triton.runtime import interpreter

    def dot(self, a, b, total, *_):
        a, b = (
            (x.data.astype(np.uint32) << 16).view(np.float32) if x.dtype.scalar == bfloat16 else x.data for x in (a, b)
        )
        return interpreter.TensorHandle(np.matmul(a, b, dtype=np.float32) + total.data, total.dtype.scalar)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", dot)


def case(n, m, dims, seed=0, dtype=torch.float32):
    """Leaf rows of n anchors and m candidates (None: the anchors themselves), temperatures, and the contrast of them."""
    draw = torch.Generator().manual_seed(seed)

    def rows(count):
        return normalize(torch.randn(count, dims, generator=draw), dim=1).to(DEVICE, dtype).requires_grad_()

    z, bank = rows(n), None if m is None else rows(m)
    tau = torch.linspace(0.1, 0.5, n, device=DEVICE).requires_grad_()
    return z, bank, tau


def contrast_of(z, bank, part=None):
    """Two views of each sample; some candidates show a sample of the anchors, or nobody's."""
    anchors = fn.Embedded(z, torch.arange(len(z), device=DEVICE) // 2 - 1)
    candidates = anchors
    if bank is not None:
        candidates = fn.Embedded(bank, torch.arange(len(bank), device=DEVICE) * 7 % (len(z) + 9) - 1)
    parts = {"middle": slice(len(candidates) // 5, len(candidates) - 3)}
    return fn.Contrast("views", anchors, candidates, z[:, :1], parts=parts, denominator=part)


def rule_of(name, n, m):
    draw = torch.Generator().manual_seed(5)
    threshold = (torch.rand(n, generator=draw) * 0.4 - 0.2).to(DEVICE)
    groups = [torch.randint(-1, 4, (count, 2), generator=draw).to(DEVICE) for count in (n, m)]
    return {
        "none": fn.NoPairs(),
        "above": fn.AboveThreshold(threshold),
        "above-in-double": fn.AboveThreshold(threshold.double()),
        "groups": fn.SameGroup(*groups),
        "everything": fn.AboveThreshold(torch.tensor(-2.0)),
    }[name]


def totals_and_gradients(form, leaves, part, rule, strategy, scale=1.0):
    """All five totals, and the gradients of a weighted sum of the first two."""
    z, bank, tau = leaves
    totals = totals_of(form, contrast_of(z, bank, part), tau, rule, strategy, scale)
    return [*totals, *gradients(totals[0], totals[1], leaves)]


def totals_of(form, contrast, tau, rule, strategy, scale=1.0):
    return [number[0] for number in form(contrast, tau, strategy).totals([rule], scale, True)]


def gradients(log_sum, flagged_sim, leaves):
    weights = torch.linspace(0.5, 1.5, len(log_sum), dtype=log_sum.dtype, device=log_sum.device)
    loss = (weights * (log_sum.masked_fill(log_sum == -torch.inf, 0) + 0.1 * flagged_sim)).sum()
    return torch.autograd.grad(loss, [leaf for leaf in leaves if leaf is not None], allow_unused=True)


def in_double(leaves):
    return [None if leaf is None else leaf.detach().double().requires_grad_() for leaf in leaves]


def assert_same(got, expected, rounding=EPSILON):
    """As exact as sums of float32 numbers of about the size of the largest can be."""
    for ours, theirs in zip(got, expected, strict=True):
        if ours is None or not ours.is_floating_point():
            assert (ours is None and theirs is None) or torch.equal(ours, theirs.to(ours.dtype))
            continue
        theirs = torch.zeros_like(ours) if theirs is None else theirs
        finite = theirs.isfinite()
        largest = float(theirs[finite].detach().abs().max()) if finite.any() else 0.0
        torch.testing.assert_close(ours.double(), theirs.double(), rtol=0, atol=32 * rounding * (largest + 1e-30))


def by_loop(contrast, tau, rule, strategy):
    """The five totals pair by pair, in float64."""
    anchors, candidates = contrast.anchors, contrast.candidates
    inside = contrast.columns(contrast.denominator)
    flags = rule.tile(slice(0, len(anchors)), slice(0, len(candidates)), (anchors.z @ candidates.z.T).detach())
    rows = []
    for i in range(len(anchors)):
        mass, flagged_sim, count, flagged, both = 0 * tau[i], 0 * tau[i], 0, 0, 0
        for j in loops.negatives_of(i, anchors.sample.tolist(), candidates.sample.tolist()):
            s = loops.similarity(anchors.z[i], candidates.z[j])
            pushed = inside.start <= j < inside.stop
            weight = strategy.negative if flags[i, j] else 1
            if pushed and weight:
                mass = mass + weight * (s / tau[i]).exp()
            if flags[i, j]:
                flagged_sim = flagged_sim + s
            count, flagged = count + pushed, flagged + int(flags[i, j])
            both += pushed and int(flags[i, j])
        log_sum = mass.log() if mass > 0 else torch.full_like(mass, -torch.inf)
        rows.append((log_sum, flagged_sim, *(torch.tensor(number) for number in (count, flagged, both))))
    return [torch.stack(column) for column in zip(*rows, strict=True)]


@pytest.mark.parametrize("part", [None, "second"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", ["batch", "bank", "alone"])
def test_totals_and_their_gradients_are_those_of_the_loops(kind, rule, part):
    contrast, (z, bank, _) = catalogue.contrast_of(kind, dtype=torch.float32)
    of_anchor, of_candidate = contrast.anchors.sample, contrast.candidates.sample
    rule = catalogue.rules(contrast)[rule]
    for strategy in (fn.IGNORE, fn.ELIMINATE, fn.Strategy(0.5, 0.25)):
        results = []
        for double in (False, True):
            leaves = [None if x is None else x.detach().requires_grad_() for x in (z, bank)]
            leaves.append(torch.linspace(0.2, 0.6, len(z)).requires_grad_())
            leaves = in_double(leaves) if double else leaves
            anchors = fn.Embedded(leaves[0], of_anchor)
            candidates = anchors if bank is None else fn.Embedded(leaves[1], of_candidate)
            seen = replace(contrast, anchors=anchors, candidates=candidates, denominator=part)
            if double:
                totals = by_loop(seen, leaves[2], rule, strategy)
            else:
                totals = totals_of(FusedSweep, on_device(seen), leaves[2].to(DEVICE), on_device(rule), strategy)
                totals = [total.cpu() for total in totals]
            results.append([*totals, *gradients(totals[0], totals[1], leaves)])
        assert_same(*results)


def on_device(record):
    """A contrast or a rule with its tensors on the device, and their gradients."""
    if isinstance(record, fn.Contrast):
        anchors = on_device(record.anchors)
        candidates = anchors if record.candidates is record.anchors else on_device(record.candidates)
        return replace(record, anchors=anchors, candidates=candidates)
    fields = {name: value.to(DEVICE) for name, value in vars(record).items() if isinstance(value, torch.Tensor)}
    return replace(record, **fields) if fields else record


@pytest.mark.parametrize(
    "n,m,dims,rule,part,programs",
    [
        (70, None, 20, "above", None, 1),
        (70, None, 20, "groups", "middle", 3),
        (150, None, 128, "none", None, 512),
        (33, 200, 130, "above-in-double", "middle", 3),
        (100, 90, 16, "none", "middle", 1),
        (33, 20, 520, "above", None, 1),
        (1, 40, 5, "groups", None, 512),
    ],
)
def test_blocks_and_parts_of_every_size_agree_with_the_dense_backend(n, m, dims, rule, part, programs, monkeypatch):
    monkeypatch.setattr(fused, "PROGRAMS", programs)
    leaves = case(n, m, dims)
    seen = part, rule_of(rule, n, m or n), fn.Strategy(1, 0.25), 1.3
    got = totals_and_gradients(FusedSweep, leaves, *seen)
    assert_same(got, totals_and_gradients(DenseSweep, in_double(leaves), *seen))


@pytest.mark.parametrize("m", [None, 90])
def test_one_temperature_for_all_gets_the_sum_of_their_gradients(m):
    z, bank, _ = case(40, m, 20)
    results = []
    for form, double in ((FusedSweep, False), (DenseSweep, True)):
        leaves = z, bank, torch.tensor(0.2, device=DEVICE, requires_grad=True)
        leaves = in_double(leaves) if double else leaves
        results.append(totals_and_gradients(form, leaves, None, rule_of("above", 40, m or 40), fn.ELIMINATE))
    assert_same(*results)


@pytest.mark.parametrize("m", [None, 50])
def test_a_pair_at_the_very_threshold_is_on_one_side_forward_and_backward(m):
    """Entries are eighths, so that products are exact in any order, and many cosines equal a threshold."""
    draw = torch.Generator().manual_seed(2)
    z, bank = (
        None if count is None else torch.randint(-4, 5, (count, 18), generator=draw).div(8).to(DEVICE).requires_grad_()
        for count in (60, m)
    )
    contrast = contrast_of(z, bank)
    sim = (z @ contrast.candidates.z.T).detach()
    threshold = sim.median(dim=1).values
    negative = contrast.anchors.sample[:, None] != contrast.candidates.sample
    flagged = (sim > threshold[:, None]) & (negative | (contrast.anchors.sample == -1)[:, None])
    assert (sim == threshold[:, None]).sum() > len(z)
    tau = torch.full((len(z),), 0.5, device=DEVICE)
    totals = totals_of(FusedSweep, contrast, tau, fn.AboveThreshold(threshold), fn.ATTRACT)
    assert torch.equal(totals[3], flagged.sum(dim=1))
    totals[1].sum().backward()
    grad_anchors, grad_candidates = flagged.float() @ contrast.candidates.z, flagged.float().T @ z
    assert torch.equal(z.grad, grad_anchors + grad_candidates if bank is None else grad_anchors)
    assert bank is None or torch.equal(bank.grad, grad_candidates)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("m", [None, 120])
def test_a_last_bit_that_decides_decides_alike_forward_and_backward(m, dtype):
    """Each threshold is one of the cosines as PyTorch rounds it. The gradient of a first entry of a half counts."""
    rows = [None if count is None else case(count, None, 128, count)[0].detach() for count in (100, m)]
    for z in rows:
        if z is not None:
            z[:, 0] = 0.5
    leaves = [None if z is None else z.to(dtype).requires_grad_() for z in rows]
    contrast = contrast_of(*leaves)
    with torch.no_grad():
        sim = leaves[0].float() @ contrast.candidates.z.float().T
    rule = fn.AboveThreshold(sim[:, 90].contiguous())
    totals = totals_of(FusedSweep, contrast, torch.tensor(0.1, device=DEVICE), rule, fn.ATTRACT)
    totals[1].sum().backward()
    counted = [2 * leaf.grad[:, 0].double() for leaf in leaves if leaf is not None]
    if m is None:
        assert int(counted[0].sum()) == 2 * int(totals[3].sum())
    else:
        assert torch.equal(counted[0].long(), totals[3]) and int(counted[1].sum()) == int(totals[3].sum())


@pytest.mark.parametrize("tau", [0.002, 0.02])
def test_rows_far_below_the_others_at_cold_temperatures(tau):
    """Sums that would be 0 or infinite in float32 are right: some rows' best cosine is -0.6, others' is 1."""
    far = normalize(torch.tensor([[-1.0, 0.75], [-1.0, 0.76]]), dim=1)
    near = torch.tensor([[1.0, 0.0]]).repeat(100, 1)
    leaves = [rows.to(DEVICE).requires_grad_() for rows in (torch.cat([far, near[:4]]), near, torch.full((6,), tau))]
    seen = None, fn.AboveThreshold(torch.tensor(0.9)), fn.Strategy(0, 1e-6)
    got = totals_and_gradients(FusedSweep, leaves, *seen)
    # An exponent of 500 is rounded to 500/2^24, and so is then the sum relative to 1.
    assert_same(got, totals_and_gradients(DenseSweep, in_double(leaves), *seen), EPSILON / tau)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("m,dims", [(None, 128), (90, 100)])
def test_bfloat16_is_multiplied_as_given_and_accumulated_in_float32(m, dims, rule):
    leaves = case(70, m, dims, dtype=torch.bfloat16)
    seen = None, rule_of(rule, 70, m or 70), fn.ELIMINATE
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        got = totals_and_gradients(FusedSweep, leaves, *seen)
    expected = totals_and_gradients(DenseSweep, in_double(leaves), *seen)
    assert got[0].dtype == torch.float32
    assert_same(got[:5], expected[:5])
    *grad_rows, grad_tau = got[5:]
    assert_same([grad_tau], expected[-1:])
    # Each pair's gradient is rounded to 8 bits, then they are added up with either sign, then the sum is rounded.
    for ours, exact in zip(grad_rows, expected[5:-1], strict=True):
        assert ours.dtype == torch.bfloat16
        largest = float(exact.abs().max())
        torch.testing.assert_close(ours.double(), exact, rtol=0, atol=4 / 256 * largest)


def test_what_the_kernels_do_not_know_is_left_to_the_tiled_backend():
    contrast, _ = catalogue.contrast_of("bank", dtype=torch.float32)
    double, _ = catalogue.contrast_of("bank")
    half = on_device(replace(contrast, anchors=replace(contrast.anchors, z=contrast.anchors.z.half())))
    rules, known = catalogue.rules(contrast), {"none", "above", "groups", "one-grouping", "large-numbers", "everything"}
    tau = torch.tensor(0.2)
    for name, rule in rules.items():
        if DEVICE == "cpu":
            got, tiled = (
                fn.negative_stats(contrast, tau, rule, fn.ATTRACT, backend=backend) for backend in ("fused", "tiled")
            )
            assert type(got.sweep) is (FusedSweep if name in known else TiledSweep)
            torch.testing.assert_close(got.log_sum, tiled.log_sum, rtol=1e-5, atol=1e-5)
            rest = torch.zeros(len(contrast.anchors))
            assert torch.equal(got.over_attracted(rest), tiled.over_attracted(rest))
        partly = fn.Tiers(((rules["groups"], fn.Strategy(0, 0.5)),))
        assert type(fn.negative_stats(contrast, tau, partly, fn.ATTRACT, backend="fused").sweep) is TiledSweep
    assert not fused.knows(double, fn.NoPairs())
    stats = fn.negative_stats(half, tau.to(DEVICE), fn.NoPairs(), fn.IGNORE, backend="fused")
    assert type(stats.sweep) is FusedSweep and stats.log_sum.dtype == torch.float32


def test_several_rules_are_each_as_if_alone():
    z, bank, tau = case(40, 50, 20)
    contrast, rules = contrast_of(z, bank), [rule_of(name, 40, 50) for name in ("none", "groups", "above")]
    together = FusedSweep(contrast, tau, fn.ATTRACT).totals(rules, 1.0, True)
    for number, rule in enumerate(rules):
        alone = totals_of(FusedSweep, contrast, tau, rule, fn.ATTRACT)
        assert all(torch.equal(all_of_it[number], its) for all_of_it, its in zip(together, alone, strict=True))


def test_auto_takes_the_kernels_only_where_it_may(monkeypatch):
    from falseneg.statistics import negatives

    z, _, tau = case(260, None, 4)
    seen = contrast_of(z, None), tau, fn.NoPairs(), fn.IGNORE
    assert type(fn.negative_stats(*seen).sweep) is TiledSweep
    monkeypatch.setattr(negatives, "AUTO_MAY_FUSE", True)
    assert type(fn.negative_stats(*seen).sweep) is FusedSweep
    monkeypatch.setattr(negatives, "DENSE_PAIRS", 260**2)
    assert type(fn.negative_stats(*seen).sweep) is DenseSweep


def test_a_run_repeats_bit_for_bit_and_keeps_nothing_of_the_size_of_the_matrix():
    leaves, rule = case(100, 120, 20), rule_of("above", 100, 120)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (kept.append(x.numel()), x)[1], lambda x: x):
        first = totals_and_gradients(FusedSweep, leaves, None, rule, fn.ELIMINATE)
    again = totals_and_gradients(FusedSweep, leaves, None, rule, fn.ELIMINATE)
    assert all(map(torch.equal, first, again))
    assert sum(kept) < (100 + 120) * (20 + 3)


def test_second_derivatives_are_refused():
    z, bank, tau = case(6, None, 5)
    sweep = FusedSweep(contrast_of(z, bank), tau, fn.ELIMINATE)
    with pytest.raises(fn.UserError, match="second derivatives"):
        torch.autograd.grad(sweep.totals([fn.NoPairs()], 1.0, False)[0].sum(), z, create_graph=True)
