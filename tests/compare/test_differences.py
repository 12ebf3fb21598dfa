"""The model of variants and seeds: against loops and distributions of other making, and by simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from falseneg.compare.blocks import EPSILON, critical_value, fit, paired
from falseneg.compare.differences import Differences

METHODS = ("a", "b", "c", "d")


def cells(values, names=("none", *METHODS)):
    """From an array of variants and seeds; NaN is a run that is missing."""
    return {
        name: {seed: float(value) for seed, value in enumerate(row) if not math.isnan(value)}
        for name, row in zip(names, values, strict=True)
    }


def drawn(spreads, seeds, random, effects=0.0):
    """Accuracies: what runs of one seed share, and errors of each variant's own spread, in points."""
    shared = random.normal(0, 2.0, seeds)
    noise = random.normal(0, 1, (len(spreads), seeds)) * np.array(spreads)[:, None]
    return 0.9 + 0.01 * (shared + noise + np.reshape(effects, (-1, 1)))


def test_complete_blocks_are_a_two_way_analysis_of_variance():
    values = drawn([1.0] * 5, 4, np.random.default_rng(0), effects=[0, 1, 2, 0, -1])
    model = fit(cells(values), "none", METHODS)
    residuals = values - values.mean(0) - values.mean(1, keepdims=True) + values.mean()
    assert model.freedom == 4 * 3 and model.complete
    assert model.error == pytest.approx((residuals**2).sum() / 12)
    assert model.gain == pytest.approx((values - values[0]).mean(1))
    expected = (np.eye(5) + 1) / 4
    expected[0] = expected[:, 0] = 0
    assert model.unit == pytest.approx(expected)  # 2/S and 1/S


def test_missing_runs_are_estimated_by_least_squares():
    values = drawn([1.0] * 3, 4, np.random.default_rng(1))
    values[1, 3] = values[2, 0] = values[0, 2] = np.nan
    model = fit(cells(values, ("none", "a", "b")), "none", ("a", "b"))
    rows, columns = np.nonzero(~np.isnan(values))
    design = np.concatenate([np.eye(3)[rows][:, 1:], np.eye(4)[columns]], axis=1)  # the baseline's effect is 0
    found, rest, rank, _ = np.linalg.lstsq(design, values[rows, columns], rcond=None)
    assert model.gain[1:] == pytest.approx(found[:2]) and not model.complete
    assert model.freedom == len(rows) - rank == 3
    assert model.error == pytest.approx(rest[0] / 3)
    assert model.unit[1:, 1:] == pytest.approx(np.linalg.inv(design.T @ design)[:2, :2])


def test_a_variant_with_fewer_seeds_has_a_wider_interval():
    values = drawn([0.5] * 5, 6, np.random.default_rng(2))
    values[2, 2:] = np.nan
    differences = Differences(cells(values), "none", METHODS, ())
    short, whole = differences.of("b"), differences.of("a")
    assert (short.pairs, whole.pairs) == (2, 6)
    assert short.high - short.low > whole.high - whole.low


@pytest.mark.parametrize(("comparisons", "freedom"), [(1, 1), (1, 3), (2, 5), (4, 8), (4, 2.5), (6, 30), (9, 120)])
def test_the_critical_value_is_that_of_the_multivariate_t(comparisons, freedom):
    found = critical_value(comparisons, freedom, True)
    if comparisons == 1:
        assert found == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-4)
    shape = (np.eye(comparisons) + 1) / 2
    box = np.full(comparisons, found)
    inside = stats.multivariate_t(shape=shape, df=freedom).cdf(box, lower_limit=-box, random_state=0, maxpts=200_000)
    assert inside == pytest.approx(0.95, abs=6e-4)


@pytest.mark.parametrize(
    ("comparisons", "freedom", "table"), [(2, 5, 3.03), (4, 60, 2.51), (9, 20, 2.95), (3, 10, 2.76)]
)
def test_the_critical_value_is_that_of_dunnetts_table(comparisons, freedom, table):
    assert round(critical_value(comparisons, freedom, True), 2) == table


