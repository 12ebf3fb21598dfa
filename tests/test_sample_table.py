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
