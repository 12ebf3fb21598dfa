"""`PairLoss` as somebody else's loop calls it: against open_clip's loss, and what it refuses."""

import pytest
import torch
from open_clip.loss import ClipLoss
from torch.nn.functional import normalize

import falseneg as fn

CLOCK = fn.Clock(0, 10, 3)
NAMES = ("image->text", "text->image")


def sides(size=6, dim=5, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(size, dim, generator=draw, dtype=torch.float64).requires_grad_() for _ in range(2)]


def by_hand(raw, scale, drop):
    """Cross-entropy over the matrix without what drop(direction, anchor, candidate) says; directions 0 and 1."""
    image, text = (normalize(side, dim=1) for side in raw)
    total, size = 0.0, len(image)
    for direction, sim in enumerate((image @ text.T, text @ image.T)):
        for i in range(size):
            kept = [j for j in range(size) if j == i or not drop(direction, i, j)]
            total = total + (scale * sim[i][kept]).logsumexp(0) - scale * sim[i, i]
    return total / (2 * size)


def same(got, expected, leaves):
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)
    for one, other in zip(*(torch.autograd.grad(value, leaves) for value in (got, expected)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("size", [2, 6, 300])  # the last is not dense
@pytest.mark.parametrize("learned", [False, True])
def test_it_is_the_loss_of_open_clip(size, learned):
    """In value and gradient, that of the logarithm of the scale among them, whose exponential open_clip hands over."""
    raw = sides(size)
    log_scale = torch.tensor(1.3, dtype=torch.float64, requires_grad=learned)
    leaves = [*raw, log_scale] if learned else raw
    got = fn.PairLoss()(*raw, log_scale.exp())
    unit = [normalize(side, dim=1) for side in raw]
    same(got, ClipLoss()(*unit, log_scale.exp()), leaves)


def test_the_scale_may_be_a_number_or_belong_to_the_criterion():
    raw = sides()
    expected = fn.PairLoss()(*raw, torch.tensor(4.0))
    torch.testing.assert_close(fn.PairLoss()(*raw, 4.0), expected)
    torch.testing.assert_close(fn.PairLoss()(*raw, torch.tensor([4.0])), expected)
    torch.testing.assert_close(fn.PairLoss(temperature=0.25)(*raw), expected)
    torch.testing.assert_close(fn.PairLoss(temperature=0.25)(*raw, 100.0), expected)  # which is ignored


def test_repetitions_of_a_pair_are_no_negatives():
    raw, rows = sides(), [3, 1, -1, 3, -1, 0]
    got = fn.PairLoss()(*raw, 4.0, sample=torch.tensor(rows))
    same(got, by_hand(raw, 4.0, lambda _, i, j: rows[i] == rows[j] >= 0), raw)


def test_a_guide_says_what_is_flagged():
    raw, guide = sides(), [side.detach() for side in sides(dim=9, seed=4)]
    criterion = fn.PairLoss(fn.RelativeToPositive(absolute_margin=0.1, space="guide"))
    got = criterion(*raw, 4.0, guide=tuple(guide))
    first, second = (normalize(side, dim=1) for side in guide)
    scores = first @ second.T, second @ first.T
    flags = [score > score.diagonal()[:, None] - 0.1 for score in scores]
    same(got, by_hand(raw, 4.0, lambda direction, i, j: bool(flags[direction][i, j])), raw)
    for name, flag in zip(NAMES, flags, strict=True):
        flag.fill_diagonal_(False)
        pairs = criterion.flagged[name].pairs()
        assert torch.equal(torch.stack([pairs.anchor, pairs.candidate], dim=1), flag.nonzero())
        assert criterion.flagged[name].share == pytest.approx(int(flag.sum()) / 30)
        assert int(flag.sum()) > 0


def test_support_views_and_support_texts():
    raw = sides()
    support, texts = ([side.detach() for side in sides(seed=seed)] for seed in (5, 6))
    criterion = fn.PairLoss(fn.FixedThreshold(0.3, space="support"))
    got = criterion(*raw, 4.0, support=support, support_texts=torch.stack(texts))
    image, text = (normalize(side, dim=1) for side in raw)
    views, further = (torch.stack([normalize(each, dim=1) for each in some]) for some in (support, texts))
    scores = (views @ text.T).amax(0), (further @ image.T).amax(0)
    same(got, by_hand(raw, 4.0, lambda direction, i, j: bool(scores[direction][i, j] > 0.3)), raw)
    alone = criterion(*raw, 4.0, support=support)  # without further texts the text itself is compared
    own = text @ image.T
    flags = scores[0] > 0.3, own > 0.3
    same(alone, by_hand(raw, 4.0, lambda direction, i, j: bool(flags[direction][i, j])), raw)


@pytest.mark.parametrize("space, side", [("image", 0), ("text", 1)])
def test_either_side_can_be_compared_with_itself(space, side):
    raw = sides()
    own = normalize(raw[side].detach(), dim=1)
    got = fn.PairLoss(fn.FixedThreshold(0.2, space=space))(*raw, 4.0)
    same(got, by_hand(raw, 4.0, lambda _, i, j: bool(own[i] @ own[j] > 0.2)), raw)


def test_nothing_was_flagged_before_the_first_call():
    with pytest.raises(fn.UserError, match="PairLoss: nothing was flagged yet; call the criterion first"):
        _ = fn.PairLoss().flagged


def test_each_direction_has_a_state_of_its_own_that_is_saved():
    criterion = fn.PairLoss(fn.GlobalThreshold(alpha=0.3), pairs=10)
    for seed in range(3):
        criterion(*sides(seed=seed), 4.0, sample=torch.tensor([9, 1, 2, 3, 4, 5]), clock=CLOCK)
    again = fn.PairLoss(fn.GlobalThreshold(alpha=0.3), pairs=10)
    again.load_state_dict(criterion.state_dict())
    found = [
        [each.criterion.detector.per_sample()[f"threshold {name}"] for name in NAMES] for each in (criterion, again)
    ]
    assert not torch.equal(*(each[each.isfinite()] for each in found[0])) and int(found[0][0].isfinite().sum()) == 6
    raw, rows = sides(seed=8), torch.tensor([0, 1, 2, 3, 9, 5])
    losses = [each(*raw, 4.0, sample=rows, clock=CLOCK) for each in (criterion, again)]
    assert torch.equal(*losses)
    fresh = fn.PairLoss(fn.GlobalThreshold(alpha=0.3), pairs=10)
    assert not torch.equal(losses[0], fresh(*raw, 4.0, sample=rows, clock=CLOCK))


IMAGE, TEXT = (side.detach() for side in sides())


@pytest.mark.parametrize(
    "call, words",
    [
        (
            {"image_features": IMAGE[:5]},
            r"got \(5, 5\) float64 on cpu and \(6, 5\) float64 on cpu; give two tensors of one",
        ),
        ({"image_features": IMAGE[0], "text_features": TEXT[0]}, r"give two tensors of one shape \(B, D\)"),
        ({"image_features": IMAGE.long()}, r"got \(6, 5\) int64 .*of floating-point types"),
        ({"image_features": [1.0]}, r"got list and \(6, 5\)"),
        ({"image_features": IMAGE[:0], "text_features": TEXT[:0]}, "not empty"),
        ({"image_features": IMAGE[:1], "text_features": TEXT[:1]}, "got a single pair.*at least 2.*drop_last=True"),
        ({"logit_scale": None}, "got no logit_scale; give it, 1 / tau, or a temperature"),
        ({"sample": torch.tensor([1, 2, 3])}, r"got a sample of \(3,\) int64 .*give 6 whole numbers"),
        ({"sample": torch.rand(6)}, "give 6 whole numbers"),
        ({"support": []}, "got support views of nothing; give one or more"),
        ({"support": [IMAGE[:4]]}, r"got support views of \(4, 5\)"),
        ({"support_texts": [TEXT.long()]}, r"got support views of \(6, 5\) int64"),
        (
            {"guide": (IMAGE, TEXT[:4])},
            r"got a guide of \(6, 5\) float64 on cpu and \(4, 5\) .* for 6 pairs; give \(B, E\) for each side",
        ),
        ({"guide": (IMAGE[:4], TEXT[:4])}, r"got a guide of \(4, 5\) .* for 6 pairs"),
        ({"guide": (IMAGE[0], TEXT[0])}, r"got a guide of \(5,\) .* for 6 pairs"),
        ({"guide": IMAGE}, r"got a guide .*give \(B, E\) for each side"),
        ({"guide": (IMAGE, TEXT.long())}, r"got a guide .*give \(B, E\) for each side"),
    ],
)
def test_a_bad_call_is_refused_in_one_sentence(call, words):
    given = {"image_features": IMAGE, "text_features": TEXT, "logit_scale": 4.0} | call
    with pytest.raises(fn.UserError, match=words) as error:
        fn.PairLoss()(**given)
    assert str(error.value).startswith("PairLoss: ") and "\n" not in str(error.value)


@pytest.mark.parametrize("scale", [0.0, -3.0, float("nan"), float("inf"), torch.ones(3)])
def test_a_scale_that_is_none_is_refused(scale):
    with pytest.raises(fn.UserError, match=r"PairLoss: logit_scale is .*give one number above 0"):
        fn.PairLoss()(IMAGE, TEXT, scale)


def test_pairs_that_are_kept_something_for_have_to_be_known():
    with pytest.raises(fn.UserError, match="GlobalThreshold keeps something for each pair; give pairs, the number"):
        fn.PairLoss(fn.GlobalThreshold(alpha=0.1))
    criterion = fn.PairLoss(fn.GlobalThreshold(alpha=0.1), pairs=6)
    with pytest.raises(fn.UserError, match="what is kept for each pair needs to know the pairs; give sample"):
        criterion(IMAGE, TEXT, 4.0)
    with pytest.raises(fn.UserError, match="sample holds 6, but a data set of 6 pairs has the rows 0 to 5"):
        criterion(IMAGE, TEXT, 4.0, sample=torch.tensor([0, 1, 2, 3, 4, 6]))
    with pytest.raises(fn.UserError, match="classes says how many kinds there are among the pairs; give pairs as well"):
        fn.PairLoss(fn.BatchQuantile(), classes=3)


def test_what_looks_at_support_views_asks_for_them():
    with pytest.raises(fn.UserError, match="there is no space 'support' to detect in.*image, text"):
        fn.PairLoss(fn.SupportSet(top_k=1))(IMAGE, TEXT, 4.0)
    with pytest.raises(fn.UserError, match="top_k is 5, which flags all 5 negatives"):
        fn.PairLoss(fn.SupportSet(top_k=5))(IMAGE, TEXT, 4.0, support=[IMAGE])
