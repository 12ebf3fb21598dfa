"""A small run with clusters over one or two processes: python two_clusterings.py FOLDER DEVICES IN_A_FILE STOP RESUME.

With STOP, the second process gets a signal in that many batches of passes over the data set.
"""

import atexit
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from train.two_processes import run_of

import falseneg as fn
from falseneg.train import embeddings, fit


def clustered_run(devices, in_a_file):
    embeddings.AT_ONCE = 20  # several batches, the last one of fewer images and not on both ranks
    embeddings.MOST_IN_MEMORY = 1000 if in_a_file else 2**30
    run = run_of(devices, 1)
    run.detector = fn.IncrementalClusters([6, 3], warmup="1 epoch", acceptance=0.8)
    run.epochs, run.evaluate_every = 3, "3 epochs"
    return run


def signal_in_batch(number):
    """In this batch of the passes over the data set, counted from 1, the second process gets a signal."""
    add, batches = embeddings._Kept.add, []

    def added(kept, batch):
        batches.append(batch)
        if len(batches) == number and os.environ.get("LOCAL_RANK") == "1":
            os.kill(os.getpid(), signal.SIGTERM)
        add(kept, batch)

    embeddings._Kept.add = added
    if os.environ.get("LOCAL_RANK", "0") == "0":
        atexit.register(lambda: print(f"{len(batches)} batches", file=sys.stderr))


if __name__ == "__main__":
    folder, devices, in_a_file, stop, resume = sys.argv[1:]
    torch.set_num_threads(1)
    if int(stop):
        signal_in_batch(int(stop))
    fit(clustered_run(int(devices), in_a_file == "True"), folder, resume=resume == "resume")
