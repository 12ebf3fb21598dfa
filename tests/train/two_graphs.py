"""A small run with a graph over one or two processes: python two_graphs.py FOLDER DEVICES."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from train.two_processes import run_of

import falseneg as fn
from falseneg.train import embeddings, fit


def graph_run(devices):
    embeddings.AT_ONCE = 20  # several batches, the last one of fewer images and not on both ranks
    run = run_of(devices, 1)
    run.detector = fn.NeighbourGraph(neighbours=5, eigenvectors=4, share=0.1)
    run.epochs, run.evaluate_every = 3, "3 epochs"
    return run


if __name__ == "__main__":
    torch.set_num_threads(1)
    fit(graph_run(int(sys.argv[2])), sys.argv[1])
