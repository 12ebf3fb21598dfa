"""What the processes of the tests do: begin a small run, or go on with it."""

import multiprocessing
import os
import resource
import subprocess
import time

import torch
from train.parts import tiny_run

import falseneg as fn
from falseneg.train import fit


def train(folder, start, options):
    """Train from the weights in ``start``: a run's network is built before the run sets its seed."""
    os.setpgrp()
    # A process of a fork server would start one of its own for its loaders, which takes longer than the training.
    multiprocessing.set_start_method("fork", force=True)
    torch.set_num_threads(1)
    torch.manual_seed(time.time_ns())  # nothing may depend on it
    run = tiny_run(**options)
    run.method.load_state_dict(torch.load(start, weights_only=True))
    # As a user would, who is told that the folder holds a run: before its first checkpoint, too.
    fit(run, folder, resume=any((folder / name).exists() for name in ("metrics.jsonl", "checkpoints")))


class SignalAll(fn.InfoNCE):
    """At a step, sends a signal to this process and its loaders, as a terminal or a batch system does."""

    def __init__(self, step, number):
        super().__init__()
        self._step, self._number = step, number

    def forward(self, contrast, stats, tau, strategy, clock=None):
        if clock.step == self._step:
            # From outside: a signal from their parent means something else to loaders.
            subprocess.run(["kill", f"-{self._number:d}", "--", f"-{os.getpgrp()}"], start_new_session=True)
            time.sleep(0.2)  # so that a loader that would die is dead before the step is done
        return super().forward(contrast, stats, tau, strategy, clock)


def train_and_signal_all(folder, start, options, number):
    train(folder, start, {**options, "objective": SignalAll(4, number)})


class FillDisk(fn.InfoNCE):
    """From a step on, the system refuses to let files grow, as it does on a full disk."""

    def __init__(self, step):
        super().__init__()
        self._step = step

    def forward(self, contrast, stats, tau, strategy, clock=None):
        if clock.step == self._step:
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        return super().forward(contrast, stats, tau, strategy, clock)


def train_on_a_full_disk(folder, start, options, answer):
    try:
        train(folder, start, {**options, "objective": FillDisk(4)})
    except fn.UserError as error:
        answer.send(str(error))
