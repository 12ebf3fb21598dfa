"""Two and three gloo processes against one: image-text losses, gradients and what is kept for each pair, uneven counts."""

import functools
import subprocess
import sys

import pytest
import torch
from distributed import pair_ranks
from distributed.pair_ranks import DETECTORS, NUMBERS, OBJECTIVES, train


@pytest.fixture(scope="module")
def ranks_of(tmp_path_factory):
    """What each rank of so many found; they are run once."""
    folder = tmp_path_factory.mktemp("ranks")

    @functools.cache
    def of(world):
        command = [sys.executable, pair_ranks.__file__]
        processes = [subprocess.Popen([*command, str(rank), str(world), folder]) for rank in range(world)]
        assert [process.wait(timeout=240) for process in processes] == [0] * world
        return [torch.load(folder / f"rank{rank}of{world}.pt", weights_only=True) for rank in range(world)]

    return of


@pytest.mark.parametrize("world, number", [(world, number) for world in NUMBERS for number in NUMBERS[world]])
@pytest.mark.parametrize("detector", DETECTORS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_several_processes_are_one(ranks_of, world, number, objective, detector):
    expected = train(objective, detector, slice(0, number))
    for rank in ranks_of(world):
        found = rank[number, objective, detector]
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            # What is kept for each pair is float32.
            exact = {"rtol": 1e-9, "atol": 1e-12} if key == "steps" and objective in ("CLIP", "SigLIP") else {}
            torch.testing.assert_close(found[key], value, equal_nan=True, msg=key, **exact)
