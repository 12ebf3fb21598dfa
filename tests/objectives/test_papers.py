"""The published losses, each against the loop of its own equation, in value and gradient."""

import pytest
import torch
from reference import loops
from torch.nn.functional import normalize

import falseneg as fn

TAU = 0.2


@pytest.fixture
def batch():
    """A SimCLR contrast of 6 images x 2 views with random flags, and the leaf it depends on."""
    raw = torch.randn(12, 5, dtype=torch.float64, requires_grad=True)
    z = normalize(raw, dim=-1)
    anchors = fn.Embedded(z, torch.arange(6).repeat_interleave(2))
    other = torch.arange(12) ^ 1
    contrast = fn.Contrast("views", anchors, anchors, (z * z[other]).sum(1, keepdim=True))
    flagged = torch.rand(12, 12, generator=torch.Generator().manual_seed(4)) < 0.3
    return raw, contrast, flagged


def listed(flagged):
    return fn.Listed.from_pairs(*flagged.nonzero().unbind(1), len(flagged))


def by_paper(contrast, flagged, equation):
    z, sample = contrast.anchors.z, contrast.anchors.sample.tolist()
    losses = []
    for i in range(len(z)):
        columns = loops.negatives_of(i, sample, sample)
        s_neg = [loops.similarity(z[i], z[j]) for j in columns]
        losses.append(equation(contrast.positives[i, 0], s_neg, [bool(flagged[i, j]) for j in columns], TAU))
    return torch.stack(losses)


def assert_same(batch, objective, strategy, equation, rule=None):
    raw, contrast, flagged = batch
    tau = torch.tensor(TAU, dtype=torch.float64)
    for backend in ("dense", "tiled"):
        stats = fn.negative_stats(contrast, tau, rule or listed(flagged), strategy, backend=backend)
        got = objective(contrast, stats, tau, strategy)
        expected = by_paper(contrast, flagged, equation)
        torch.testing.assert_close(got, expected, rtol=1e-11, atol=0)
        gradients = [torch.autograd.grad(losses.mean(), raw, retain_graph=True)[0] for losses in (got, expected)]
        torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-13)


def test_simclr_equation_1(batch):
    def equation(s_pos, s_neg, flagged, tau):
        return loops.simclr(s_pos, s_neg, tau)

    assert_same(batch, fn.InfoNCE(), fn.ELIMINATE, equation, rule=fn.NoPairs())


def test_fnc_elimination_equation_2(batch):
    assert_same(batch, fn.InfoNCE(), fn.ELIMINATE, loops.fnc_eliminate)


def test_fnc_attraction_equation_3(batch):
    assert_same(batch, fn.InfoNCE(), fn.ATTRACT, loops.fnc_attract)


def test_ifnd_attraction(batch):
    assert_same(batch, fn.OwnDenominators(), fn.ATTRACT_OUTSIDE, loops.ifnd_attract)


def test_glofnd_renormalised_simclr(batch):
    assert_same(batch, fn.InfoNCE(), fn.ELIMINATE.renormalised(), loops.glofnd_simclr)


def test_supcon_is_the_oracle_with_attraction(batch):
    """SupCon knows every view of every image of the class as a positive; all but self stay in the denominator."""
    _, contrast, _ = batch
    labels = torch.tensor([0, 1, 0, 2, 1, 0])
    oracle, tau = fn.Oracle(labels), torch.tensor(TAU, dtype=torch.float64)
    stats = fn.negative_stats(contrast, tau, oracle.flag(contrast, fn.Clock(0, 1, 1)), fn.ATTRACT)
    got = fn.InfoNCE()(contrast, stats, tau, fn.ATTRACT)
    z, of_row = contrast.anchors.z, labels.repeat_interleave(2)
    for i in range(12):
        same = [loops.similarity(z[i], z[j]) for j in range(12) if j != i and of_row[j] == of_row[i]]
        other = [loops.similarity(z[i], z[j]) for j in range(12) if of_row[j] != of_row[i]]
        torch.testing.assert_close(got[i], loops.supcon_out(same, other, TAU), rtol=1e-11, atol=0)


def test_wrong_forms_are_told_apart(batch):
    """The checks above can fail: each paper's form differs from its neighbours."""
    for strategy, equation in [(fn.ATTRACT_OUTSIDE, loops.fnc_attract), (fn.ELIMINATE, loops.glofnd_simclr)]:
        with pytest.raises(AssertionError):
            assert_same(batch, fn.InfoNCE(), strategy, equation)


@pytest.mark.parametrize("objective", [fn.InfoNCE(), fn.OwnDenominators(), fn.Decoupled()])
@pytest.mark.parametrize("strategy", [fn.ELIMINATE, fn.ELIMINATE.renormalised(), fn.ATTRACT_OUTSIDE])
@pytest.mark.parametrize("backend", ["dense", "tiled"])
def test_an_anchor_may_lose_all_its_negatives(batch, objective, strategy, backend):
    """Trap 3: InfoNCE keeps the positives in the denominator, decoupled only the attraction; no NaN reaches anything."""
    raw, contrast, _ = batch
    tau = torch.tensor(TAU, dtype=torch.float64, requires_grad=True)
    everything = fn.AboveThreshold(torch.tensor(-2.0))
    stats = fn.negative_stats(contrast, tau, everything, strategy, backend=backend)
    assert (stats.log_sum == -torch.inf).all()
    losses = objective(contrast, stats, tau, strategy)
    if strategy.positive == 0:
        alone = -contrast.positives[:, 0] / tau if isinstance(objective, fn.Decoupled) else torch.zeros(12).double()
        torch.testing.assert_close(losses, alone, rtol=1e-12, atol=1e-12)
    losses.mean().backward()
    assert torch.isfinite(raw.grad).all() and torch.isfinite(tau.grad)
