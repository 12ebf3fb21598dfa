"""A small run with learned thresholds, over one or two processes: python two_checks.py FOLDER DEVICES."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from train.two_processes import run_of

import falseneg as fn
from falseneg.train import fit


def checked_run(devices):
    run = run_of(devices, 1)
    run.detector, run.epochs = fn.GlobalThreshold(0.1), 2
    return run


if __name__ == "__main__":
    torch.set_num_threads(1)
    fit(checked_run(int(sys.argv[2])), sys.argv[1])
