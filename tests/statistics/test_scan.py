"""The passes without gradient against plain loops."""

import math
from dataclasses import replace

import catalogue
import pytest
import torch
from reference import loops

import falseneg as fn
from falseneg.statistics import measuring, scan, tiles


@pytest.fixture(autouse=True, params=[2**21, 25])
def _blocks(request, monkeypatch):
    """Once with everything in one block, once with a few rows in each."""
    monkeypatch.setattr(scan, "BLOCK", request.param)
    monkeypatch.setattr(scan, "ROWS", 2)


def scores_of(contrast, space=None, cols=None):
    """(N, M) scores pair by pair; -inf where a pair is no negative or outside the columns."""
    n, m = len(contrast.anchors), len(contrast.candidates)
    allowed = range(m)[cols] if cols else range(m)
    scores = torch.full((n, m), -math.inf, dtype=torch.float64)
    for i in range(n):
        for j in loops.negatives_of(i, contrast.anchors.sample.tolist(), contrast.candidates.sample.tolist()):
            if j not in allowed:
                continue
            if space is None:
                scores[i, j] = contrast.anchors.z[i].detach() @ contrast.candidates.z[j].detach()
            else:
                queries = space.queries[space.query_of[i]]
                scores[i, j] = max(float(query @ space.candidates[j]) for query in queries)
    return scores


def as_lists(listed):
    return [listed.columns[a:b].tolist() for a, b in zip(listed.offsets[:-1], listed.offsets[1:], strict=True)]


@pytest.mark.parametrize("kind", ["batch", "bank", "alone"])
@pytest.mark.parametrize("space", [None, "support", "mean"])
@pytest.mark.parametrize("k", [1, 3, 100])
def test_top_k(kind, space, k):
    contrast, _ = catalogue.contrast_of(kind)
    where = None if space is None else contrast.spaces["support"]
    where = where.mean() if space == "mean" else where
    expected = [loops.top_k(row, k) for row in scores_of(contrast, where).tolist()]
    assert as_lists(fn.top_k(contrast, k, where)) == expected


def test_anchors_that_share_queries_may_show_different_samples():
    """They score alike, but each leaves out its own sample."""
    contrast, _ = catalogue.contrast_of("batch")
    space = replace(contrast.spaces["support"], query_of=torch.zeros_like(contrast.anchors.sample))
    scores = scores_of(contrast, space)
    assert as_lists(fn.top_k(contrast, 2, space)) == [loops.top_k(row, 2) for row in scores.tolist()]
    thresholds = fn.row_quantile(contrast, 0.3, space)
    for row, threshold in zip(scores, thresholds, strict=True):
        assert int((row > threshold).sum()) == math.ceil(0.3 * int((row > -math.inf).sum()))


def test_mean_scores_are_mean_cosines_not_cosines_of_the_mean():
    """Trap of the mean: a query that is rescaled to unit length gives scores a threshold does not understand."""
    contrast, _ = catalogue.contrast_of("bank")
    space = contrast.spaces["support"]
    rows, cols = slice(0, 4), slice(0, 11)
    expected = torch.stack([space.queries[space.query_of, s] @ space.candidates.T for s in range(3)]).mean(0)
    for threshold in (-0.2, 0.0, 0.2):
        rule = fn.AboveThreshold(torch.tensor(threshold), space.mean())
        sim = contrast.anchors.z @ contrast.candidates.z.T
        assert torch.equal(rule.tile(rows, cols, sim), expected > threshold)


def test_top_k_with_threshold_and_part():
    contrast, _ = catalogue.contrast_of("bank")
    scores = scores_of(contrast, cols=slice(5, 11))
    expected = [[j for j in loops.top_k(row, 4) if row[j] > 0.1] for row in scores.tolist()]
    assert as_lists(fn.top_k(contrast, 4, part="second", threshold=0.1)) == expected


def test_ties_go_to_the_lower_column():
    z = torch.eye(3, dtype=torch.float64)
    repeated = z[[1, 0, 0, 1, 0, 0, 2]]
    contrast = fn.Contrast(
        "views", fn.Embedded(z[:1], torch.tensor([99])), fn.Embedded(repeated, torch.arange(7)), z[:1, :1]
    )
    assert as_lists(fn.top_k(contrast, 2)) == [[1, 2]]
    assert as_lists(fn.top_k(contrast, 5)) == [[0, 1, 2, 4, 5]]


