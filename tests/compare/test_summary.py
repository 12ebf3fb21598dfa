import json
import math

import numpy as np
import pytest
from scipy import stats

from falseneg.compare.summary import gap_closed, oracle_of, paired_difference, summarise

ATTRACT = {"positive": 1.0, "negative": 1.0, "renormalise": False}
OUTSIDE = {"positive": 1.0, "negative": 0.0, "renormalise": False}
ELIMINATE = {"positive": 0.0, "negative": 0.0, "renormalise": False}
IGNORE = {"positive": 0.0, "negative": 1.0, "renormalise": False}


def results(seeds=5, noise=0.01):
    random = np.random.default_rng(0)
    rows = []
    for seed in range(seeds):
        shared = random.normal(0, 0.03)  # what runs of one seed have in common
        for variant, strategy, oracle, level in (
            ("none", IGNORE, False, 0.70),
            ("fnc-eliminate", ELIMINATE, False, 0.71),
            ("fnc-attract", ATTRACT, False, 0.76),
            ("oracle", ATTRACT, True, 0.82),
            ("oracle-eliminate", ELIMINATE, True, 0.73),
        ):
            figures = {key: level + shared + random.normal(0, noise) for key in ("knn", "linear", "few_label")}
            detection = {"precision": None, "recall": 0.0} if variant == "none" else {"precision": 0.4, "recall": 0.3}
            row = {"variant": variant, "seed": seed, "strategy": strategy, "oracle": oracle, "seconds_per_epoch": 2.0}
            rows.append(row | figures | detection)
    return rows


def column(rows, variant, key):
    return [row[key] for row in rows if row["variant"] == variant]


def test_means_and_sample_deviations():
    rows = results()
    figure = summarise(rows)["fnc-attract"].figures["knn"]
    values = column(rows, "fnc-attract", "knn")
    mean = sum(values) / 5
    assert figure.mean == pytest.approx(mean)
    assert figure.sd == pytest.approx(math.sqrt(sum((v - mean) ** 2 for v in values) / 4))
    assert (figure.defined, figure.seeds) == (5, 5)


def test_undefined_figures_are_counted_not_filled_in():
    rows = results(seeds=3)
    attract = [row for row in rows if row["variant"] == "fnc-attract"]
    attract[0]["epochs_to_baseline"], attract[2]["epochs_to_baseline"] = 12, 14
    attract[1]["epochs_to_baseline"] = None
    summary = summarise(rows)
    reached = summary["fnc-attract"].figures["epochs_to_baseline"]
    assert (reached.mean, reached.defined, reached.seeds) == (13, 2, 3)
    precision = summary["none"].figures["precision"]
    assert (precision.mean, precision.sd, precision.defined, precision.seeds) == (None, None, 0, 3)
    assert summary["none"].figures["recall"].mean == 0


def test_variants_keep_their_order():
    names = [variant.name for variant in summarise(results()).variants]
    assert names == ["none", "fnc-eliminate", "fnc-attract", "oracle", "oracle-eliminate"]


def test_differences_are_paired_by_seed_whatever_the_order():
    rows = results()
    difference = summarise(rows[::-1])["fnc-attract"].versus_none["linear"]
    pairs = np.array(column(rows, "fnc-attract", "linear")) - np.array(column(rows, "none", "linear"))
    low, high = stats.ttest_1samp(pairs, 0).confidence_interval(0.95)
    assert (difference.mean, difference.low, difference.high) == pytest.approx((pairs.mean(), low, high))
    assert difference.verdict == "higher"
    unpaired = stats.ttest_ind(column(rows, "fnc-attract", "linear"), column(rows, "none", "linear"))
    width = np.diff(unpaired.confidence_interval(0.95))[0]
    assert high - low < width  # what the runs of a seed share is not noise


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [([0.1], "one seed"), ([0.1, 0.11, 0.1], "higher"), ([-0.1, -0.11, -0.1], "lower"), ([0.1, -0.1, 0.2], "unclear")],
)
def test_verdicts(differences, verdict):
    difference = paired_difference(dict(enumerate(differences)), dict.fromkeys(range(len(differences)), 0.0))
    assert difference.verdict == verdict
    assert difference.pairs == len(differences)


def test_only_seeds_of_both_are_compared():
    assert paired_difference({0: 0.5, 1: 0.9}, {1: 0.8, 2: 0.1}).mean == pytest.approx(0.1)
    assert paired_difference({0: 0.5}, {1: 0.8}) is None


def fieller_by_search(gains, room):
    """Every ratio that a paired t test does not reject at 5%, by trying a million of them."""
    ratios = np.linspace(-5, 5, 1_000_001)
    rest = np.array(gains)[:, None] - np.array(room)[:, None] * ratios
    t = rest.mean(axis=0) / (rest.std(axis=0, ddof=1) / math.sqrt(len(gains)))
    accepted = ratios[np.abs(t) <= stats.t.ppf(0.975, len(gains) - 1)]
    return accepted.min(), accepted.max()


