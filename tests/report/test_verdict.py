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


@pytest.mark.parametrize(
    ("gain", "level"),
    [(0.05, "helped"), (-0.05, "hurt"), (0.001, "unclear"), ((0.05, -0.05), "mixed"), ((0.05, 0.0), "helped")],
)
def test_levels(gain, level):
    assert judge(summarise(results(mine=gain))["mine"]).level == level


def test_one_seed_or_no_baseline_says_nothing():
    assert judge(summarise(results(seeds=1, mine=0.3))["mine"]).level == "unknown"
    alone = [row for row in results(mine=0.3) if row["variant"] == "mine"]
    assert judge(summarise(alone)["mine"]).level == "unknown"
    assert "no plain baseline" in headline(summarise(alone))


@pytest.mark.parametrize(
    ("gains", "expected"),
    [
        ({"a": 0.05}, "a helped."),
        ({"a": -0.05}, "a hurt."),
        ({"a": 0.05, "b": 0.06, "c": 0.0}, "a and b helped; c made no clear difference."),
        ({"a": 0.0}, "No method differed clearly from the plain baseline."),
        (
            {"a": 0.0, "oracle": 0.1},
            "No method differed clearly from the plain baseline. With true labels (oracle) there was something to win.",
        ),
        (
            {"a": 0.05, "oracle": 0.0},
            "a helped. Not even true labels made a clear difference: to see one would take more seeds or a longer training.",
        ),
        ({"a": 0.05, "oracle": -0.1}, "a helped. Even with true labels (oracle) accuracy fell."),
        ({"a": (0.05, -0.05)}, "a helped in one measure and hurt in another."),
        ({"oracle": 0.1}, "With true labels (oracle) there was something to win."),
        ({}, "Only the plain baseline has finished so far."),
    ],
)
def test_headlines(gains, expected):
    assert headline(summarise(results(**gains))) == expected


def test_a_headline_of_one_seed_does_not_judge():
    said = headline(summarise(results(seeds=1, a=0.5, oracle=0.5)))
    assert "cannot be told" in said and "helped cannot" in said


def test_cards_give_differences_detection_and_gap():
    judged = judge(summarise(results(mine=0.05, oracle=0.1))["mine"])
    assert judged.differences[0][:2] == ("kNN", "+5.0")
    assert (
        judged.detection
        == "40% of its flags were right at the last epoch (by chance 10%); it found 25% of the false negatives."
    )
    assert judged.gap.startswith("Of what true labels gain (oracle) it reaches 50% on kNN")
    oracle = judge(summarise(results(mine=0.05, oracle=0.1))["oracle"])
    assert oracle.detection == "" and oracle.gap == ""


def line(epoch, precision, chance=0.1, share=0.05):
    return {"epoch": epoch, "precision": precision, "chance": chance, "share_flagged": share, "recall": 0.2}


@pytest.mark.parametrize(
    ("epochs", "words"),
    [
        (
            [line(1, 0.2), line(2, 0.4)],
            "40% of these flags were right, 4.0 times what chance gives (10%). In epoch 1 it was 20%.",
        ),
        ([line(1, 0.1)], "no better than chance (10%)"),
        ([line(1, 0.05)], "no better than chance (10%)"),
        ([{"epoch": 1, "share_flagged": 0.05}], "without labels it cannot be told"),
        ([{"epoch": 1, "share_flagged": 0.0, "chance": 0.1}], "Nothing was flagged"),
    ],
)
def test_what_is_said_of_one_run(epochs, words):
    said = run_headline(RunRecord("run", epochs=epochs, final={}))
    assert words in said and "finished" not in said


def test_an_unfinished_run_is_called_so():
    run = RunRecord("run", epochs=[line(3, 0.2)], settings={"epochs": 20})
    assert run_headline(run).startswith("This run has not finished: epoch 3 of 20 is the last on record.")
