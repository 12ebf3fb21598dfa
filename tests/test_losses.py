import gc
import weakref

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
    sweeps, over_attracted = [], fn.NegativeStats.over_attracted
    monkeypatch.setattr(
        fn.NegativeStats, "over_attracted", lambda self, rest: sweeps.append(1) or over_attracted(self, rest)
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


VIEW = torch.randn(4, 3, generator=torch.Generator().manual_seed(7))
OTHER = VIEW.flip(0)
# What is given beside or in the place of two (4, 3) views, and what the sentence must hold.
REFUSED = {
    "no views": ((), {}, "views of nothing"),
    "one view": ((VIEW,), {}, r"views of \(4, 3\) float32 on cpu; give two or more"),
    "other images": ((VIEW, VIEW[:3]), {}, r"\(4, 3\) float32 on cpu, \(3, 3\) float32 on cpu; give two or more"),
    "other dimensions": ((VIEW, VIEW[:, :2]), {}, r"\(4, 2\)"),
    "flat": ((VIEW[0], OTHER[0]), {}, r"\(3,\) float32"),
    "a number": ((VIEW[0, 0], OTHER[0, 0]), {}, r"\(\) float32"),
    "a grid": ((VIEW[None], OTHER[None]), {}, r"\(1, 4, 3\)"),
    "whole numbers": ((VIEW.long(), OTHER.long()), {}, "int64"),
    "truths": ((VIEW > 0, OTHER > 0), {}, "bool"),
    "complex": ((VIEW + 0j, OTHER + 0j), {}, "complex64"),
    "two types": ((VIEW, OTHER.double()), {}, "one floating-point type"),
    "two devices": ((VIEW, OTHER.to("meta")), {}, "on meta.*one device"),
    "no images": ((VIEW[:0], OTHER[:0]), {}, r"\(0, 3\).*empty"),
    "no dimensions": ((VIEW[:, :0], OTHER[:, :0]), {}, r"\(4, 0\).*empty"),
    "one image": ((VIEW[:1], OTHER[:1]), {}, "single image.*at least 2 images"),
    "lists": ((VIEW.tolist(), OTHER.tolist()), {}, "views of list, list"),
    "support of other images": ((VIEW, OTHER), {"support": [VIEW, VIEW[:2]]}, r"support views of .*\(2, 3\)"),
    "support of other dimensions": ((VIEW, OTHER), {"support": torch.randn(2, 4, 5)}, r"\(4, 5\)"),
    "a flat support": ((VIEW, OTHER), {"support": VIEW}, r"support views of \(3,\)"),
    "a number as support": ((VIEW, OTHER), {"support": VIEW[0, 0]}, r"support views of \(\)"),
    "no support": ((VIEW, OTHER), {"support": []}, "support views of nothing"),
    "no support in a tensor": ((VIEW, OTHER), {"support": VIEW[None][:0]}, "support views of nothing"),
    "whole support": ((VIEW, OTHER), {"support": [VIEW.long()]}, "int64"),
    "support of two types": ((VIEW, OTHER), {"support": [VIEW, VIEW.double()]}, "float64"),
    "support elsewhere": ((VIEW, OTHER), {"support": [VIEW.to("meta")]}, "on meta"),
    "support of lists": ((VIEW, OTHER), {"support": [VIEW.tolist()]}, "support views of list"),
    "a short sample": ((VIEW, OTHER), {"sample": torch.arange(3)}, r"\(3,\) int64 on cpu; give 4 whole numbers"),
    "a long sample": ((VIEW, OTHER), {"sample": torch.arange(5)}, r"\(5,\) int64"),
    "a sample for each view": ((VIEW, OTHER), {"sample": torch.zeros(4, 2).long()}, r"\(4, 2\) int64"),
    "no sample": ((VIEW, OTHER), {"sample": torch.arange(0)}, r"\(0,\) int64"),
    "one number": ((VIEW, OTHER), {"sample": torch.tensor(3)}, r"\(\) int64"),
    "parts": ((VIEW, OTHER), {"sample": torch.arange(4.0)}, "float32"),
    "a truth for each": ((VIEW, OTHER), {"sample": torch.ones(4).bool()}, "bool"),
    "sample elsewhere": ((VIEW, OTHER), {"sample": torch.arange(4, device="meta")}, "on meta"),
    "a list of numbers": ((VIEW, OTHER), {"sample": [0, 1, 2, 3]}, "sample of list"),
}


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_compared_is_refused_in_one_sentence(case, kept):
    """Whether something is kept for each image or not."""
    views, further, words = REFUSED[case]
    criterion = fn.ContrastiveLoss(fn.SupportSet(top_k=1) if "support" in further else None, images=9 if kept else None)
    further = {"sample": torch.arange(4), **further} if kept else further
    with pytest.raises(fn.UserError, match=words) as error:
        criterion(*views, **further)
    assert str(error.value).startswith("ContrastiveLoss: got ") and "\n" not in str(error.value)


def test_whole_numbers_of_any_type_say_which_image_it_is():
    sample = torch.tensor([0, 1, 2, 0])
    expected = fn.ContrastiveLoss()(VIEW, OTHER, sample=sample)
    for kind in (torch.int8, torch.uint8, torch.int32):
        assert torch.equal(fn.ContrastiveLoss()(VIEW, OTHER, sample=sample.to(kind)), expected)


def test_support_views_may_be_of_a_narrower_type():
    criterion = fn.ContrastiveLoss(fn.SupportSet(top_k=1))
    assert criterion(VIEW, OTHER, support=[VIEW.bfloat16()]).isfinite()
    assert criterion(VIEW.double(), OTHER.double(), support=[VIEW]).isfinite()


@pytest.mark.parametrize("rows", [4, 300])
@pytest.mark.parametrize("detector", [fn.NoDetection(), fn.FixedThreshold(0.5), fn.BatchQuantile(0.3)])
def test_an_image_that_is_nobody_is_not_its_own_negative(rows, detector):
    """With the matrix of all pairs, and without it."""
    views = [torch.randn(rows, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
    criterion = fn.ContrastiveLoss(detector)
    expected = criterion(*views)
    assert torch.equal(criterion(*views, sample=torch.full((rows,), -1)), expected)
    some = torch.arange(rows)
    some[1::2] = -1
    assert torch.equal(criterion(*views, sample=some), expected)


@pytest.mark.parametrize("support", [None, [VIEW]])
@pytest.mark.parametrize("place", ["first", "last"])
def test_a_number_that_is_none_comes_out_as_none(support, place):
    """In any row, also where it is a flagged pair's: no finite loss hides it."""
    for rows in (4, 300):
        views = [torch.randn(rows, 3, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
        views[0][0 if place == "first" else -1, 1] = torch.nan
        detector = fn.FixedThreshold(0.5) if support is None else fn.SupportSet(top_k=2)
        further = None if support is None else [views[1]]
        assert fn.ContrastiveLoss(detector)(*views, support=further).isnan()


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
    with pytest.raises(fn.UserError, match="give images as well"):
        fn.ContrastiveLoss(fn.GlobalThreshold(), classes=4)


@pytest.mark.parametrize("name", fn.STRATEGIES)
def test_a_strategy_by_its_name(name):
    views = [torch.randn(6, 4) for _ in range(2)]
    by_name, given = (fn.ContrastiveLoss(fn.FixedThreshold(0.2), strategy=s) for s in (name, fn.STRATEGIES[name]))
    assert torch.equal(by_name(*views), given(*views))
    renormalised = fn.ContrastiveLoss(fn.FixedThreshold(0.2), strategy=f"{name}-renormalised")
    assert renormalised.criterion.strategy == fn.STRATEGIES[name].renormalised()


def test_a_name_of_no_strategy_is_refused():
    with pytest.raises(fn.UserError, match="strategy is 'elimnate'; give one of ignore, eliminate, attract"):
        fn.ContrastiveLoss(strategy="elimnate")
    with pytest.raises(fn.UserError, match="strategy is None"):
        fn.Criterion(strategy=None)


def listed(views, flags):
    """The flagged pairs of images, and their cosines, of normalised views by a rule on (anchor, candidate) cosines."""
    z = normalize(torch.stack(views, 1).flatten(0, 1), dim=1)
    image = torch.arange(len(views[0])).repeat_interleave(len(views))
    found, negatives = [], 0
    for i in range(len(z)):
        negative = [j for j in range(len(z)) if image[j] != image[i]]
        negatives += len(negative)
        found += [(int(image[i]), int(image[j]), float(z[i] @ z[j])) for j in negative if flags(i, j, z)]
    return found, negatives


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("rows", [6, 200])
def test_what_was_flagged_can_be_looked_at_after_each_call(rows, count):
    """Whether the matrix of all pairs was stored or not."""
    criterion = fn.ContrastiveLoss(fn.FixedThreshold(0.2))
    with pytest.raises(fn.UserError, match="call the criterion first"):
        _ = criterion.flagged
    for seed in range(2):
        views = [torch.randn(rows, 4, generator=torch.Generator().manual_seed(10 * seed + v)) for v in range(count)]
        criterion(*(view.clone().requires_grad_() for view in views)).backward()
        expected, negatives = listed(views, lambda i, j, z: float(z[i] @ z[j]) > 0.2)
        assert criterion.flagged.share == pytest.approx(len(expected) / negatives)
        pairs = criterion.flagged.pairs()
        assert list(zip(pairs.anchor.tolist(), pairs.candidate.tolist(), strict=True)) == [e[:2] for e in expected]
        assert pairs.cosine.tolist() == pytest.approx([e[2] for e in expected], abs=1e-6)
        assert not pairs.cosine.requires_grad
        few = criterion.flagged.pairs(limit=5)
        assert few.anchor.tolist() == pairs.anchor[:5].tolist()


def test_the_flags_of_a_support_set_and_of_levels():
    class Levels(fn.Detector):
        def flag(self, contrast, clock):
            return fn.AboveThreshold(torch.tensor(0.2)), fn.AboveThreshold(torch.tensor(0.6)), fn.NoPairs()

    views = [torch.randn(6, 4) for _ in range(2)]
    criterion = fn.ContrastiveLoss(fn.SupportSet(top_k=3), fn.ATTRACT)
    criterion(*views, support=[torch.randn(6, 4)])
    assert criterion.flagged.share == pytest.approx(3 / 10) and len(criterion.flagged.pairs().anchor) == 3 * 12
    criterion = fn.ContrastiveLoss(Levels())
    criterion(*views)
    above = [len(listed(views, lambda i, j, z, t=t: float(z[i] @ z[j]) > t)[0]) for t in (0.2, 0.6)]
    assert above[0] > above[1] > 0
    assert criterion.flagged.share == pytest.approx(sum(above) / (3 * 120))
    assert len(criterion.flagged.pairs().anchor) == above[0]
    criterion = fn.ContrastiveLoss()
    criterion(*views)
    assert criterion.flagged.share == 0 and len(criterion.flagged.pairs().anchor) == 0


class _Traced(torch.autograd.Function):
    """The identity, whose part of the graph can be seen to live."""

    @staticmethod
    def forward(ctx, x, graphs):
        graphs.add(ctx)
        return x.clone()

    @staticmethod
    def backward(ctx, of_x):
        return of_x, None


def test_flags_that_nobody_asks_for_cost_nothing_and_keep_no_graph(monkeypatch):
    monkeypatch.setattr("falseneg.flagged.flagged_pairs", lambda *_: pytest.fail("a sweep that nobody asked for"))
    criterion, graphs = fn.ContrastiveLoss(fn.FixedThreshold(0.2)), weakref.WeakSet()
    criterion(*(_Traced.apply(torch.randn(6, 4, requires_grad=True), graphs) for _ in range(2)))
    gc.collect()
    assert not graphs
    assert 0 < criterion.flagged.share < 1


SUPPORT = [torch.randn(4, 3, generator=torch.Generator().manual_seed(8))]


@pytest.mark.parametrize("strategy", ["eliminate", "attract"])
@pytest.mark.parametrize(
    ("detector", "words"),
    [
        (lambda: fn.SupportSet(top_k=6), "top_k is 6, which flags all 6 negatives.*smaller top_k.*drop_last"),
        (lambda: fn.SupportSet(top_k=25), "top_k is 25, which flags all 6 negatives"),
        (lambda: fn.SupportSet(top_k=3, distinct=True), "top_k is 3"),
        (lambda: fn.SupportSet(share=0.8), "share is 0.8, which flags all 6 negatives.*smaller share"),
        (lambda: fn.AnyOf([fn.FixedThreshold(0.9), fn.SupportSet(top_k=6)]), "top_k is 6"),
        (lambda: fn.StartAt(fn.SupportSet(top_k=6), "0%"), "top_k is 6"),
    ],
)
def test_a_batch_too_small_for_the_number_to_flag_is_no_silent_loss_of_0(detector, words, strategy):
    """A last batch of four images: all six negatives of each anchor would be flagged."""
    with pytest.raises(fn.UserError, match=words) as error:
        fn.ContrastiveLoss(detector(), strategy)(VIEW, OTHER, support=SUPPORT)
    assert str(error.value).startswith("SupportSet: ") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "detector",
    [
        fn.SupportSet(top_k=5),
        fn.SupportSet(top_k=2, distinct=True),
        fn.SupportSet(share=0.6),
        fn.SupportSet(top_k=25, threshold=0.1),  # the threshold decides
        fn.SupportSet(threshold=-1.0),
        fn.AllOf([fn.SupportSet(top_k=25), fn.FixedThreshold(0.9)]),
        fn.StartAt(fn.SupportSet(top_k=25), "50%"),  # flags nothing yet
    ],
)
def test_a_small_batch_of_which_something_is_left_is_taken(detector):
    assert fn.ContrastiveLoss(detector)(VIEW, OTHER, support=SUPPORT).isfinite()


@pytest.mark.parametrize("name", ["SupportSet", "BatchQuantile"])
def test_missing_support_views_are_named(name):
    detector = fn.SupportSet(top_k=1) if name == "SupportSet" else fn.BatchQuantile(0.3, space="support")
    for inside in (detector, fn.StartAt(detector, "0%")):
        with pytest.raises(fn.UserError, match=rf"{name} compares with support views; give support, a list"):
            fn.ContrastiveLoss(inside)(VIEW, OTHER)
    assert fn.ContrastiveLoss(fn.SupportSet(top_k=1, space=None))(VIEW, OTHER).isfinite()


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("GlobalThreshold", {"detector": fn.GlobalThreshold(0.1)}),
        ("GlobalThreshold", {"detector": fn.StartAt(fn.GlobalThreshold(0.1), "1 epoch")}),
        ("IncrementalClusters", {"detector": fn.IncrementalClusters([3])}),
        ("GlobalContrastive", {"objective": fn.GlobalContrastive()}),
        ("IndividualTemperature", {"temperature": fn.IndividualTemperature()}),
    ],
)
def test_what_is_kept_for_each_image_asks_for_their_number_at_once(name, parts):
    with pytest.raises(fn.UserError, match=rf"{name} keeps something for each image; give images, the number"):
        fn.ContrastiveLoss(**parts)