def test_gap_closed_and_its_interval():
    rows = results()
    gap = summarise(rows)["fnc-attract"].gap_closed["few_label"]
    none = np.array(column(rows, "none", "few_label"))
    gains = np.array(column(rows, "fnc-attract", "few_label")) - none
    room = np.array(column(rows, "oracle", "few_label")) - none
    assert gap.value == pytest.approx(gains.mean() / room.mean())
    assert (gap.low, gap.high) == pytest.approx(fieller_by_search(gains, room), abs=2e-5)
    assert gap.low < gap.value < gap.high
    assert (gap.oracle, gap.pairs) == ("oracle", 5)


def test_fiellers_interval_covers_the_true_ratio_as_often_as_it_says():
    random = np.random.default_rng(1)
    hits = []
    for _ in range(600):
        gains, room = random.normal(0.03, 0.01, 4), random.normal(0.10, 0.01, 4)
        gap = gap_closed(dict(enumerate(gains)), dict.fromkeys(range(4), 0.0), dict(enumerate(room)), "oracle")
        hits.append(gap.low <= 0.3 <= gap.high)
    assert 0.92 < np.mean(hits) < 0.98


def base(room, gains=None):
    seeds = range(len(room))
    return dict(zip(seeds, gains or room, strict=True)), dict.fromkeys(seeds, 0.0), dict(zip(seeds, room, strict=True))


def test_gap_is_blank_where_the_oracle_is_not_clearly_better():
    for room in ([0.1, -0.1, 0.05], [-0.1, -0.11, -0.1], [0.0, 0.0, 0.0], [0.1]):
        assert gap_closed(*base(room), "oracle") is None
    # One-sided at 5%: t is 2.92 for three seeds; just above and just below it.
    for t, defined in ((2.93, True), (2.91, False)):
        room = [0.1 - d for d in (-0.1 * math.sqrt(3) / t, 0.0, 0.1 * math.sqrt(3) / t)]
        assert (gap_closed(*base(room), "oracle") is not None) == defined


def test_an_interval_without_bounds_is_left_out():
    room = [0.1 - d for d in (-0.1 * math.sqrt(3) / 3.5, 0.0, 0.1 * math.sqrt(3) / 3.5)]  # between 2.92 and 4.30
    gap = gap_closed(*base(room, [0.02, 0.05, 0.01]), "oracle")
    assert gap.value == pytest.approx(0.08 / 0.3)
    assert gap.low is None and gap.high is None


def test_each_variant_meets_the_oracle_of_its_strategy():
    summary = summarise(results(noise=0.001))
    assert summary["fnc-attract"].gap_closed["knn"].oracle == "oracle"
    assert summary["fnc-eliminate"].gap_closed["knn"].oracle == "oracle-eliminate"
    assert summary["oracle"].gap_closed["knn"] is None
    assert summary["none"].gap_closed == {} and summary["none"].versus_none == {}
    assert summary["oracle"].versus_none["knn"].verdict == "higher"


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [(ATTRACT, "a"), (OUTSIDE, "b"), (ELIMINATE | {"renormalise": True}, "c"), (IGNORE, None), (None, None)],
)
def test_the_same_strategy_is_preferred_and_the_same_treatment_will_do(strategy, expected):
    variants = {
        "none": [{"strategy": IGNORE, "oracle": False}],
        "a": [{"strategy": ATTRACT, "oracle": True}],
        "b": [{"strategy": OUTSIDE, "oracle": True}],
        "c": [{"strategy": ELIMINATE, "oracle": True}],
        "mine": [{"strategy": strategy, "oracle": False}],
    }
    assert oracle_of("mine", variants) == expected


def test_without_oracle_or_baseline_or_strategy_nothing_is_made_up():
    rows = [{k: v for k, v in row.items() if k not in ("strategy", "oracle")} for row in results()]
    assert summarise(rows)["fnc-attract"].gap_closed["knn"] is None
    alone = [row for row in results() if row["variant"] == "fnc-attract"]
    summary = summarise(alone)["fnc-attract"]
    assert summary.versus_none["knn"] is None and summary.gap_closed["knn"] is None
    assert summarise([]).variants == ()


def test_figures_that_are_not_finite_count_as_undefined():
    rows = results(seeds=3)
    rows[0]["knn"] = float("nan")
    summary = summarise(rows)
    assert summary["none"].figures["knn"].defined == 2
    assert summary["oracle"].versus_none["knn"].pairs == 2


def test_the_summary_is_plain_json():
    text = json.dumps(summarise(results()).to_json(), allow_nan=False)
    first = json.loads(text)["variants"][2]
    assert first["name"] == "fnc-attract"
    assert set(first) == {"name", "oracle", "figures", "versus_none", "gap_closed"}
    assert set(first["figures"]["knn"]) == {"mean", "sd", "defined", "seeds"}
