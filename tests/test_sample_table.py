import pytest
import torch

import falseneg as fn
from falseneg.sample_table import log_mean_of_lines


def test_views_of_one_row_are_averaged_and_count_as_one_visit():
    """Trap 5: two views write one row; the mean is explicit, not the last to arrive."""
    table = fn.SampleTable(4, {"u": 0.0, "threshold": 1.0})
    table.write(torch.tensor([2, 0, 2]), {"u": torch.tensor([1.0, 5.0, 4.0])})
    assert table.read("u", torch.tensor([0, 1, 2])).tolist() == [5.0, 0.0, 2.5]
    assert table.read("threshold", torch.arange(4)).tolist() == [1.0] * 4
    assert table.visits.tolist() == [1, 0, 1, 0]


def test_saved_with_the_checkpoint():
    table = fn.SampleTable(3, {"u": 0.0})
    table.write(torch.tensor([1]), {"u": torch.tensor([0.25])})
    other = fn.SampleTable(3, {"u": 0.0})
    other.load_state_dict(table.state_dict())
    assert other.read("u", torch.arange(3)).tolist() == [0.0, 0.25, 0.0]
    assert other.visits.tolist() == [0, 1, 0]


def test_bad_rows_and_columns():
    table = fn.SampleTable(3, {"u": 0.0})
    for bad in (3, -1):
        with pytest.raises(fn.UserError, match=f"row {bad} is outside the table of 3 rows"):
            table.read("u", torch.tensor([0, bad]))
    with pytest.raises(KeyError, match="it has u"):
        table.read("v", torch.tensor([0]))
    with pytest.raises(fn.UserError, match="0 rows"):
        fn.SampleTable(0, {"u": 0.0})


def test_values_of_a_line_together_without_what_is_not_known():
    table = fn.SampleTable(5, {"u": 0.0})
    values = {"a": torch.tensor([1.0, 2.0, 3.0, 4.0]), "b": torch.tensor([1.0, torch.nan, 0.0, 0.0])}
    lines, place, found = table.together(torch.tensor([4, 0, 4, 1]), values)
    assert lines.tolist() == [1, 4] and place.tolist() == [1, 1, 0]
    assert found["a"].tolist() == [1.0, 3.0, 4.0] and found["a"].dtype == torch.float64
    table.put(lines, {"u": torch.tensor([7.0, 8.0])})
    assert table.column("u").tolist() == [0.0, 7.0, 0.0, 0.0, 8.0] and table.visits.tolist() == [0, 1, 0, 0, 1]
    nothing = table.together(torch.tensor([0, 1]), {"a": torch.full((2,), torch.nan)})
    assert len(nothing[0]) == len(nothing[1]) == len(nothing[2]["a"]) == 0


def test_log_mean_far_beyond_what_an_exponential_can_hold():
    logs, place = torch.tensor([5000.0, 5000.0, -9000.0, 0.0], dtype=torch.float64), torch.tensor([0, 0, 1, 2])
    expected = torch.tensor([5000.0, -9000.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(log_mean_of_lines(logs, place, 3), expected)
    uneven = log_mean_of_lines(torch.tensor([1.0, 3.0], dtype=torch.float64), torch.tensor([0, 0]), 1)
    torch.testing.assert_close(uneven, torch.tensor([1.0, 3.0], dtype=torch.float64).exp().mean()[None].log())