def test_distinct_counts_images_and_lists_all_their_rows():
    z = torch.eye(4, dtype=torch.float64)
    first = torch.nn.functional.normalize(
        torch.tensor([[1.0, 0, 0, 0], [0.9, 0.5, 0, 0], [0.8, 0.6, 0, 0]]).double(), dim=1
    )
    rows = torch.cat([z[3:], first, z[1:2], z[3:]])  # images 5, 6, 6, 7, 6, 5
    sample = torch.tensor([5, 6, 6, 7, 6, 5])
    contrast = fn.Contrast("views", fn.Embedded(z[:1], torch.tensor([0])), fn.Embedded(rows, sample), z[:1, :1])
    assert as_lists(fn.top_k(contrast, 2)) == [[1, 2]]  # two rows of one image
    assert as_lists(fn.top_k(contrast, 1, distinct=True)) == [[1, 2, 4]]
    assert as_lists(fn.top_k(contrast, 2, distinct=True)) == [[1, 2, 3, 4]]
    assert as_lists(fn.top_k(contrast, 2, distinct=True, threshold=0.5)) == [[1, 2, 3]]


def test_distinct_ties_go_to_the_image_that_appears_first():
    z = torch.eye(2, dtype=torch.float64)
    candidates = fn.Embedded(z[[1, 0, 0, 0]], torch.tensor([3, 9, 4, 9]))
    contrast = fn.Contrast("views", fn.Embedded(z[:1], torch.tensor([0])), candidates, z[:1, :1])
    assert as_lists(fn.top_k(contrast, 1, distinct=True)) == [[1, 3]]  # image 9 stands before image 4


@pytest.mark.parametrize("alpha", [0.05, 0.3, 0.5, 0.999])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_row_quantile_separates_the_k_th_from_the_next(alpha, dtype):
    contrast, _ = catalogue.contrast_of("bank", dtype=dtype)
    threshold = fn.row_quantile(contrast, alpha)
    for i, row in enumerate(scores_of(contrast)):
        ordered = sorted((s for s in row.tolist() if s > -math.inf), reverse=True)
        k = math.ceil(alpha * len(ordered))
        assert sum(s > float(threshold[i]) for s in ordered) == k
        if k < len(ordered):
            assert float(threshold[i]) == pytest.approx((ordered[k - 1] + ordered[k]) / 2, abs=1e-6)


def test_row_quantile_between_neighbouring_floats():
    """Trap 2: between two adjacent floats there is no middle; the threshold must still keep the k-th and only it."""
    high = torch.tensor(0.5)
    low = torch.nextafter(high, torch.tensor(0.0))
    candidates = torch.stack([low, high, torch.tensor(-0.3)])[:, None]
    contrast = fn.Contrast(
        "views",
        fn.Embedded(torch.ones(1, 1), torch.tensor([9])),
        fn.Embedded(candidates, torch.arange(3)),
        torch.ones(1, 1),
    )
    threshold = fn.row_quantile(contrast, 0.3)
    flagged = fn.AboveThreshold(threshold).tile(slice(0, 1), slice(0, 3), candidates.T)
    assert flagged.tolist() == [[False, True, False]]


def test_row_quantile_without_negatives():
    contrast, _ = catalogue.contrast_of("alone")
    assert fn.row_quantile(contrast, 0.5)[0] == torch.inf


@pytest.mark.parametrize("size", [2, 512])
@pytest.mark.parametrize("part", [None, "first", "second"])
def test_count_above(part, size, monkeypatch):
    monkeypatch.setattr(tiles, "TILE", size)
    contrast, _ = catalogue.contrast_of("bank")
    threshold = torch.tensor([0.0, -0.2, 0.3, 0.1], dtype=torch.float64)
    for other in (None, "first"):
        fn.count_above(contrast, threshold, part=other)  # what was counted elsewhere changes nothing
    above, count = fn.count_above(contrast, threshold, part=part)
    scores = scores_of(contrast, cols=contrast.columns(part))
    assert above.tolist() == [sum(s > threshold[i] for s in row) for i, row in enumerate(scores)]
    assert count.tolist() == [sum(s > -math.inf for s in row) for row in scores.tolist()]


def test_confusion_counts_pairs_whose_labels_are_known():
    contrast, _ = catalogue.contrast_of("bank")
    labels = torch.tensor([0, 1, 0, 2, -1, 1, 0, 0, 1, 0])
    rule = catalogue.rules(contrast)["either"]
    flagged = rule.tile(slice(0, 4), slice(0, 11), (contrast.anchors.z @ contrast.candidates.z.T).detach())
    expected = [0, 0, 0, 0]
    of_anchor, of_candidate = contrast.anchors.sample.tolist(), contrast.candidates.sample.tolist()
    for i in range(4):
        for j in loops.negatives_of(i, of_anchor, of_candidate):
            a, c = (int(labels[s]) if s >= 0 else -1 for s in (of_anchor[i], of_candidate[j]))
            if a < 0 or c < 0:
                continue
            hit = [bool(flagged[i, j]) and a == c, bool(flagged[i, j]), a == c, True]
            expected = [total + h for total, h in zip(expected, hit, strict=True)]
    got = fn.confusion(contrast, rule, labels)
    assert [int(v) for v in (got.true_positives, got.flagged, got.false_negatives, got.negatives)] == expected
    assert expected[0] > 0 and expected[1] > expected[0]


