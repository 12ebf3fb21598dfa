"""GloFND: thresholds against plain loops, their convergence, and the faults of the released code that ours must not have.

The numbers in brackets are those of the list of faults that the tests were written from.
"""

from functools import partial

import catalogue
import pytest
import torch
from reference import global_loops, loops
from torch.nn.functional import normalize

import falseneg as fn

CLOCK = fn.Clock(step=0, steps_per_epoch=10, epochs=10)


def prepared(rows=40, contrasts=("views",), **options):
    detector = fn.GlobalThreshold(**options)
    detector.prepare(fn.Facts(rows=rows, negatives=10, contrasts=contrasts))
    return detector


def batch(samples, seed=0, dim=5, views=2, name="views", dtype=torch.float64):
    """A SimCLR contrast of images x views: random rows that resemble one another."""
    samples = torch.as_tensor(samples).repeat_interleave(views)
    z = catalogue.unit(len(samples), dim, seed=seed, dtype=torch.float64)
    z = normalize(z + 0.5 * z[:1], dim=1).to(dtype)
    anchors = fn.Embedded(z, samples)
    return fn.Contrast(name, anchors, anchors, z.new_ones(len(z), 1))


def negatives(contrast):
    """The samples of the anchors, and the cosines of each with its negatives."""
    z, samples = contrast.anchors.z, contrast.anchors.sample.tolist()
    sim = z @ contrast.candidates.z.T
    columns = [loops.negatives_of(i, samples, contrast.candidates.sample.tolist()) for i in range(len(z))]
    return samples, [sim[i, c].tolist() for i, c in enumerate(columns)]


def flagged_of(rule, contrast):
    n, m = len(contrast.anchors), len(contrast.candidates)
    flagged = rule.tile(slice(0, n), slice(0, m), (contrast.anchors.z @ contrast.candidates.z.T))
    samples = contrast.anchors.sample.tolist()
    columns = [loops.negatives_of(i, samples, contrast.candidates.sample.tolist()) for i in range(n)]
    return [flagged[i, c].tolist() for i, c in enumerate(columns)]


STEPS = {
    "adam": (fn.AdamStep(0.05), partial(global_loops.adam_step, rate=0.05)),
    "subgradient": (fn.GradientStep(0.3), partial(global_loops.subgradient_step, rate=0.3)),
    "projected": (fn.GradientStep(5.0), partial(global_loops.subgradient_step, rate=5.0)),
}
BATCHES = [[0, 1, 2, 3], [2, 5, 1, 6], [7, 2, 3, 0], [1, 2, 6, 8], [9, 2, 0, 1], [2, 3, 5, 1]]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("initial", [1.0, 0.4])
def test_update_then_flag_as_the_loop_does(step, initial):
    """Several batches, some samples often, some once; two views of a sample make one update."""
    ours, theirs = STEPS[step]
    detector, thresholds, states = prepared(alpha=0.3, step=ours, initial=initial), {}, {}
    for seed, samples in enumerate(BATCHES * 3):
        contrast = batch(samples, seed)
        rule = detector.flag(contrast, CLOCK)
        expected = global_loops.glofnd(thresholds, states, *negatives(contrast), 0.3, theirs, initial)
        assert flagged_of(rule, contrast) == expected
    held = detector.per_sample()["threshold"]
    assert held.isnan().tolist() == [row not in thresholds for row in range(40)]
    expected = torch.tensor([thresholds[row] for row in sorted(thresholds)])
    torch.testing.assert_close(held[sorted(thresholds)], expected, rtol=0, atol=1e-5)


def test_the_order_matters():
    """The check above can fail: flags of the thresholds before the update differ."""
    detector, contrast = prepared(alpha=0.3, initial=0.2, step=fn.GradientStep(0.5)), batch([0, 1, 2, 3])
    before = flagged_of(fn.AboveThreshold(torch.tensor(0.2)), contrast)
    assert flagged_of(detector.flag(contrast, CLOCK), contrast) != before


def test_bias_correction_counts_the_samples_own_updates():
    """[4] A sample that is first met late makes a whole first step, as long as the learning rate."""
    detector = prepared(alpha=0.3, initial=0.9, step=fn.AdamStep(0.05))
    for seed in range(30):
        detector.flag(batch([0, 1, 2, 3], seed), CLOCK)
    detector.flag(batch([4, 5, 1, 6]), fn.Clock(95, 10, 10))
    held = detector.per_sample()["threshold"]
    torch.testing.assert_close(held[[4, 5, 6]], torch.full((3,), 0.85), rtol=0, atol=1e-4)


