"""The ring of keys against a plain loop."""

import catalogue
import pytest
import torch
from reference import moco_loops

import falseneg as fn


def batches(sizes, dim=3):
    """Embeddings whose numbers say which they are: sample 100, 101, … and row 1000, 1001, …"""
    first = 0
    for size in sizes:
        number = torch.arange(first, first + size)
        z = number[:, None] + torch.arange(dim) / 10
        yield fn.Embedded(z, 100 + number, 1000 + number)
        first += size


@pytest.mark.parametrize("length", [1, 5, 7, 8, 20, 100])
def test_contents_and_order_over_many_uneven_steps(length):
    sizes = [3, 1, 5, 0, 4, 7, 2, 6, 7, 1, 3, 8, 5]  # also more than there are places
    bank, steps = fn.MemoryBank(length, 3), []
    for keys in batches(sizes):
        bank.enqueue(keys)
        steps.append(list(zip(keys.z.tolist(), keys.sample.tolist(), keys.row.tolist(), strict=True)))
        expected = [entry for entry in moco_loops.ring(length, steps) if entry is not None]
        held = bank.contents()
        assert len(held) == min(length, sum(len(step) for step in steps))
        found = zip(held.z.tolist(), held.sample.tolist(), held.row.tolist(), strict=True)
        assert [(pytest.approx(z), sample, row) for z, sample, row in expected] == list(found)


def test_a_part_filled_bank_yields_filled_rows_only():
    bank = fn.MemoryBank(6, 3)
    assert len(bank.contents()) == 0
    bank.enqueue(next(batches([4])))
    assert bank.contents().sample.tolist() == [100, 101, 102, 103]


def test_without_rows_the_sample_is_the_row():
    bank = fn.MemoryBank(2, 2)
    bank.enqueue(fn.Embedded(torch.ones(2, 2), torch.tensor([7, 8])))
    assert bank.contents().row.tolist() == [7, 8]


def test_the_state_is_the_whole_bank():
    bank, again = fn.MemoryBank(5, 3), fn.MemoryBank(5, 3)
    steps = list(batches([4, 3, 2]))
    for keys in steps[:2]:
        bank.enqueue(keys)
    again.load_state_dict(bank.state_dict())
    for one in (bank, again):
        one.enqueue(steps[2])
    for name in ("z", "sample", "row"):
        assert torch.equal(getattr(bank.contents(), name), getattr(again.contents(), name))


def test_stored_keys_have_no_gradient_and_the_type_of_the_bank():
    bank = fn.MemoryBank(4, 6).double()
    bank.enqueue(fn.Embedded(catalogue.unit(3, 6, seed=1, dtype=torch.float32).requires_grad_(), torch.arange(3)))
    assert bank.contents().z.dtype == torch.float64 and not bank.contents().z.requires_grad


def test_cleared():
    bank = fn.MemoryBank(4, 3)
    bank.enqueue(next(batches([3])))
    bank.clear()
    assert len(bank.contents()) == 0


def test_refusals():
    for length in (0, 2**31 + 1, 10**20):
        with pytest.raises(fn.UserError, match=f"length is {length}; give .* from 1 to 2,147,483,648"):
            fn.MemoryBank(length, 3)
