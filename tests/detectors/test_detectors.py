"""Each detector's rule on tiny contrasts, against plain loops; and what it refuses."""

import sys

import catalogue
import numpy as np
import pytest
import torch
from reference import loops

import falseneg as fn

CLOCK = fn.Clock(step=0, steps_per_epoch=10, epochs=10)


def flags(rule, contrast):
    """(N, M) bool, as the statistics see it: on negatives only."""
    n, m = len(contrast.anchors), len(contrast.candidates)
    sim = (contrast.anchors.z @ contrast.candidates.z.T).detach()
    flagged = rule.tile(slice(0, n), slice(0, m), sim)
    for i in range(n):
        others = loops.negatives_of(i, contrast.anchors.sample.tolist(), contrast.candidates.sample.tolist())
        flagged[i, [j for j in range(m) if j not in others]] = False
    return flagged


def support_scores(contrast, aggregate):
    """FNC, section 3.2.3: score_mi = max or mean over the support views of cos(z_m, z_i^s)."""
    space = contrast.spaces["support"]
    return [
        [aggregate([float(q @ c) for q in space.queries[g]]) for c in space.candidates] for g in space.query_of.tolist()
    ]


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("top_k, threshold", [(3, None), (None, 0.15), (3, 0.15), (1, -1.0)])
def test_support_set_is_the_best_by_number_by_threshold_or_both(mean, top_k, threshold):
    contrast, _ = catalogue.contrast_of("batch")
    detector = fn.SupportSet(top_k=top_k, threshold=threshold, mean=mean)
    flagged = flags(detector.flag(contrast, CLOCK), contrast)
    scores = support_scores(contrast, (lambda s: sum(s) / len(s)) if mean else max)
    for i, row in enumerate(scores):
        columns = loops.negatives_of(i, contrast.anchors.sample.tolist(), contrast.candidates.sample.tolist())
        best = sorted(columns, key=lambda j: (-row[j], j))[: top_k or len(columns)]
        expected = [j for j in best if threshold is None or row[j] > threshold]
        assert flagged[i].nonzero()[:, 0].tolist() == sorted(expected)


def test_support_set_share_part_and_distinct():
    contrast, _ = catalogue.contrast_of("bank")
    by_share = fn.SupportSet(share=0.5, part="first").flag(contrast, CLOCK)
    by_number = fn.SupportSet(top_k=round(0.5 * 5), part="first").flag(contrast, CLOCK)
    assert torch.equal(flags(by_share, contrast), flags(by_number, contrast))
    assert not flags(by_share, contrast)[:, 5:].any()
    threshold_only = flags(fn.SupportSet(threshold=-1.0, part="second").flag(contrast, CLOCK), contrast)
    assert threshold_only[:, 5:].any() and not threshold_only[:, :5].any()
    images = contrast.candidates.sample[flags(fn.SupportSet(top_k=2, distinct=True).flag(contrast, CLOCK), contrast)[0]]
    assert len(images.unique()) == 2


def test_support_set_without_a_support_set_scores_the_anchor_itself():
    contrast, _ = catalogue.contrast_of("batch")
    by_detector = fn.SupportSet(top_k=2, space=None).flag(contrast, CLOCK)
    assert torch.equal(flags(by_detector, contrast), flags(fn.top_k(contrast, 2), contrast))


def test_expected_classes_set_what_was_left_open():
    facts = fn.Facts(rows=100, negatives=20, classes=5)
    support, quantile = fn.SupportSet(), fn.BatchQuantile()
    support.prepare(facts)
    quantile.prepare(facts)
    assert support.share == quantile.alpha == 0.2
    given = fn.SupportSet(top_k=3)
    given.prepare(facts)
    assert given.share is None and given.top_k == 3


def test_batch_quantile_flags_the_same_share_of_every_anchor():
    contrast, _ = catalogue.contrast_of("batch")
    flagged = flags(fn.BatchQuantile(alpha=0.25).flag(contrast, CLOCK), contrast)
    assert flagged.sum(1).tolist() == [2] * 10
    in_part = flags(fn.BatchQuantile(alpha=0.5, part="first").flag(contrast, CLOCK), contrast)
    assert in_part[:, :5].any(1).all() and not in_part[:, 5:].any()