def test_nothing_is_drawn_and_other_thresholds_stay():
    """[7] No seed of its own; [3] what is not in the batch keeps its threshold."""
    detector = prepared(alpha=0.3)
    detector.flag(batch([0, 1, 2, 3]), CLOCK)
    before, state = detector.per_sample()["threshold"], torch.get_rng_state()
    detector.flag(batch([2, 3, 4, 5], seed=1), CLOCK)
    after = detector.per_sample()["threshold"]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(after[:2], before[:2]) and not torch.equal(after[2:4], before[2:4])
    assert after[6:].isnan().all()


def test_the_quantile_costs_a_sweep_only_where_samples_are_new(monkeypatch):
    from falseneg.detectors import global_threshold

    sweeps = []
    for name in ("count_above", "row_quantile"):
        real = getattr(global_threshold, name)
        monkeypatch.setattr(global_threshold, name, lambda *a, name=name, real=real: sweeps.append(name) or real(*a))
    detector = prepared(alpha=0.3)
    detector.flag(batch([0, 1, 2, 3]), CLOCK)
    detector.flag(batch([3, 2, 1, 0]), CLOCK)
    detector.flag(batch([3, 2, 1, 9]), CLOCK)
    assert sorted(sweeps) == ["count_above"] * 3 + ["row_quantile"] * 2


def test_the_quantile_start_flags_alpha_and_is_the_mean_of_the_views():
    detector, contrast = prepared(alpha=0.25), batch(range(20))
    share = [mean_share for row in flagged_of(detector.flag(contrast, CLOCK), contrast) for mean_share in row]
    assert sum(share) / len(share) == pytest.approx(0.25, abs=0.03)
    assert detector.per_sample()["share_flagged"][:20].mean() == pytest.approx(0.25, abs=0.02)


def test_one_threshold_for_all():
    """Its gradient is the mean over all anchors, and it makes one update a step."""
    detector = prepared(alpha=0.3, shared=True, initial=1.0, step=fn.GradientStep(0.5))
    threshold = 1.0
    for seed, samples in enumerate(BATCHES):
        contrast = batch(samples, seed)
        _, cosines = negatives(contrast)
        gradient = 0.3 - global_loops.mean(global_loops.share_above(row, threshold) for row in cosines)
        threshold = min(max(threshold - 0.5 * gradient, -1), 1)
        rule = detector.flag(contrast, CLOCK)
        assert flagged_of(rule, contrast) == [[s > threshold for s in row] for row in cosines]
    assert detector.per_sample().keys() == {"threshold"}
    torch.testing.assert_close(detector.per_sample()["threshold"], torch.full((40,), threshold), rtol=0, atol=1e-5)
    at_quantile = prepared(alpha=0.25, shared=True)
    contrast = batch(range(20))
    flat = [f for row in flagged_of(at_quantile.flag(contrast, CLOCK), contrast) for f in row]
    assert sum(flat) / len(flat) == pytest.approx(0.25, abs=0.05)


def test_shared_first_then_each_its_own():
    detector = prepared(alpha=0.3, shared_until="20 steps", step=fn.GradientStep(0.5), initial=0.9)
    assert detector.per_sample()["threshold"].isnan().all()
    for step in range(20):
        detector.flag(batch([0, 1, 2, 3], step), fn.Clock(step, 10, 10))
    shared = detector.per_sample()["threshold"]
    assert len(shared.unique()) == 1 and shared[0] < 0.8
    assert detector.per_sample()["share_flagged"].isnan().all()
    contrast = batch([0, 5, 2, 7], 20)
    _, cosines = negatives(contrast)
    detector.flag(contrast, fn.Clock(20, 10, 10))
    own, start = detector.per_sample()["threshold"], float(shared[0])
    for place, sample in enumerate([0, 5, 2, 7]):
        share = global_loops.mean(global_loops.share_above(row, start) for row in cosines[2 * place : 2 * place + 2])
        assert float(own[sample]) == pytest.approx(start - 0.5 * (0.3 - share), abs=1e-5)
    assert own[1] == shared[1]


