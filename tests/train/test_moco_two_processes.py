"""Two processes learn with MoCo what one learns, and neither of them waits for a gradient of the momentum network."""

import subprocess
import sys
from itertools import pairwise

import pytest
import torch
from train import moco_processes
from train.moco_processes import run_of
from train.parts import untimed, weights

from falseneg.train import fit


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone") / "run"
    fit(run_of(1, 1), folder)
    return folder


def in_step_order(state, steps):
    """The bank's entries, sorted by image within each step: ranks take turns in the order of a batch's images."""
    ends = torch.tensor([0, *steps]).cumsum(0).tolist()
    order = [a + state["bank.sample"][a:b].argsort(stable=True) for a, b in pairwise(ends)]
    return {name: state[f"bank.{name}"][torch.cat(order)] for name in ("z", "sample", "row")}


@pytest.mark.parametrize("pieces", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_weights_and_bank_are_those_of_one_process(alone, tmp_path, pieces):
    command = [sys.executable, moco_processes.__file__, str(tmp_path / "run"), "2", str(pieces)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    first, second = weights(alone), weights(tmp_path / "run")
    assert first.keys() == second.keys()
    for name, value in first.items():
        if not name.startswith("bank."):
            torch.testing.assert_close(second[name], value, rtol=1e-5, atol=1e-8, msg=name)
    start = run_of(1, 1).method.state_dict()
    for network in ("encoder.", "prediction.", "momentum_network."):
        moved = max(float((first[key] - start[key]).abs().max()) for key in first if key.startswith(network))
        assert moved > 1e-3, f"{network} the comparison says nothing about weights that have not moved"
    written = int(first["bank.written"])
    assert written == int(second["bank.written"]) <= len(first["bank.z"])
    steps = [66] * (written // 66) + [written % 66]
    one, other = in_step_order(first, steps), in_step_order(second, steps)
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=1e-5, atol=1e-8, msg=name)
    for mine, theirs in zip(untimed(alone), untimed(tmp_path / "run"), strict=True):
        assert mine.pop("kind") == theirs.pop("kind")
        assert mine == pytest.approx(theirs, rel=1e-5)
