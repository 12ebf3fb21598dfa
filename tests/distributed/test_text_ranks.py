"""Text pairs on two gloo processes against one: loss, gradient, figures and what is kept for each pair."""

import pytest
import torch
from distributed import text_ranks
from distributed.processes import found_by_two


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return found_by_two(text_ranks, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("shares", text_ranks.SHARES)
@pytest.mark.parametrize("directions", text_ranks.DIRECTIONS)
@pytest.mark.parametrize("detector", text_ranks.DETECTORS)
def test_two_ranks_are_one(ranks, shares, directions, detector):
    expected = text_ranks.step(slice(0, text_ranks.PAIRS), directions, detector)
    assert int(expected[2][:, 0].sum()) > 0 or detector == "none"
    for rank in ranks:
        got = rank[shares, directions, detector]
        assert len(got) == len(expected)
        for one, other in zip(got, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-13)
