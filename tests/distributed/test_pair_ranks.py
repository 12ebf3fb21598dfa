"""Two and three gloo processes against one: image-text losses, gradients and what is kept for each pair, uneven counts."""

import subprocess
import sys

import pytest
import torch
from distributed import pair_ranks
from distributed.pair_ranks import DETECTORS, OBJECTIVES, SHARES, train


@pytest.fixture(scope="module", params=[2, 3])
def ranks(request, tmp_path_factory):
    folder, world = tmp_path_factory.mktemp("ranks"), request.param
    command = [sys.executable, pair_ranks.__file__]
    processes = [subprocess.Popen([*command, str(rank), str(world), folder]) for rank in range(world)]
    assert [process.wait(timeout=240) for process in processes] == [0] * world
    return [torch.load(folder / f"rank{rank}of{world}.pt", weights_only=True) for rank in range(world)]


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("detector", DETECTORS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_several_processes_are_one(ranks, share, objective, detector):
    if len(ranks) not in SHARES[share]:
        pytest.skip("tried with three processes")
    expected = train(objective, detector, slice(0, SHARES[share][len(ranks)]))
    for rank in ranks:
        found = rank[share, objective, detector]
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            # What is kept for each pair is float32.
            exact = {"rtol": 1e-9, "atol": 1e-12} if key == "steps" and objective in ("CLIP", "SigLIP") else {}
            torch.testing.assert_close(found[key], value, equal_nan=True, msg=key, **exact)
