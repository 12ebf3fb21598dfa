import catalogue
import pytest
import torch
from reference import loops
from torch.nn.functional import normalize

import falseneg as fn


def test_contrastive_loss_is_simclr_on_rows_of_any_length():
    z0, z1 = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    rows = normalize(torch.stack([z0, z1], 1).flatten(0, 1), dim=1)
    expected = []
    for i in range(10):
        negatives = [loops.similarity(rows[i], rows[j]) for j in range(10) if j // 2 != i // 2]
        expected.append(loops.simclr(loops.similarity(rows[i], rows[i ^ 1]), negatives, 0.5))
    torch.testing.assert_close(fn.ContrastiveLoss(temperature=0.5)(z0, z1), torch.stack(expected).mean())


def test_repetitions_of_a_sample_are_no_negatives():
    z0, z1 = torch.randn(3, 4), torch.randn(3, 4)
    twice = [torch.cat([z, z[:1]]) for z in (z0, z1)]
    loss = fn.ContrastiveLoss()
    told, untold = loss(*twice, sample=torch.tensor([0, 1, 2, 0])), loss(*twice)
    assert told < untold


def test_support_views_and_attraction():
    views = [torch.randn(6, 4, requires_grad=True) for _ in range(2)]
    support = [torch.randn(6, 4, requires_grad=True) for _ in range(3)]
    loss = fn.ContrastiveLoss(fn.SupportSet(top_k=2), fn.ATTRACT)(*views, support=support)
    loss.backward()
    assert all(torch.isfinite(view.grad).all() and view.grad.abs().sum() > 0 for view in views)
    assert all(view.grad is None for view in support)
    assert torch.equal(
        loss, fn.ContrastiveLoss(fn.SupportSet(top_k=2), fn.ATTRACT)(*views, support=torch.stack(support))
    )


@pytest.mark.parametrize("detector", [fn.NoDetection(), fn.StartAt(fn.BatchQuantile(0.3), "50%")])
def test_a_strategy_costs_nothing_before_anything_is_flagged(monkeypatch, detector):
    """Attraction with own denominators takes a sweep of its own; without flags the loss is the plain one, bit for bit."""
    sweeps, over_flagged = [], fn.NegativeStats.over_flagged
    monkeypatch.setattr(
        fn.NegativeStats, "over_flagged", lambda self, rest: sweeps.append(1) or over_flagged(self, rest)
    )
    views = [torch.randn(6, 4, generator=torch.Generator().manual_seed(view)) for view in range(2)]
    criterion = fn.ContrastiveLoss(detector, fn.ATTRACT_OUTSIDE.renormalised(), fn.OwnDenominators())
    plain = fn.ContrastiveLoss(None, fn.IGNORE, fn.OwnDenominators())
    assert torch.equal(criterion(*views), plain(*views)) and not sweeps
    criterion(*views, clock=fn.Clock(1, 1, 2))
    assert bool(sweeps) == isinstance(detector, fn.StartAt)


def test_levels_of_a_detector_are_averaged():
    class Levels(fn.Detector):
        def flag(self, contrast, clock):
            return fn.AboveThreshold(torch.tensor(0.2)), fn.NoPairs()

    views = [torch.randn(6, 4) for _ in range(2)]
    first, second = (fn.ContrastiveLoss(detector)(*views) for detector in (fn.FixedThreshold(0.2), fn.NoDetection()))
    assert not torch.isclose(first, second)
    torch.testing.assert_close(fn.ContrastiveLoss(Levels())(*views), (first + second) / 2)


def test_learned_temperature_is_a_parameter_of_the_criterion():
    loss = fn.ContrastiveLoss(temperature=fn.LearnedTemperature(0.1))
    loss(torch.randn(4, 3), torch.randn(4, 3)).backward()
    assert [name for name, p in loss.named_parameters() if p.grad is not None] == ["criterion.temperature.log_tau"]


def test_bad_views():
    loss = fn.ContrastiveLoss()
    for views in [(torch.randn(4, 3),), (torch.randn(4, 3), torch.randn(5, 3))]:
        with pytest.raises(fn.UserError, match="give two or more of one shape"):
            loss(*views)


def test_state_for_each_image_in_a_loop_of_ones_own():
    """GloFND on SogCLR as a drop-in: learns from call to call, and the state dict takes all of it along."""

    def make():
        return fn.ContrastiveLoss(fn.GlobalThreshold(), objective=fn.GlobalContrastive(), images=30, classes=4)

    def views(seed):
        return [catalogue.unit(8, 6, seed=seed + view, dtype=torch.float32) for view in range(2)]

    criterion, sample = make(), torch.arange(12, 20)
    for seed in (0, 10):
        criterion(*views(seed), sample=sample)
    held = criterion.criterion.detector.per_sample()["threshold"]
    assert held[12:20].isfinite().all() and held[:12].isnan().all() and held[20:].isnan().all()
    again = make()
    again.load_state_dict(criterion.state_dict())
    torch.testing.assert_close(again(*views(20), sample=sample), criterion(*views(20), sample=sample))
    with pytest.raises(fn.UserError, match="give sample"):
        criterion(*views(0))
    with pytest.raises(fn.UserError, match="sample holds 37, but a data set of 30 images"):
        criterion(*views(0), sample=sample + 18)
    with pytest.raises(fn.UserError, match="sample holds -1, but"):
        criterion(*views(0), sample=sample - 13)
    with pytest.raises(fn.UserError, match="give images, too"):
        fn.ContrastiveLoss(fn.GlobalThreshold(), classes=4)
