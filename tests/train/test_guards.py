import errno
import os
import signal
import subprocess
import sys

import pytest
import torch

import falseneg as fn
from falseneg.train.guards import StopRequests, determinism, in_one_sentence


def test_determinism_is_put_back():
    before = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    with determinism(True, 3):
        assert torch.are_deterministic_algorithms_enabled() and torch.get_num_threads() == 3
    assert (torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()) == before
    with determinism(False, 3):
        assert (torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()) == before


def test_the_first_signal_is_a_wish():
    before = signal.getsignal(signal.SIGTERM)
    with StopRequests() as stop:
        assert stop.wanted == 0
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.wanted == signal.SIGTERM
        assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) is before


SECOND = """
import os, signal
from falseneg.train.guards import StopRequests
with StopRequests():
    os.kill(os.getpid(), signal.SIGINT)
    print("still here", flush=True)
    os.kill(os.getpid(), signal.SIGINT)
    print("not any more", flush=True)
"""


def test_the_second_signal_ends_at_once():
    done = subprocess.run([sys.executable, "-c", SECOND], capture_output=True, text=True)
    assert done.stdout == "still here\n" and done.returncode == -signal.SIGINT


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "memory ran out"),
        (RuntimeError("DataLoader worker (pid 5) is killed by signal: Killed."), "a data-loading process was killed"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device.*free some space"),
        (OSError(errno.EIO, "Input/output error"), "does not answer as it should .Input"),
        (
            RuntimeError("[../third_party/gloo/pair.cc:1] Connection closed by peer [::1]:5"),
            "another process of this training",
        ),
    ],
)
def test_troubles_of_the_machine_are_one_sentence(error, words):
    with pytest.raises(fn.UserError, match=words) as raised, in_one_sentence():
        raise error
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "error", [RuntimeError("shape mismatch"), OSError(errno.EPIPE, "x"), fn.UserError("mine"), KeyError()]
)
def test_other_errors_pass(error):
    with pytest.raises(type(error)) as raised, in_one_sentence():
        raise error
    assert raised.value is error