def test_flagged_pairs_and_histogram_agree_with_the_statistics():
    contrast, _ = catalogue.contrast_of("batch")
    rule = catalogue.rules(contrast)["groups"]
    stats = fn.negative_stats(contrast, torch.tensor(1.0), rule, fn.ATTRACT)
    anchors, columns, scores = fn.flagged_pairs(contrast, rule, limit=1000)
    assert len(anchors) == int(stats.flagged.sum()) > 10
    torch.testing.assert_close(scores, (contrast.anchors.z[anchors] * contrast.anchors.z[columns]).sum(1).detach())
    assert len(fn.flagged_pairs(contrast, rule, limit=7)[0]) == 7
    for number in (7, 1000):
        best = measuring.most_similar_flagged(contrast, rule, number)
        assert torch.equal(best[2], scores.sort(descending=True).values[:number])
        listed = {*zip(anchors.tolist(), columns.tolist(), scores.tolist(), strict=True)}
        assert {*zip(*(each.tolist() for each in best), strict=True)} <= listed
    assert len(measuring.most_similar_flagged(contrast, fn.NoPairs(), 7)[0]) == 0
    plain = fn.similarity_histogram(contrast, rule, None, bins=20)
    assert int(plain["negative"].sum()) == int(stats.count.sum())
    assert int(plain["flagged"].sum()) == int(stats.flagged.sum())
    labels = torch.tensor([0, 1, 0, 1, 0])
    split = fn.similarity_histogram(contrast, rule, labels, bins=20)
    counts = fn.confusion(contrast, rule, labels)
    assert torch.equal(split["true_negative"] + split["false_negative"], plain["negative"])
    assert int(split["flagged_false_negative"].sum()) == int(counts.true_positives)


@pytest.mark.parametrize("kind", ["batch", "bank"])
@pytest.mark.parametrize("rule", ["none", "threshold", "groups", "listed", "either"])
@pytest.mark.parametrize("size", [4, 512])
def test_confusion_is_a_count_pair_by_pair(kind, rule, size, monkeypatch):
    """With tiles on and beside the diagonal, samples that are repeated, nobody, and labels that are unknown."""
    monkeypatch.setattr(tiles, "TILE", size)
    draw = torch.Generator().manual_seed(5)
    z, keys = (torch.nn.functional.normalize(torch.randn(13, 6, generator=draw).double(), dim=1) for _ in range(2))
    sample = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 0, -1, -7])
    anchors = fn.Embedded(z, sample)
    candidates = anchors if kind == "batch" else fn.Embedded(keys, sample.roll(3))
    contrast = fn.Contrast("views", anchors, candidates, z[:, :1])
    labels = torch.tensor([0, 1, 0, -1, 1])
    groups = torch.randint(-1, 3, (2, 13, 2), generator=draw)
    chosen = {
        "none": fn.NoPairs(),
        "threshold": fn.AboveThreshold(torch.linspace(-0.4, 0.4, 13).double()),
        "groups": fn.SameGroup(*groups),
        "listed": fn.Listed.from_pairs(*(torch.rand(13, 13, generator=draw) < 0.4).nonzero().unbind(1), 13),
    }
    chosen["either"] = chosen["threshold"] | chosen["listed"]
    flags = chosen[rule].tile(slice(0, 13), slice(0, 13), z @ candidates.z.T)
    expected = [0, 0, 0, 0]
    for i in range(13):
        for j in loops.negatives_of(i, anchors.sample.tolist(), candidates.sample.tolist()):
            a, c = (int(labels[s]) if s >= 0 else -1 for s in (int(anchors.sample[i]), int(candidates.sample[j])))
            if min(a, c) >= 0:
                hit = [bool(flags[i, j]) and a == c, bool(flags[i, j]), a == c, True]
                expected = [total + h for total, h in zip(expected, hit, strict=True)]
    assert [int(number) for number in vars(fn.confusion(contrast, chosen[rule], labels)).values()] == expected
    assert expected[2] > 0 and (rule == "none" or 0 < expected[0] < expected[1])


def test_confusion_multiplies_half_of_a_symmetric_matrix_and_nothing_for_no_pairs(monkeypatch):
    monkeypatch.setattr(tiles, "TILE", 4)
    products, mm = [], torch.mm
    monkeypatch.setattr(torch, "mm", lambda a, b, **more: products.append(a.shape[0] * b.shape[1]) or mm(a, b, **more))
    z = torch.nn.functional.normalize(torch.randn(40, 6), dim=1)
    anchors = fn.Embedded(z, torch.arange(20).repeat_interleave(2))
    labels = torch.arange(20) % 3
    fn.confusion(fn.Contrast("views", anchors, anchors, z[:, :1]), fn.AboveThreshold(torch.tensor(0.1)), labels)
    assert sum(products) == 55 * 16  # of 100 tiles
    products.clear()
    fn.confusion(fn.Contrast("views", anchors, anchors, z[:, :1]), fn.NoPairs(), labels)
    assert not products
