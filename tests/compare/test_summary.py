import json
import math

import numpy as np
import pytest

from falseneg.compare.summary import BASELINE, oracle_of, summarise

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


def test_differences_do_not_depend_on_the_order():
    rows = results()
    difference = summarise(rows[::-1])["fnc-attract"].versus_none["linear"]
    pairs = np.array(column(rows, "fnc-attract", "linear")) - np.array(column(rows, "none", "linear"))
    assert difference.mean == pytest.approx(pairs.mean())
    again = summarise(rows)["fnc-attract"].versus_none["linear"]
    assert (difference.low, difference.high) == pytest.approx((again.low, again.high))
    assert difference.verdict == "helped" and difference.pairs == 5


def test_only_the_primary_measure_makes_a_verdict():
    """Of a gain in kNN alone nothing is said, unless kNN was named before the runs."""
    rows = results()
    for row in rows:
        if row["variant"] == "fnc-attract":
            row["few_label"] = row["linear"] = next(
                other["few_label"] for other in rows if other["variant"] == "none" and other["seed"] == row["seed"]
            )
    usual, other = summarise(rows), summarise(rows, "knn")
    assert usual.primary == "few_label"
    assert usual["fnc-attract"].versus_none["knn"].verdict == "helped"
    assert usual.verdict(usual["fnc-attract"]) == "unclear"
    assert other.verdict(other["fnc-attract"]) == "helped"


def test_how_much_other_test_images_would_move():
    rows = [row | {"test_images": 360} for row in results()]
    summary = summarise(rows)
    mean = summary[BASELINE].figures["few_label"].mean
    error = math.sqrt(mean * (1 - mean) / 360)
    assert summary.test_images == 360 and summary.test_error == pytest.approx((error, math.sqrt(2) * error))
    rows[0]["test_images"] = 100
    assert summarise(rows).test_images is None and summarise(rows).test_error is None
    assert summarise(results()).test_error is None and summarise([]).test_error is None


def test_each_variant_meets_the_oracle_of_its_strategy():
    summary = summarise(results(noise=0.001))
    assert summary["fnc-attract"].gap_closed["knn"].oracle == "oracle"
    assert summary["fnc-eliminate"].gap_closed["knn"].oracle == "oracle-eliminate"
    assert summary["oracle"].gap_closed["knn"] is None
    assert summary["none"].gap_closed == {} and summary["none"].versus_none == {}
    assert summary["oracle"].versus_none["knn"].verdict == "helped"


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
    assert list(json.loads(text)) == ["primary", "test_images", "variants"]
    first = json.loads(text)["variants"][2]
    assert first["name"] == "fnc-attract"
    assert set(first) == {"name", "oracle", "figures", "versus_none", "gap_closed"}
    assert set(first["figures"]["knn"]) == {"mean", "sd", "defined", "seeds"}
