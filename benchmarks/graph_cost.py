"""What the graph of the whole data set costs: beside the training that it serves, and by itself for a million images.

    python benchmarks/graph_cost.py training        (CIFAR's size, and ImageNet-100's, ResNet-18)
    python benchmarks/graph_cost.py graph --images 1000000 --features 128 --neighbours 30 --eigenvectors 10

Training and graph are measured alone, in one run, without loading images. A step of the training: 2 views of each image, plain InfoNCE,
the way back, SGD; the graph: a forward pass over all images, one over 2 views of at most 8,192, and what `NeighbourGraph` then does with features
of that number and width, which are made up of blobs. The forward pass is scaled from a batch.
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np
import torch
from added_cost import machine, spent_on
from torch import Tensor, nn

import falseneg as fn
from falseneg.detectors.neighbour_graph import VIEWED
from falseneg.graph import nearest, spectral_coordinates, whitened

BATCH, WIDTH = 32, 512
SIZES = (("CIFAR", 50_000, 32, 10), ("ImageNet-100", 126_689, 224, 100))
"""Name, images, pixels and kinds."""
TRAININGS = (20, 100, 200, 400)
"""Epochs."""


def blobs(rows: int, width: int, kinds: int = 1000) -> Tensor:
    draw = np.random.default_rng(0)
    centres = draw.standard_normal((kinds, width), dtype=np.float32)
    return torch.from_numpy(centres[draw.integers(0, kinds, rows)] + draw.standard_normal((rows, width), np.float32))


class Made:
    """Features that were made beforehand; counts how often all of them are asked for."""

    def __init__(self, features: Tensor) -> None:
        self.features, self.asked = features, 0

    def encoded(self, encoder: nn.Module | None = None, modality: str = "image") -> Tensor:
        self.asked += 1
        return self.features

    def of_views(self, row: Tensor, views: int, encoder: nn.Module | None = None) -> Tensor:
        draw = torch.Generator().manual_seed(0)
        return self.features[row, None] + 0.5 * torch.randn(len(row), views, self.features.shape[1], generator=draw)


def detector(rows: int, kinds: int) -> fn.NeighbourGraph:
    made = fn.NeighbourGraph()
    made.prepare(fn.Facts(rows, 510, classes=kinds))
    return made


def graphs_of(epochs: int) -> int:
    """How often the graph is made in a training."""
    made, few = Made(blobs(64, 8, 4)), detector(64, 4)
    for epoch in range(epochs):
        few.start_epoch(made, fn.Clock(epoch, 1, epochs))  # type: ignore[arg-type]
    return made.asked


def beside_training() -> None:
    print(
        "| data | step, an image | forward, an image | graph, without passes | epochs | graphs | share of the training |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, rows, side, kinds in SIZES:
        method = fn.SimCLR(fn.Encoder("resnet18", side))
        optimiser = torch.optim.SGD(method.parameters(), 0.01)
        criterion = fn.Criterion(temperature=0.1)
        views = torch.randint(0, 256, (BATCH, 2, 3, side, side), dtype=torch.uint8)
        batch = fn.Batch(torch.arange(BATCH), {"image": views})

        def step(method=method, optimiser=optimiser, criterion=criterion, batch=batch) -> None:  # type: ignore[no-untyped-def]
            optimiser.zero_grad(set_to_none=True)
            loss, _ = criterion(method.contrasts(method.encode(batch)), fn.Clock(0, 1, 1))
            loss.backward()
            optimiser.step()

        def forward(method=method, images=views[:, 0]) -> None:  # type: ignore[no-untyped-def]
            with torch.inference_mode():
                method.encoder(images)

        method.train()
        of_step = min(spent_on(step, "cpu").cpu for _ in range(4)) / BATCH
        method.eval()
        of_pass = min(spent_on(forward, "cpu").cpu for _ in range(4)) / BATCH
        graph, made = detector(rows, kinds), Made(blobs(rows, WIDTH))
        of_graph = spent_on(lambda graph=graph, made=made: graph.start_epoch(made, fn.Clock(1, 1, 20)), "cpu").cpu
        for epochs in TRAININGS:
            number = graphs_of(epochs)
            spent = number * (of_pass * (rows + 2 * min(rows, VIEWED)) + of_graph)
            print(
                f"| {name}: {rows:,} of {side} pixels, {kinds} kinds | {1e3 * of_step:.1f} ms | {1e3 * of_pass:.1f} ms | {of_graph:.0f} s "
                f"| {epochs} | {number} | {spent / (of_step * rows * epochs):.1%} |",
                flush=True,
            )


def alone(rows: int, width: int, k: int, eigenvectors: int) -> None:
    def told(what: str, work):  # type: ignore[no-untyped-def]
        wall, cpu = time.perf_counter(), time.process_time()
        found = work()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(
            f"{what}: {time.perf_counter() - wall:.0f} s, {time.process_time() - cpu:.0f} s of CPU, {peak:.1f} GiB at most so far",
            flush=True,
        )
        return found

    points = blobs(rows, width)
    views = points[:VIEWED, None] + 0.5 * torch.randn(min(rows, VIEWED), 2, width)
    unit = told("whitening", lambda: whitened(points, views))
    cosines, neighbours = told("neighbours", lambda: nearest(unit, k))
    some = unit[:256] @ unit.T
    some.fill_diagonal_(-2)
    exact = some.topk(k).indices.numpy()
    found = np.mean([len({*one} & {*other}) / k for one, other in zip(neighbours, exact, strict=False)])
    print(f"of the {k} nearest neighbours of 256 images {found:.1%} were found")
    told("eigenvectors", lambda: spectral_coordinates(cosines, neighbours, eigenvectors))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("training", "graph"))
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--features", type=int, default=128)
    parser.add_argument("--neighbours", type=int, default=30)
    parser.add_argument("--eigenvectors", type=int, default=10)
    options = parser.parse_args()
    print(machine("cpu"))
    if options.what == "training":
        beside_training()
    else:
        alone(options.images, options.features, options.neighbours, options.eigenvectors)


if __name__ == "__main__":
    main()
