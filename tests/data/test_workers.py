"""Processes that load images and hang, are slow, or find storage that is."""

import multiprocessing
import re
import signal
import time

import pytest
import torch

from falseneg.data import Augmentation, EpochSampler, ImageSet, ViewSet, inspect, retries, view_loader, workers
from falseneg.errors import UserError
from falseneg.evaluation.features import extract_features


class Slow(ImageSet):
    """Images that take a while, and some of which take for ever."""

    def __init__(self, seconds=0.0, stuck=()):
        self.seconds, self.stuck = seconds, stuck

    def __len__(self):
        return 12

    def describe(self, row):
        return f"mount/{row}.png"

    def image(self, row):
        if row in self.stuck:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as one that waits for a mount does
            time.sleep(30)
        time.sleep(self.seconds)
        return torch.full((3, 8, 8), row, dtype=torch.uint8)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(workers, "LOOK", 0.1)
    monkeypatch.setattr(workers, "SILENCE", 1.0)
    # How long torch waits for a process to end.
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.1)


def loader_of(images, count=2):
    return view_loader(ViewSet(images, {"image": [Augmentation(8)]}), EpochSampler(12, 4), count)


def epoch_by_views(images):
    list(loader_of(images))


def epoch_by_inspection(images):
    inspect(images, workers=2)


def epoch_by_features(images):
    extract_features(torch.nn.Flatten(), images, 8, 4, workers=2)


EPOCHS = [epoch_by_views, epoch_by_inspection, epoch_by_features]


@pytest.mark.parametrize("epoch", EPOCHS)
def test_processes_that_hang_are_named_with_their_image_and_ended(epoch):
    started, before = time.monotonic(), set(multiprocessing.active_children())
    with pytest.raises(UserError, match=r"nothing for 0\.0167 minutes, since they came to mount/7\.png: see whether"):
        epoch(Slow(stuck=[7]))
    while left := set(multiprocessing.active_children()) - before:  # not even one that passes over signals stays
        assert time.monotonic() - started < 20, left
        time.sleep(0.05)
    assert time.monotonic() - started < 20


def test_slow_processes_are_not_taken_for_hung_ones(monkeypatch):
    monkeypatch.setattr(workers, "SILENCE", 0.6)
    assert len(list(loader_of(Slow(seconds=0.3)))) == 3  # a batch takes twice as long


def test_the_time_of_a_loop_that_does_something_else_does_not_count(monkeypatch):
    monkeypatch.setattr(workers, "SILENCE", 0.3)
    for _ in loader_of(Slow()):
        time.sleep(0.7)


def test_a_loader_can_be_used_again_after_an_error():
    loader = loader_of(Slow(stuck=[7]))
    with pytest.raises(UserError):
        list(loader)
    loader.dataset.image_set.stuck = ()
    assert len(list(loader)) == 3


@pytest.mark.parametrize("count", [0, 2])
def test_how_often_storage_was_asked_again_is_said_once_a_pass(monkeypatch, caplog, count):
    monkeypatch.setattr(retries, "WAITS", (0.0,) * 4)

    class Reluctant(Slow):
        def image(self, row):
            answers = iter([OSError(), OSError(), super().image(row)])

            def ask():
                answer = next(answers)
                if isinstance(answer, OSError):
                    raise answer
                return answer

            return retries.answered("a", ask, "absent")

    retries.answered("a", lambda: 1, "absent")
    loader = loader_of(Reluctant(), count)
    for _ in range(2):
        list(loader)
    said = [re.search(r"(\S+) times in a pass", record.getMessage())[1] for record in caplog.records]
    assert said == ["24", "24"]
    caplog.clear()
    list(loader_of(Slow(), count))
    assert not caplog.records