def test_start_alpha_and_wrappers():
    detector = prepared(alpha=fn.Linear(0.1, 0.5, "50%"), start="1 epoch")
    assert isinstance(detector.flag(batch([0, 1]), fn.Clock(9, 10, 10)), fn.NoPairs)
    assert detector.per_sample()["threshold"].isnan().all()
    assert detector.alpha_at(fn.Clock(25, 10, 10)) == pytest.approx(0.3) and detector.alpha_at(CLOCK) == 0.1
    few, many = prepared(rows=40, alpha=0.1), prepared(rows=40, alpha=detector.alpha)
    contrast = batch(range(20))
    assert sum(map(sum, flagged_of(few.flag(contrast, CLOCK), contrast))) < sum(
        map(sum, flagged_of(many.flag(contrast, fn.Clock(50, 10, 10)), contrast))
    )
    inside = fn.GlobalThreshold(alpha=0.3)
    later = fn.StartAt(inside, at="5 epochs")
    later.prepare(fn.Facts(rows=40, negatives=10))
    assert isinstance(later.flag(contrast, CLOCK), fn.NoPairs) and later.per_sample()["threshold"][:20].isfinite().all()


def test_classes_set_alpha():
    detector = fn.GlobalThreshold()
    detector.prepare(fn.Facts(rows=9, negatives=4, classes=5))
    assert detector.alpha == 0.2


def test_each_contrast_has_its_own_table():
    detector = prepared(alpha=0.3, contrasts=("view 1", "view 2"))
    detector.flag(batch([0, 1, 2], name="view 1"), CLOCK)
    held = detector.per_sample()
    assert held.keys() == {f"{what} view {v}" for v in (1, 2) for what in ("threshold", "share_flagged")}
    assert held["threshold view 1"][:3].isfinite().all() and held["threshold view 2"].isnan().all()


def test_over_a_bank_and_in_a_part_of_the_candidates():
    """λ of what MoCo compares with: keys of the batch and old keys, own ones excluded; and of the bank alone."""
    z, bank = catalogue.unit(4, 5, seed=0), catalogue.unit(60, 5, seed=1)
    sample = torch.arange(60) % 12
    anchors, candidates = fn.Embedded(z, torch.arange(4)), fn.Embedded(bank, sample)
    parts = {"batch": slice(0, 8), "bank": slice(8, 60)}
    contrast = fn.Contrast("views", anchors, candidates, z.new_ones(4, 1), parts=parts)
    sim = z @ bank.T
    for part, columns in ((None, range(60)), ("bank", range(8, 60))):
        detector = prepared(alpha=0.3, initial=0.1, part=part, step=fn.GradientStep(0.5))
        rule = detector.flag(contrast, CLOCK)
        tile = rule.tile(slice(0, 4), slice(0, 60), sim)
        for i in range(4):
            others = [j for j in columns if sample[j] != i]
            share = global_loops.share_above(sim[i, others].tolist(), 0.1)
            threshold = 0.1 - 0.5 * (0.3 - share)
            assert float(detector.per_sample()["threshold"][i]) == pytest.approx(threshold, abs=1e-6)
            assert tile[i, others].tolist() == [float(sim[i, j]) > threshold for j in others]
            assert part is None or not tile[i, :8].any()


def test_in_the_space_of_the_support_set():
    contrast, _ = catalogue.contrast_of("batch")
    detector = prepared(alpha=0.3, space="support", initial=0.2, step=fn.GradientStep(0.1))
    rule = detector.flag(contrast, CLOCK)
    assert rule.space is contrast.spaces["support"]
    with pytest.raises(fn.UserError, match="no space 'guide'"):
        prepared(alpha=0.3, space="guide").flag(contrast, CLOCK)


def test_anchors_without_negatives_learn_nothing():
    contrast, _ = catalogue.contrast_of("alone")
    assert (contrast.candidates.sample == 0).all()
    detector = prepared(alpha=0.3)
    detector.flag(contrast, CLOCK)
    held = detector.per_sample()
    assert held["threshold"].isnan().tolist() == [True, False, False] + [True] * 37
    assert held["threshold"][1:3].isfinite().all()


def test_in_evaluation_nothing_is_learned():
    detector, contrast = prepared(alpha=0.3), batch([0, 1, 2, 3])
    detector.flag(contrast, CLOCK)
    before = detector.per_sample()["threshold"]
    detector.eval()
    detector.flag(batch([2, 3, 4, 5], seed=1), CLOCK)
    assert torch.equal(detector.per_sample()["threshold"].nan_to_num(7), before.nan_to_num(7))


