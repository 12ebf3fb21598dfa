import pytest
import torch

import falseneg as fn


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
    gathered = table.gather_by_row(torch.tensor([4, 0, 4, 1]), values)
    assert gathered.number.tolist() == [2, 0, 2, 1] and gathered.known.tolist() == [True, False, True, True]
    mean = gathered.mean("a")
    assert mean[[0, 2, 3]].tolist() == [2.0, 2.0, 4.0] and mean[1].isnan() and mean.dtype == torch.float64
    table.update(gathered, {"u": mean + 5})
    assert table.column("u").tolist() == [0.0, 9.0, 0.0, 0.0, 7.0] and table.visits.tolist() == [0, 1, 0, 0, 1]
    nothing = table.gather_by_row(torch.tensor([0, 1]), {"a": torch.full((2,), torch.nan)})
    table.update(nothing, {"u": nothing.mean("a")})
    assert table.column("u").tolist() == [0.0, 9.0, 0.0, 0.0, 7.0] and table.visits.tolist() == [0, 1, 0, 0, 1]


def test_what_is_not_known_of_one_view_takes_nothing_from_the_other():
    table = fn.SampleTable(3, {"u": 0.0})
    gathered = table.gather_by_row(torch.tensor([2, 1, 2]), {"a": torch.tensor([torch.nan, 6.0, 3.0])})
    table.update(gathered, {"u": gathered.mean("a")})
    assert table.column("u").tolist() == [0.0, 6.0, 3.0] and table.visits.tolist() == [0, 1, 1]
    torch.testing.assert_close(gathered.log_mean("a"), torch.tensor([3.0, 6.0, 3.0], dtype=torch.float64))


def test_log_mean_far_beyond_what_an_exponential_can_hold():
    logs = torch.tensor([5000.0, 1.0, 5000.0, -9000.0, 0.0, 3.0], dtype=torch.float64)
    gathered = fn.SampleTable(9, {"u": 0.0}).gather_by_row(torch.tensor([7, 8, 7, 0, 2, 8]), {"a": logs})
    of_two = torch.tensor([1.0, 3.0], dtype=torch.float64).exp().mean().log().item()
    expected = torch.tensor([5000.0, of_two, 5000.0, -9000.0, 0.0, of_two], dtype=torch.float64)
    torch.testing.assert_close(gathered.log_mean("a"), expected)


def test_a_table_is_complete_when_every_line_was_visited_and_not_for_ever():
    table, empty = fn.SampleTable(3, {"u": 0.0}), fn.SampleTable(3, {"u": 0.0}).state_dict()
    for rows, complete in (([0, 1], False), ([2, 2], True), ([0], True)):
        table.write(torch.tensor(rows), {"u": torch.ones(len(rows))})
        table.check_complete()
        assert table.complete is complete
    table.load_state_dict(empty)
    assert table.complete is False
