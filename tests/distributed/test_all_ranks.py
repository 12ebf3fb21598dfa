"""Two, three and four gloo processes against one, for every method x objective x detector x strategy."""

import subprocess
import sys

import pytest
import torch
from distributed import all_ranks
from distributed.all_ranks import IMAGES, combinations, train


@pytest.fixture(scope="module")
def alone():
    return {case: train(case, slice(0, IMAGES)) for case in combinations()}


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("world", [2, 3, 4])
def test_all_of_the_catalogue(alone, tmp_path, world):
    """Losses and gradients within 1e-10, all that is kept of each image within 1e-12."""
    command = [sys.executable, all_ranks.__file__]
    processes = [subprocess.Popen([*command, str(rank), str(world), tmp_path]) for rank in range(world)]
    assert [process.wait(timeout=3000) for process in processes] == [0] * world
    ranks = [torch.load(tmp_path / f"rank{rank}of{world}.pt", weights_only=True) for rank in range(world)]
    different, compared = [], 0
    for case, expected in alone.items():
        for rank, found in enumerate(ranks):
            assert found[case].keys() == expected.keys()
            for name, value in expected.items():
                tolerance = 1e-10 if name == "steps" or name.startswith("0 ") else 1e-12
                if name == "refused":
                    same = found[case][name] == value
                else:
                    compared += 1
                    same = torch.allclose(found[case][name], value, rtol=tolerance, atol=tolerance, equal_nan=True)
                if not same:
                    different.append((case, rank, name))
    assert not different, f"{len(different)} of {compared}: {different[:20]}"
    assert sum("refused" in each for each in alone.values()) < len(alone) / 4 and compared > 1000