def test_saved_with_the_checkpoint():
    from falseneg.train.checkpoint import load_module

    options = {"alpha": 0.3, "shared_until": "5 steps"}
    first, second = prepared(**options), prepared(**options)
    for step in range(10):
        first.flag(batch([0, 1, 2, 3], step), fn.Clock(step, 10, 10))
    load_module(second, first.state_dict(), "detector")
    for detector in (first, second):
        detector.flag(batch([2, 3, 4, 5], 99), fn.Clock(10, 10, 10))
    held = [detector.per_sample() for detector in (first, second)]
    assert all(torch.equal(held[0][name].nan_to_num(7), held[1][name].nan_to_num(7)) for name in held[0])
    with pytest.raises(
        fn.UserError, match="another configuration: detector.tables.views.own.* is .*40.* there and .*41"
    ):
        load_module(prepared(rows=41, **options), first.state_dict(), "detector")


def test_nothing_flagged_is_no_success():
    """[6] A detector that flags nothing has recall 0, however rare false negatives are."""
    contrast = batch(range(20))
    counts = fn.confusion(contrast, fn.NoPairs(), torch.arange(20) % 10)
    assert int(counts.flagged) == int(counts.true_positives) == 0 and int(counts.false_negatives) > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_under_autocast_and_in_low_precision(dtype):
    contrast, detector = batch(range(6), dtype=dtype), prepared(alpha=0.3)
    with torch.autocast("cpu", torch.bfloat16):
        rule = detector.flag(contrast, CLOCK)
        stats = fn.negative_stats(contrast, torch.tensor(0.1), rule, fn.ELIMINATE)
    assert rule.threshold.dtype == torch.float32 and 0 < int(stats.flagged.sum()) < int(stats.count.sum()) / 2


@pytest.mark.parametrize(
    "make, sentence",
    [
        (lambda: fn.GlobalThreshold(alpha=0.0), "alpha is 0.0; it is a share"),
        (lambda: fn.GlobalThreshold(alpha=1.0), "alpha is 1.0"),
        (lambda: fn.GlobalThreshold(alpha=float("nan")), "alpha is nan"),
        (lambda: fn.GlobalThreshold(alpha=fn.Linear(0.1, 1.5)), "alpha is 1.5"),
        (lambda: fn.GlobalThreshold(initial=1.2), "initial is 1.2; it is a cosine"),
        (lambda: fn.GlobalThreshold(start="soon"), "'soon' is not a duration"),
        (lambda: fn.GlobalThreshold(shared=True, shared_until="10%"), "shared and shared_until contradict"),
        (lambda: fn.GlobalThreshold().prepare(fn.Facts(rows=9, negatives=4)), "give alpha, or the number of expected"),
        (lambda: fn.GlobalThreshold(alpha=0.1).flag(batch([0, 1]), CLOCK), "no table for the contrast 'views'"),
        (lambda: prepared(rows=3, alpha=0.1).flag(batch([0, 1, 3]), CLOCK), "row 3 is outside the table of 3 rows"),
        (lambda: prepared(alpha=0.1, part="bank").flag(batch([0, 1]), CLOCK), "no part 'bank'"),
        (lambda: fn.AdamStep(0.0), "AdamStep: learning_rate is 0.0; give a number above 0"),
        (lambda: fn.AdamStep(beta2=1.0), "beta2 is 1.0; give a number from 0 to below 1"),
        (lambda: fn.AdamStep(epsilon=0.0), "epsilon is 0.0"),
        (lambda: fn.GradientStep(momentum=-0.1), "momentum is -0.1"),
        (lambda: fn.Linear(0.1, float("inf")), "Linear: end is inf; give a finite number"),
        (lambda: fn.Cosine(0.1, 0.2, "half"), "'half' is not a duration"),
    ],
)
def test_bad_options_are_answered_with_one_sentence(make, sentence):
    with pytest.raises(fn.UserError, match=sentence):
        make()


def test_schedules():
    at = [fn.Clock(step, 10, 10) for step in (0, 25, 50, 100)]
    assert [fn.Linear(1.0, 0.2, "50%").at(clock) for clock in at] == pytest.approx([1, 0.6, 0.2, 0.2])
    assert [fn.Cosine(1.0, 0.2).at(clock) for clock in at] == pytest.approx([1, 0.2 + 0.4 * (1 + 0.5**0.5), 0.6, 0.2])
    assert fn.Linear(1.0, 0.2, "0 epochs").at(at[0]) == 0.2