def test_unknown_correlations_widen_the_interval():
    assert critical_value(4, 12, False) > critical_value(4, 12, True)
    assert critical_value(1, 12, False) == pytest.approx(critical_value(1, 12, True), rel=1e-5)


def test_one_comparison_is_the_paired_t_test():
    values = drawn([1.0, 2.0], 5, np.random.default_rng(3), effects=[0, 1])
    found = Differences(cells(values, ("none", "a")), "none", ("a",), ()).of("a")
    low, high = stats.ttest_rel(values[1], values[0]).confidence_interval(0.95)
    assert (found.mean, found.low, found.high) == pytest.approx((np.mean(values[1] - values[0]), low, high), rel=1e-4)


def test_what_runs_of_a_seed_share_is_not_noise():
    random = np.random.default_rng(4)
    values = drawn([0.1] * 5, 4, random)
    shifted = values + random.normal(0, 0.1, 4)
    for name in METHODS:
        one, other = (Differences(cells(each), "none", METHODS, ()).of(name) for each in (values, shifted))
        assert (one.mean, one.low, one.high) == pytest.approx((other.mean, other.low, other.high), abs=1e-12)


def test_the_error_is_the_largest_of_three_estimates():
    values = drawn([1, 0.1, 0.1, 0.1, 4], 6, np.random.default_rng(5))
    differences = Differences(cells(values), "none", METHODS, ())
    pooled = fit(cells(values), "none", METHODS).error
    own = {name: np.var(paired(cells(values), "none", name), ddof=1) / 2 for name in METHODS}
    critical = critical_value(4, 20 * EPSILON, True)
    for name, expected in (("d", own["d"]), ("a", max(pooled, np.mean(list(own.values()))))):
        found = differences.of(name)
        assert found.high - found.low == pytest.approx(2 * critical * math.sqrt(2 / 6 * expected))
    assert own["d"] > pooled > own["a"]


def test_oracles_do_not_touch_the_methods():
    random = np.random.default_rng(6)
    values = drawn([1] * 5, 4, random)
    names = ("none", *METHODS, "oracle", "other")
    more = np.concatenate([values, drawn([0.1, 9], 4, random)])
    alone = Differences(cells(values), "none", METHODS, ())
    beside = Differences(cells(more, names), "none", METHODS, ("oracle", "other"))
    for name in METHODS:
        assert (beside.of(name).low, beside.of(name).high) == pytest.approx((alone.of(name).low, alone.of(name).high))


@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_the_same_accuracies_are_no_difference(seeds):
    """A detector that never flags trains the baseline's own weights: rounding must not say that it helped."""
    column = np.random.default_rng(7).uniform(0.8, 0.9, seeds)
    values = np.stack([column] * 5)
    for name in METHODS:
        found = Differences(cells(values), "none", METHODS, ()).of(name)
        assert found.mean == 0 and found.verdict == ("unknown" if seeds == 1 else "unclear")


def old_verdicts(of):
    """What was said before: a paired t test of each accuracy of each variant, with its own error."""
    return [
        stats.ttest_rel(list(of[name].values()), list(of["none"].values())).pvalue < 0.05
        for name in of
        if name != "none"
    ]


def new_verdicts(of):
    differences = Differences(of, "none", METHODS, ())
    return [differences.of(name).verdict in ("helped", "hurt") for name in METHODS]


@pytest.mark.parametrize("spreads", [(1, 1, 1, 1, 1), (1.4, 1.2, 2.6, 0.9, 1.3), (0.9, 0.3, 2.6, 0.9, 0.3)])
@pytest.mark.parametrize("seeds", [2, 3, 6])
def test_between_equal_methods_a_verdict_is_rare(spreads, seeds):
    """At most 5% of the comparisons: 400 of them, so at most 32 (three standard errors above 20)."""
    random = np.random.default_rng(seeds)
    made = [cells(drawn(spreads, seeds, random)) for _ in range(400)]
    assert sum(any(new_verdicts(of)) for of in made) <= 32
    assert sum(any(old_verdicts(of)) for of in made) > 45  # which the former test does not pass