def test_fixed_threshold_is_strict():
    contrast, _ = catalogue.contrast_of("batch")
    sim = (contrast.anchors.z @ contrast.anchors.z.T).detach()
    assert torch.equal(
        flags(fn.FixedThreshold(0.1).flag(contrast, CLOCK), contrast),
        flags(fn.AboveThreshold(torch.tensor(0.1)), contrast),
    )
    at = float(sim[0, 3])
    assert (
        not fn.AboveThreshold(torch.tensor(at, dtype=torch.float64)).tile(slice(0, 1), slice(3, 4), sim[:1, 3:4]).any()
    )


def test_oracle_flags_equal_labels_and_never_unknown_ones():
    contrast, _ = catalogue.contrast_of("bank")
    labels = torch.tensor([0, 1, 0, 2, -1, 1, 0, 0, 1, -1])
    flagged = flags(fn.Oracle(labels).flag(contrast, CLOCK), contrast)
    for i, a in enumerate(contrast.anchors.sample.tolist()):
        for j in loops.negatives_of(i, contrast.anchors.sample.tolist(), contrast.candidates.sample.tolist()):
            c = contrast.candidates.sample.tolist()[j]
            known = a >= 0 and c >= 0 and labels[a] >= 0
            assert bool(flagged[i, j]) == bool(known and labels[a] == labels[c])


@pytest.mark.parametrize("form", ["npy", "parquet"])
def test_neighbours_from_a_file(form, tmp_path):
    pairs = {7: [3, 0], 8: [5], 9: [7, 8, 1]}
    path = tmp_path / f"neighbours.{form}"
    if form == "npy":
        table = np.full((10, 3), -1)
        for row, listed in pairs.items():
            table[row, : len(listed)] = listed
        np.save(path, table)
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        flat = [(a, c) for a, listed in pairs.items() for c in listed]
        columns = {"anchor": [a for a, _ in flat], "candidate": [c for _, c in flat], "score": [0.5] * len(flat)}
        pq.write_table(pa.table(columns), path)
    contrast, _ = catalogue.contrast_of("bank")
    detector = fn.Neighbours(path)
    detector.prepare(fn.Facts(rows=10, negatives=8))
    flagged = flags(detector.flag(contrast, CLOCK), contrast)
    for i, a in enumerate(contrast.anchors.sample.tolist()):
        expected = [c in pairs.get(a, []) for c in contrast.candidates.sample.tolist()]
        assert flagged[i].tolist() == expected
    with pytest.raises(fn.UserError, match="names row 9, but the data set has 5 images"):
        detector.prepare(fn.Facts(rows=5, negatives=8))


def pickled(path):
    np.save(path, np.array([{"an": "object"}], dtype=object), allow_pickle=True)


def truncated(path):
    np.save(path, np.zeros((100, 3), dtype=np.int64))
    path.write_bytes(path.read_bytes()[:200])


def archive(path):
    with open(path, "wb") as file:
        np.savez(file, table=np.zeros((2, 2), dtype=np.int64))


def claims_much(path):
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<i8", "fortran_order": False, "shape": (2**40, 2)})


def repeated(path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    zeros = pa.array(np.zeros(2000, dtype=np.int64))
    pq.write_table(pa.table({"anchor": zeros, "candidate": zeros}), path)


def words(path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"anchor": ["a"], "candidate": ["b"]}), path)


@pytest.mark.parametrize(
    ("name", "write", "said"),
    [
        ("a.npy", pickled, "cannot be read"),
        ("a.npy", truncated, "cannot be read"),
        ("a.npy", archive, "cannot be read"),
        ("a.npy", claims_much, "cannot be read"),
        ("a.npy", lambda path: path.write_bytes(b""), "cannot be read"),
        ("a.npy", lambda path: path.mkdir(), "there is no file"),
        ("a.parquet", lambda path: path.write_bytes(b"PAR1" * 9), "cannot be read"),
        ("a.parquet", repeated, "has 2,000 rows; give at most 1,000"),
        ("a.parquet", words, "the column 'anchor' of .* holds string; give numbers"),
    ],
)
def test_damaged_neighbours_are_answered_with_one_sentence(tmp_path, monkeypatch, name, write, said):
    monkeypatch.setattr(sys.modules["falseneg.detectors.neighbours"], "MOST_PAIRS", 1000)
    write(tmp_path / name)
    with pytest.raises(fn.UserError, match=said) as error:
        fn.Neighbours(tmp_path / name)
    assert "\n" not in str(error.value)


