"""Near duplicates among many made features: time, peak memory, and how many of the planted pairs are found.

python benchmarks/audit_neighbours.py --images 200000 --features 64
"""

import argparse
import resource
import time

import torch
from torch.nn.functional import normalize

from falseneg.audit.audit import NEIGHBOURS
from falseneg.audit.duplicates import find
from falseneg.graph import nearest


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--features", type=int, default=64)
    parser.add_argument("--planted", type=int, default=5000)
    options = parser.parse_args()
    draws = torch.Generator().manual_seed(0)
    centres = torch.randn(1000, options.features, generator=draws)
    points = torch.randn(options.images, options.features, generator=draws)
    for piece, kind in zip(points.split(100_000), torch.arange(options.images).split(100_000), strict=True):
        piece += centres[kind % 1000]
    pairs = torch.randperm(options.images, generator=draws)[: 2 * options.planted].view(-1, 2)
    points[pairs[:, 1]] = points[pairs[:, 0]] + 0.05 * torch.randn(options.planted, options.features, generator=draws)
    for piece in points.split(100_000):
        piece.copy_(normalize(piece, dim=1))
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    cosines, neighbours = nearest(points, NEIGHBOURS)
    duplicates = find(None, [], cosines, neighbours, 0.98)
    seconds, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = {tuple(pair) for pair in duplicates.near.tolist()}
    right = sum(tuple(sorted(pair)) in found for pair in pairs.tolist())
    print(
        f"{options.images:,} x {options.features}: {seconds:.0f} s, peak {after / 2**20:.2f} GiB ({before / 2**20:.2f} before); "
        f"{right:,} of {options.planted:,} planted pairs found, {len(found) - right:,} others"
    )


if __name__ == "__main__":
    main()