def fieller_by_search(gains, room, variance, seeds, freedom):
    """Every ratio r for which d − r·o is not clearly other than 0, by trying a million of them."""
    ratios = np.linspace(-5, 5, 1_000_001)
    deviation = np.sqrt(variance * (2 - 2 * ratios + 2 * ratios**2) / seeds)
    accepted = ratios[np.abs(gains - ratios * room) <= stats.t.ppf(0.975, freedom) * deviation]
    return accepted.min(), accepted.max()


def test_the_gap_closed_has_fiellers_interval_with_the_pooled_error():
    values = drawn([1] * 5 + [0.5], 6, np.random.default_rng(8), effects=[0, 2, 2, 0, 0, 6])
    of = cells(values, ("none", *METHODS, "oracle"))
    differences = Differences(of, "none", METHODS, ("oracle",))
    gap, gain = differences.gap_closed("a", "oracle"), differences.of("a")
    assert gap.value == pytest.approx(gain.mean / differences.of("oracle").mean)
    freedom = 20 * EPSILON
    variance = ((gain.high - gain.low) / 2 / critical_value(4, freedom, True)) ** 2 * 6 / 2
    expected = fieller_by_search(gain.mean, differences.of("oracle").mean, variance, 6, freedom)
    assert (gap.low, gap.high) == pytest.approx(expected, abs=2e-5)
    assert (gap.oracle, gap.pairs) == ("oracle", 6)


def test_the_gaps_interval_covers_the_true_share():
    random = np.random.default_rng(9)
    hits = []
    for _ in range(300):
        values = drawn([1.4, 1.2, 2.6, 0.9, 1.3, 0.6], 5, random, effects=[0, 2, 2, 2, 2, 8])
        differences = Differences(cells(values, ("none", *METHODS, "oracle")), "none", METHODS, ("oracle",))
        gaps = [differences.gap_closed(name, "oracle") for name in METHODS]
        hits += [gap.low <= 0.25 <= gap.high for gap in gaps if gap is not None and gap.low is not None]
    assert len(hits) > 600 and np.mean(hits) > 0.94


def test_a_gap_is_blank_where_the_oracle_is_not_clearly_better():
    for oracle in (0.0, -5.0):
        values = drawn([1] * 5 + [1], 4, np.random.default_rng(10), effects=[0, 2, 0, 0, 0, oracle])
        differences = Differences(cells(values, ("none", *METHODS, "oracle")), "none", METHODS, ("oracle",))
        assert differences.of("oracle").verdict != "helped" and differences.gap_closed("a", "oracle") is None


@pytest.mark.parametrize(("noise", "known"), [(0.2, True), (2.5, False)])
def test_an_interval_as_wide_as_the_gap_is_not_known(noise, known):
    """3.9 ± .3 of 5 points is a share; with a spread of half the gap the interval runs over all of it."""
    values = drawn([noise] * 5 + [0.01], 3, np.random.default_rng(11), effects=[0, 4, 0, 0, 0, 5])
    values[5] = values[0] + 0.05 + np.array([0, 1e-4, -1e-4])
    differences = Differences(cells(values, ("none", *METHODS, "oracle")), "none", METHODS, ("oracle",))
    gap = differences.gap_closed("a", "oracle")
    assert (gap.low is not None) == (gap.high is not None) == known
    assert math.isfinite(gap.value) and (not known or gap.high - gap.low <= 1)


def test_without_a_seed_in_common_there_is_no_difference():
    values = drawn([1] * 5, 4, np.random.default_rng(12))
    of = cells(values)
    of["a"] = {99: 0.5}
    differences = Differences(of, "none", METHODS, ())
    assert differences.of("a") is None and differences.of("b").pairs == 4
    del of["none"]
    assert Differences(of, "none", METHODS, ()).of("b") is None
