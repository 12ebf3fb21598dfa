"""The oracle that errs as often as it is told to."""

import pytest
import torch
from torch.nn.functional import normalize

import falseneg as fn
from falseneg.detectors import oracle

CLOCK = fn.Clock(step=0, steps_per_epoch=10, epochs=10)
ROWS = 600
LABELS = torch.randint(0, 5, (ROWS,), generator=torch.Generator().manual_seed(0))
LABELS[::50] = -1


def contrast_of(samples, seed=0, bank=None):
    draw = torch.Generator().manual_seed(seed)
    z = normalize(torch.randn(len(samples), 8, generator=draw), dim=1)
    anchors = fn.Embedded(z, torch.as_tensor(samples))
    candidates = anchors
    if bank is not None:
        candidates = fn.Embedded(normalize(torch.randn(len(bank), 8, generator=draw), dim=1), torch.as_tensor(bank))
    return fn.Contrast("views", anchors, candidates, z[:, :1])


def flags(rule, contrast):
    n, m = len(contrast.anchors), len(contrast.candidates)
    return rule.tile(slice(0, n), slice(0, m), contrast.anchors.z @ contrast.candidates.z.T)


def made(precision, recall, errors, seed=0):
    detector = fn.Oracle(precision=precision, recall=recall, errors=errors)
    detector.prepare(fn.Facts(ROWS, negatives=10, labels=LABELS, seed=seed))
    return detector


def kinds(contrast):
    """Pairs of different images with both labels known: those with different labels, and those with equal ones."""
    of_anchor, of_candidate = LABELS[contrast.anchors.sample], LABELS[contrast.candidates.sample]
    known = (of_anchor >= 0)[:, None] & (of_candidate >= 0)
    known &= contrast.anchors.sample[:, None] != contrast.candidates.sample
    same = of_anchor[:, None] == of_candidate
    return known & ~same, known & same


@pytest.mark.parametrize("errors", ["random", "similar"])
@pytest.mark.parametrize("precision, recall", [(0.5, 0.3), (0.25, 0.9), (0.9, 1.0), (1.0, 0.2)])
def test_precision_and_recall_are_those_that_were_asked_for(precision, recall, errors):
    contrast = contrast_of(torch.arange(ROWS))
    flagged = flags(made(precision, recall, errors).flag(contrast, CLOCK), contrast)
    different, same = kinds(contrast)
    assert torch.equal(flagged & (different | same), (flagged & (different | same)).T)
    right, wrong = int((flagged & same).sum()) // 2, int((flagged & different).sum()) // 2
    pairs = int(same.sum()) // 2
    expected_wrong = recall * pairs * (1 / precision - 1)
    # Five standard deviations of the draws; by the similarity only the pairs of one bin are drawn.
    spread = 5 if errors == "random" else 1
    assert right == pytest.approx(recall * pairs, abs=spread * max(1, (pairs * recall * (1 - recall)) ** 0.5))
    assert wrong == pytest.approx(expected_wrong, abs=spread * max(1, expected_wrong**0.5))
    assert not (flagged & ~(different | same))[LABELS < 0].any()


def test_a_pair_is_drawn_once_by_the_seed_alone():
    samples = torch.tensor([5, 9, 300, 7, 5, 9])
    contrast = contrast_of(samples)
    flagged = flags(made(0.5, 0.5, "random").flag(contrast, CLOCK), contrast)
    assert torch.equal(flagged[0], flagged[4]) and torch.equal(flagged[1], flagged[5])
    bank = torch.arange(ROWS).flip(0)
    other = contrast_of(samples, seed=3, bank=bank)
    again = flags(made(0.5, 0.5, "random").flag(other, fn.Clock(50, 10, 10)), other)
    assert torch.equal(again[:, ROWS - 1 - samples], flagged)
    different = flags(made(0.5, 0.5, "random", seed=2**61).flag(other, CLOCK), other)
    assert 0.2 < float((different != again)[:, LABELS[bank] >= 0].float().mean()) < 0.6
    draws = oracle._draws(torch.arange(ROWS)[:, None], torch.arange(ROWS), 7).double() / oracle.DRAWS
    assert float(draws.mean()) == pytest.approx(0.5, abs=0.005) and float(draws.min()) >= 0 and float(draws.max()) < 1
    assert float(torch.corrcoef(torch.stack([draws[:-1].flatten(), draws[1:].flatten()]))[0, 1]) < 0.01


@pytest.mark.parametrize("bank", [None, torch.arange(100, 400)])
def test_similar_errors_are_the_most_similar_pairs_of_each_kind(bank):
    contrast = contrast_of(torch.arange(150), bank=bank)
    flagged = flags(made(0.4, 0.3, "similar").flag(contrast, CLOCK), contrast)
    sim = contrast.anchors.z @ contrast.candidates.z.T
    for kind in kinds(contrast):
        assert sim[kind & flagged].min() > sim[kind & ~flagged].max() - 2 / oracle.BINS


def test_many_pairs_of_one_cosine_are_drawn():
    """All cosines are in one bin: the share that is flagged is still the one asked for."""
    z = torch.ones(ROWS, 1)
    anchors = fn.Embedded(z, torch.arange(ROWS))
    contrast = fn.Contrast("views", anchors, anchors, z)
    flagged = flags(made(0.5, 0.3, "similar").flag(contrast, CLOCK), contrast)
    different, same = kinds(contrast)
    assert float(flagged[same].float().mean()) == pytest.approx(0.3, abs=0.02)
    assert float((flagged & same).sum() / (flagged & (same | different)).sum()) == pytest.approx(0.5, abs=0.02)


def test_without_errors_it_is_the_plain_one():
    contrast = contrast_of(torch.arange(200))
    plain, told = fn.Oracle(LABELS).flag(contrast, CLOCK), fn.Oracle(LABELS, 1.0, 1.0, "similar").flag(contrast, CLOCK)
    assert type(plain) is type(told) is fn.SameGroup
    assert torch.equal(flags(plain, contrast), flags(told, contrast))


@pytest.mark.parametrize(
    "make, sentence",
    [
        (lambda: fn.Oracle(precision=0.0), "precision is 0.0; it is a share of pairs"),
        (lambda: fn.Oracle(recall=1.5), "recall is 1.5; it is a share"),
        (lambda: fn.Oracle(recall=float("nan")), "recall is nan"),
        (lambda: fn.Oracle(errors="few"), "errors is 'few'; give 'random' or 'similar'"),
        (
            lambda: made(0.1, 0.9, "random"),
            r"precision of 0.1 at a recall of 0.9 takes more .* at least 0.18\d, or a lower",
        ),
        (
            lambda: fn.Oracle(torch.zeros(9).long(), precision=0.9),
            "takes more pairs with different labels than there are",
        ),
    ],
)
def test_what_cannot_be(make, sentence):
    with pytest.raises(fn.UserError, match=sentence):
        make()
