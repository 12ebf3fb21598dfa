"""Runs that are killed at random moments, and resumed, end with the same bits as an undisturbed one."""

import functools
import os
import random
import signal
import time

import pytest
import torch
from train.parts import assert_same_weights, tiny_run, untimed
from train.trainee import train, train_and_signal_all, train_on_a_full_disk

from falseneg.train.checkpoint import load_checkpoint


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    path = tmp_path_factory.mktemp("start") / "weights.pt"
    torch.save(tiny_run().method.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def begin(context, start):
    """Starts a process that trains in a folder."""

    def begin(folder, workers, accumulate):
        options = {"workers": workers, "accumulate": accumulate, "epochs": 6}
        options |= {"checkpoint_every": "2 steps", "evaluate_every": "2 epochs", "keep_every": "50%"}
        process = context.Process(target=train, args=(folder, start, options))
        process.start()
        return process

    return begin


@pytest.fixture(scope="module")
def whole(begin, tmp_path_factory):
    """Undisturbed runs, and how long they took."""

    @functools.cache
    def make(accumulate):
        folder = tmp_path_factory.mktemp("whole") / "run"
        began = time.monotonic()
        process = begin(folder, 0, accumulate)
        process.join()
        assert process.exitcode == 0
        return folder, time.monotonic() - began

    make(1)  # starts the server, which takes its time
    make.cache_clear()
    return make


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_loaders_outlast_a_signal_to_all(context, start, tmp_path, number):
    """The step is finished and saved, though the signal went to the loaders too."""
    folder, options = tmp_path / "run", {"epochs": 6, "workers": 2, "checkpoint_every": None}
    process = context.Process(target=train_and_signal_all, args=(folder, start, options, number))
    process.start()
    process.join(60)
    assert process.exitcode == 128 + number
    assert load_checkpoint(folder / "checkpoints" / "last.pt")["step"] == 5


def test_full_disk(context, start, tmp_path):
    folder, options = tmp_path / "run", {"epochs": 3, "checkpoint_every": "2 steps"}
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=train_on_a_full_disk, args=(folder, start, options, theirs))
    process.start()
    process.join()
    said = ours.recv()
    assert "last.pt could not be written (File too large); free some space" in said and "\n" not in said
    assert load_checkpoint(folder / "checkpoints" / "last.pt")["step"] == 4
    assert not list(folder.rglob(".*"))


def kill_and_resume(begin, whole, folder, workers, accumulate, kills, draw):
    reference, seconds = whole(accumulate)
    killed = 0
    for attempt in range(kills + 1):
        process = begin(folder, workers, accumulate)
        process.join(draw.uniform(0, 0.8 * seconds) if attempt < kills else None)
        if process.exitcode is None:
            killed += 1
            number = draw.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
            # To the process alone, or to its loaders too, as Ctrl-C in a terminal does.
            if number == signal.SIGKILL or draw.random() < 0.5:
                os.kill(process.pid, number)
            else:
                try:
                    os.killpg(process.pid, number)
                except ProcessLookupError:
                    os.kill(process.pid, number)
            process.join()
            # 1 is Python's own answer to an interrupt before training has begun.
            assert process.exitcode in (-number, 128 + number, 0, 1 if number == signal.SIGINT else 0)
    assert process.exitcode == 0 and killed
    assert_same_weights(reference, folder)
    assert untimed(reference) == untimed(folder)
    names = {path.relative_to(folder) for path in folder.rglob("*")}
    assert names == {path.relative_to(reference) for path in reference.rglob("*")}


@pytest.mark.parametrize(("workers", "accumulate", "kills"), [(0, 1, 4), (2, 1, 3), (0, 3, 2)])
def test_killed_at_random_moments(begin, whole, tmp_path, workers, accumulate, kills):
    draw = random.Random(workers + 10 * accumulate)
    kill_and_resume(begin, whole, tmp_path / "run", workers, accumulate, kills, draw)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_killed_many_times(begin, whole, tmp_path, seed):
    draw = random.Random(1000 + seed)
    workers, accumulate = draw.choice([0, 1, 2, 3]), draw.choice([1, 3])
    kill_and_resume(begin, whole, tmp_path / "run", workers, accumulate, 12, draw)
