import re

import pytest

from falseneg.compare.summary import summarise
from falseneg.report.read import RunRecord
from falseneg.report.verdict import headline, judge, run_headline

STRATEGY = {"positive": 1.0, "negative": 1.0, "renormalise": False}


def results(seeds=4, **gains):
    """The baseline, and variants that gain so much on every accuracy; a pair is for kNN and for the others."""
    rows = []
    for name, gain in {"none": 0.0, **gains}.items():
        knn, others = gain if isinstance(gain, tuple) else (gain, gain)
        for seed in range(seeds):
            wobble = 0.004 * ((seed * 7 + sum(map(ord, name))) % 4 - 1.5)
            row = {"variant": name, "seed": seed, "strategy": STRATEGY, "oracle": name.startswith("oracle")}
            accuracies = {
                "knn": 0.6 + knn + wobble,
                "linear": 0.7 + others + wobble,
                "few_label": 0.5 + others + wobble,
            }
            rows.append(row | accuracies | {"precision": 0.4, "recall": 0.25, "chance": 0.1})
    return rows


def judged(name, **made):
    summary = summarise(results(**made))
    return judge(summary[name], summary)


@pytest.mark.parametrize(
    ("gain", "level"),
    [(0.05, "helped"), (-0.05, "hurt"), (0.001, "unclear"), ((0.05, -0.05), "hurt"), ((0.05, 0.0), "unclear")],
)
def test_levels(gain, level):
    """The pairs gain on kNN, which is secondary, and on few-label, which says the verdict."""
    assert judged("mine", mine=gain).level == level


def test_one_seed_or_no_baseline_says_nothing():
    assert judged("mine", seeds=1, mine=0.3).level == "unknown"
    alone = summarise([row for row in results(mine=0.3) if row["variant"] == "mine"])
    assert judge(alone["mine"], alone).level == "unknown"
    assert "no plain baseline" in headline(alone)


@pytest.mark.parametrize(
    ("gains", "expected"),
    [
        ({"a": 0.05}, "By few-label accuracy, a helped."),
        ({"a": -0.05}, "By few-label accuracy, a hurt."),
        ({"a": 0.05, "b": 0.06, "c": 0.0}, "By few-label accuracy, a and b helped; c made no clear difference."),
        ({"a": 0.0}, "By few-label accuracy, no method differed clearly from the plain baseline."),
        (
            {"a": 0.0, "oracle": 0.1},
            "By few-label accuracy, no method differed clearly from the plain baseline. True labels (oracle) helped, so there is something to gain.",
        ),
        (
            {"a": 0.05, "oracle": 0.0},
            "By few-label accuracy, a helped. Not even true labels made a clear difference; more seeds or longer training might show one.",
        ),
        (
            {"a": 0.05, "oracle": -0.1},
            "By few-label accuracy, a helped. Even with true labels (oracle), accuracy fell.",
        ),
        ({"a": (0.05, -0.05)}, "By few-label accuracy, a hurt."),
        ({"oracle": 0.1}, "True labels (oracle) helped, so there is something to gain."),
        ({}, "Only the plain baseline has finished so far."),
    ],
)
def test_headlines(gains, expected):
    said = headline(summarise(results(**gains)))
    assert re.sub(r" \([+−][\d.]+ points, [+−][\d.]+ to [+−][\d.]+\)", "", said) == expected


def test_a_headline_of_one_seed_does_not_judge():
    said = headline(summarise(results(seeds=1, a=0.5, oracle=0.5)))
    assert said.startswith("There is no verdict yet")


def test_cards_give_differences_detection_and_gap():
    found = judged("mine", mine=0.05, oracle=0.1)
    assert found.primary[:2] == ("few-label", "+5.0")
    assert [name for name, *_ in found.secondary] == ["kNN", "linear"]
    assert (
        found.detection
        == "40% of its flags were right at the last epoch (chance: 10%); it found 25% of the false negatives."
    )
    assert re.fullmatch(
        r"It achieves 50% of the gain from true labels \(oracle\) in few-label accuracy \(95% interval [\d.]+% to [\d.]+%\)\.",
        found.gap,
    )
    oracle = judged("oracle", mine=0.05, oracle=0.1)
    assert oracle.detection == "" and oracle.gap == ""


def line(epoch, precision, chance=0.1, share=0.05):
    return {"epoch": epoch, "precision": precision, "chance": chance, "share_flagged": share, "recall": 0.2}


@pytest.mark.parametrize(
    ("epochs", "words"),
    [
        (
            [line(1, 0.2), line(2, 0.4)],
            "40% of these flags were right, 4.0 times the chance level (10%). In epoch 1, 20% were right.",
        ),
        ([line(1, 0.1)], "no better than chance (10%)"),
        ([line(1, 0.05)], "no better than chance (10%)"),
        ([{"epoch": 1, "share_flagged": 0.05}], "Without labels, there is no measure"),
        ([{"epoch": 1, "share_flagged": 0.0, "chance": 0.1}], "Nothing was flagged: this"),
        (
            [{"epoch": 1, "share_flagged": 0.0, "graph agreement": 0.21}],
            "flagged, for two graphs made of different views agree on 21% of the pairs only: this is",
        ),
    ],
)
def test_what_is_said_of_one_run(epochs, words):
    said = run_headline(RunRecord("run", epochs=epochs, final={}))
    assert words in said and "finished" not in said


def test_an_unfinished_run_is_called_so():
    run = RunRecord("run", epochs=[line(3, 0.2)], settings={"epochs": 20})
    assert run_headline(run).startswith("This run has not finished: epoch 3 of 20 is the last one recorded.")


def test_the_headline_says_by_how_much_with_what_interval():
    said = headline(summarise(results(a=0.05, b=-0.05)))
    words = r"\(\+5\.0 points, \+[\d.]+ to \+[\d.]+\) helped; b \(−5\.0 points, −[\d.]+ to −[\d.]+\) hurt\."
    assert re.fullmatch(rf"By few-label accuracy, a {words}", said)


def test_a_primary_measure_that_was_not_taken_is_said():
    rows = [{key: value for key, value in row.items() if key != "few_label"} for row in results(a=0.05)]
    assert headline(summarise(rows)) == (
        "There is no verdict: few-label accuracy, the primary measure, was not measured."
    )
    assert "By kNN accuracy, a" in headline(summarise(rows, "knn"))


def test_a_share_that_is_not_known_is_said_in_words():
    rows = results(mine=0.01, oracle=0.03)
    for row in rows:
        row["few_label"] += {"mine": 0.025 * (-1) ** row["seed"]}.get(row["variant"], 0.0)
    summary = summarise(rows)
    assert summary["mine"].gap_closed["few_label"].low is None
    assert judge(summary["mine"], summary).gap == (
        "How much of the gain from true labels (oracle) it achieves is not known: it takes more seeds to say."
    )
