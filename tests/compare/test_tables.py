import re

import pytest

from falseneg.compare.differences import Difference, GapClosed
from falseneg.compare.summary import Figure, summarise
from falseneg.compare.tables import _gap, _number, _points, difference_words, of_test_images, tables, write_figure

STRATEGY = {"positive": 1.0, "negative": 1.0, "renormalise": False}
LEVELS = {"none": 0.5, "mine": 0.6, "oracle": 0.7}


def rows(seeds=3):
    return [
        {"variant": name, "seed": seed, "knn": level + 0.001 * seed * (1 + (name == "mine")), "share_flagged": 0.0123}
        | {"strategy": STRATEGY, "oracle": name == "oracle", "peak_memory_mib": 1234.4, "seconds_per_epoch": 2.345}
        for name, level in LEVELS.items()
        for seed in range(seeds)
    ]


@pytest.mark.parametrize(
    ("figure", "text"),
    [
        (Figure(0.5, 0.0123, 3, 3), "50.0 ± 1.2"),
        (Figure(0.5, None, 1, 1), "50.0"),
        (Figure(0.5, 0.01, 2, 3), "50.0 ± 1.0 (2 of 3)"),
        (Figure(None, None, 0, 3), ""),
    ],
)
def test_figures_as_text(figure, text):
    assert write_figure(figure, _points) == text


def test_a_deviation_is_written_like_its_mean():
    assert write_figure(Figure(1234.4, 5.678, 3, 3), _number) == "1,234 ± 6"
    assert write_figure(Figure(2.345, 0.5, 3, 3), _number) == "2.35 ± 0.50"


def test_tables_have_a_cell_for_every_column_and_blanks_where_undefined():
    by_title = {table.title: table for table in tables(summarise(rows(), "knn"))}
    assert list(by_title) == ["Verdict", "Accuracy", "Gap closed", "Detection", "Cost"]
    for table in by_title.values():
        assert {len(row) for row in table.rows} == {len(table.columns)}
    assert by_title["Verdict"].columns == ("variant", "kNN − none", "95% interval", "verdict")
    assert by_title["Verdict"].rows[1] == ("oracle", "+20.0", "+20.0 to +20.0", "helped")
    assert by_title["Accuracy"].rows[1] == ("mine", "60.2 ± 0.2", "", "")
    assert by_title["Detection"].rows[0] == ("none", "", "", "", "1.23 ± 0.00", "")
    assert by_title["Cost"].rows[2] == ("oracle", "2.35 ± 0.00", "1,234 ± 0", "", "")


def test_the_gap_is_shown_of_methods_only():
    gap = next(table for table in tables(summarise(rows())) if table.title == "Gap closed")
    assert [row[0] for row in gap.rows] == ["mine"]
    assert re.fullmatch(r"5[01] \(\d+ to \d+\)", gap.rows[0][1])
    assert gap.some
    one_seed = next(table for table in tables(summarise(rows(seeds=1))) if table.title == "Gap closed")
    assert one_seed.rows == (("mine", "", "", ""),) and not one_seed.some


def test_differences_and_gaps_in_words():
    assert difference_words(Difference(-0.012, -0.03, 0.006, 4)) == ("−1.2", "−3.0 to +0.6")
    assert difference_words(Difference(0.015, 0.0003, 0.03, 4)) == ("+1.5", "+0.03 to +3.0")  # helped: not "+0.0"
    assert difference_words(Difference(-0.0004, -0.004, 0.0, 4)) == ("−0.04", "−0.4 to +0.0")
    assert difference_words(Difference(0.012, None, None, 1)) == ("+1.2", "one seed")
    assert _gap(GapClosed(0.4, 0.1, 0.8, "oracle", 3)) == "40 (10 to 80)"
    assert _gap(GapClosed(0.4, None, None, "oracle", 3)) == "not known" and _gap(None) == ""


def test_a_measure_that_was_not_taken_has_no_verdict():
    verdict = tables(summarise(rows()))[0]
    assert verdict.rows == (("mine", "", "", ""), ("oracle", "", "", "")) and not verdict.some
    one_seed = tables(summarise(rows(seeds=1), "knn"))[0]
    assert one_seed.rows[0] == ("mine", "+10.0", "one seed", "no verdict")


def test_what_the_intervals_leave_out_is_said():
    said = of_test_images(summarise([row | {"test_images": 360} for row in rows()], "knn"))
    assert said.startswith("They are over seeds, on the same 360 test images.")
    assert "about ±2.6 points (one standard error), and a difference by at most ±3.7" in said
    assert of_test_images(summarise(rows(), "knn")) == ""
