"""Two processes learn what one learns."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from train.parts import untimed, weights
from train.two_processes import run_of

from falseneg.train import fit


def launch(folder, pieces, stop=-1, resume="new", crops="none"):
    command = [
        sys.executable,
        str(Path(__file__).parent / "two_processes.py"),
        str(folder),
        "2",
        str(pieces),
        str(stop),
        resume,
        crops,
    ]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=250, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone") / "run"
    fit(run_of(1, 1), folder)
    return folder


def assert_alike(one, other):
    first, second = weights(one), weights(other)
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-5, atol=1e-8, msg=name)
    start = run_of(1, 1).method.state_dict()
    moved = max(float((value - start[name]).abs().max()) for name, value in first.items())
    assert moved > 1e-2, "the comparison says nothing about weights that have not moved"
    for mine, theirs in zip(untimed(one), untimed(other), strict=True):
        assert mine.keys() == theirs.keys()
        assert mine.pop("kind") == theirs.pop("kind")
        assert mine == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize("pieces", [1, 2])
def test_gradients_are_those_of_one_process(alone, tmp_path, pieces):
    done = launch(tmp_path / "run", pieces)
    assert done.returncode == 0, done.stderr
    assert_alike(alone, tmp_path / "run")
    assert done.stdout.count("images (10 classes") == 1, "only the first process speaks"


def test_multi_crop_in_two_processes_is_that_of_one(tmp_path):
    fit(run_of(1, 1, crops=True), tmp_path / "alone")
    done = launch(tmp_path / "run", 2, crops="crops")
    assert done.returncode == 0, done.stderr
    assert_alike(tmp_path / "alone", tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("pieces", [1, 2])
def test_a_signal_to_one_process_stops_both_and_resume_goes_on(alone, tmp_path, pieces):
    stopped = launch(tmp_path / "run", pieces, stop=2)
    assert stopped.returncode == 128 + signal.SIGTERM, stopped.stderr
    assert "saved" in stopped.stdout and "after step 4 of 6" in stopped.stdout, "they agree at the start of a step"
    done = launch(tmp_path / "run", pieces, resume="resume")
    assert done.returncode == 0, done.stderr
    assert_alike(alone, tmp_path / "run")
