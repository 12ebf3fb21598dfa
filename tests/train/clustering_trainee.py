"""A small run that dies in a clustering, or not: python clustering_trainee.py FOLDER DIES RESUME.

DIES counts the steps of k-means over the whole run; 0 is never.
"""

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from train.parts import tiny_encoder, tiny_run

import falseneg as fn
from falseneg import clustering
from falseneg.train import fit


def clustered_run(**options):
    detector = fn.IncrementalClusters([4, 9], warmup="1 epoch", acceptance=0.8, iterations=5, restarts=1)
    method = fn.SimCLR(tiny_encoder())
    return tiny_run(**{"detector": detector, "method": method, "epochs": 4, "checkpoint_every": "2 steps", **options})


def before_step(number, do):
    """Do something before this step of k-means, counted from 1. The list that comes back grows with the steps."""
    made, steps = clustering._faiss_step, []

    def step(points, centroids):
        steps.append(None)
        if len(steps) == number:
            do()
        return made(points, centroids)

    clustering._faiss_step = step
    return steps


if __name__ == "__main__":
    folder, dies, resume = sys.argv[1:]
    torch.set_num_threads(1)
    before_step(int(dies), lambda: os.kill(os.getpid(), signal.SIGKILL))
    fit(clustered_run(), folder, resume=resume == "resume")