def test_a_row_far_out_of_range_takes_no_memory(tmp_path):
    np.save(tmp_path / "a.npy", np.full((2, 2), 2**62))
    with pytest.raises(fn.UserError, match="names row 4611686018427387904, but the data set has 5 images"):
        fn.Neighbours(tmp_path / "a.npy").prepare(fn.Facts(rows=5, negatives=8))


def test_all_of_any_of_and_levels():
    contrast, _ = catalogue.contrast_of("batch")
    above, best = fn.FixedThreshold(0.1), fn.SupportSet(top_k=2)
    a, b = (flags(d.flag(contrast, CLOCK), contrast) for d in (above, best))
    assert torch.equal(flags(fn.AllOf([above, best]).flag(contrast, CLOCK), contrast), a & b)
    assert torch.equal(flags(fn.AnyOf([above, best]).flag(contrast, CLOCK), contrast), a | b)

    class Levels(fn.Detector):
        def flag(self, contrast, clock):
            return fn.AboveThreshold(torch.tensor(0.0)), fn.NoPairs()

    first, second = fn.AnyOf([Levels(), best]).flag(contrast, CLOCK)
    assert torch.equal(flags(second, contrast), b)
    assert torch.equal(flags(first, contrast), flags(fn.AboveThreshold(torch.tensor(0.0)), contrast) | b)


def test_start_at_flags_nothing_before_but_the_inner_detector_learns():
    class Counting(fn.Detector):
        visits = 0

        def flag(self, contrast, clock):
            self.visits += 1
            return fn.AboveThreshold(torch.tensor(-2.0))

    contrast, _ = catalogue.contrast_of("batch")
    inner = Counting()
    detector = fn.StartAt(inner, at="20%")
    assert not flags(detector.flag(contrast, fn.Clock(19, 10, 10)), contrast).any()
    assert flags(detector.flag(contrast, fn.Clock(20, 10, 10)), contrast).any()
    assert inner.visits == 2


@pytest.mark.parametrize(
    "make, sentence",
    [
        (lambda: fn.SupportSet(threshold=1.5), "threshold is 1.5; it is a cosine"),
        (lambda: fn.SupportSet(threshold=float("nan")), "threshold is nan; it is a cosine"),
        (lambda: fn.SupportSet(top_k=0), "top_k is 0; give at least 1"),
        (lambda: fn.SupportSet(top_k=2, share=0.1), "give one"),
        (lambda: fn.SupportSet(share=1.0), "share is 1.0"),
        (lambda: fn.SupportSet(mean=True, space=None, top_k=1), "needs one"),
        (lambda: fn.SupportSet(top_k=30).prepare(fn.Facts(rows=9, negatives=16)), "top_k is 30, but .* 16 candidates"),
        (lambda: fn.SupportSet(top_k=16).prepare(fn.Facts(rows=9, negatives=16)), "top_k is 16, but .* 16 candidates"),
        (lambda: fn.SupportSet().prepare(fn.Facts(rows=9, negatives=16)), "give top_k, share or threshold"),
        (lambda: fn.BatchQuantile(alpha=0.0), "alpha is 0.0"),
        (lambda: fn.BatchQuantile().prepare(fn.Facts(rows=9, negatives=16)), "give alpha"),
        (lambda: fn.FixedThreshold(-1.01), "threshold is -1.01"),
        (lambda: fn.Oracle().prepare(fn.Facts(rows=9, negatives=16)), "no labels"),
        (lambda: fn.Neighbours("nowhere.npy"), "there is no file nowhere.npy"),
        (lambda: fn.AllOf([]), "the list of detectors is empty"),
        (lambda: fn.StartAt(fn.NoDetection(), at="soon"), "'soon' is not a duration"),
    ],
)
def test_bad_options_are_answered_with_one_sentence(make, sentence):
    with pytest.raises(fn.UserError, match=sentence):
        make()


def test_missing_space_and_part_name_what_there_is():
    contrast, _ = catalogue.contrast_of("batch")
    with pytest.raises(ValueError, match="no space 'guide' .*offers: support"):
        fn.FixedThreshold(0.5, space="guide").flag(contrast, CLOCK)
    with pytest.raises(ValueError, match="no part 'bank' .*offers: first, second"):
        fn.BatchQuantile(0.5, part="bank").flag(contrast, CLOCK)
