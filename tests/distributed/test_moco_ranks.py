"""Two gloo processes against one: MoCo's losses, weights, momentum weights and bank after some steps, uneven counts."""

import pytest
import torch
from distributed import moco_ranks
from distributed.moco_ranks import METHODS, SHARES, STEPS, train
from distributed.processes import found_by_two


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return found_by_two(moco_ranks, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("name", METHODS)
def test_two_processes_are_one(ranks, share, name):
    """The bank is overwritten more than once; although a step's keys do not fit evenly, the same keys are kept."""
    expected = train(name, slice(0, SHARES[share]))
    if "bank.z" in expected:
        assert int(expected["bank.written"]) > len(expected["bank.z"]), "the ring has gone round"
    assert len(set(expected["losses"].tolist())) == STEPS
    for rank in range(2):
        found = ranks[rank][share, name]
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-9, atol=1e-12, msg=key)
