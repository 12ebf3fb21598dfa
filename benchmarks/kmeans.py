"""How long does clustering a whole data set take, and how much memory?

    python benchmarks/kmeans.py [--threads 2] [--share 0.05] --out FILE.md

The first part clusters 50,000 rows of 128 numbers into 1,000, whole. The second makes one Lloyd step of k-means, and one
assignment, on a share of 1,281,167 rows (ImageNet) and 25,000 clusters, and forecasts the whole from them: both cost a
time in proportion to the rows. Wall time says something on an idle machine only; CPU time, which includes threads that
wait for each other, is at most the wall time on that many idle cores times their number.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import resource
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from falseneg.clustering import assign, check_points, spherical_k_means
from falseneg.files import write_bytes

DIM = 128
SMALL = 50_000, 1_000, 20
LARGE = 1_281_167, 25_000, 20


def made_points(rows: int, directions: int) -> Tensor:
    """Unit rows around some directions: as an encoder in the middle of its training might embed images."""
    draw = torch.Generator().manual_seed(0)
    centres = normalize(torch.randn(directions, DIM, generator=draw), dim=1)
    which = torch.randint(directions, (rows,), generator=draw)
    return normalize(centres[which] + 0.08 * torch.randn(rows, DIM, generator=draw), dim=1)


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def small() -> list[str]:
    rows, clusters, iterations = SMALL
    points = made_points(rows, clusters)
    found: list[Tensor] = []
    k_means = timed(lambda: found.append(spherical_k_means(points, clusters, 0, iterations)))
    assigned = timed(lambda: assign(points, found[0], 0.2))
    return [
        f"| {rows:,} rows, {clusters:,} clusters, {iterations} iterations: k-means | {k_means[0]:.1f} | {k_means[1]:.1f} |",
        f"| assignment and confidences of all rows | {assigned[0]:.1f} | {assigned[1]:.1f} |",
    ]


def large(share: float) -> list[str]:
    rows, clusters, iterations = LARGE
    tried = max(clusters + 1, round(share * rows))
    points = made_points(tried, clusters)
    checked = timed(lambda: check_points(points))
    found: list[Tensor] = []
    step = timed(lambda: found.append(spherical_k_means(points, clusters, 0, 1)))
    assigned = timed(lambda: assign(points, found[0], 0.2))
    whole = rows / tried
    forecast = [whole * (checked[kind] + iterations * step[kind] + assigned[kind]) for kind in (0, 1)]
    operations = 2 * tried * clusters * DIM
    return [
        f"| {tried:,} rows, {clusters:,} clusters: one Lloyd step | {step[0]:.1f} | {step[1]:.1f} |",
        f"| the same: assignment and confidences | {assigned[0]:.1f} | {assigned[1]:.1f} |",
        f"| the same: look for embeddings that are not finite | {checked[0]:.2f} | {checked[1]:.2f} |",
        f"| **forecast**: {rows:,} rows, {clusters:,} clusters, {iterations} iterations, all of it "
        f"| {forecast[0]:,.0f} | {forecast[1]:,.0f} |",
        "",
        f"The step does {operations / step[1] / 1e9:,.0f} GFLOP a CPU second, the assignment, which also exponentiates, "
        f"{operations / assigned[1] / 1e9:,.0f}. Points of the whole take {4 * rows * DIM / 2**20:,.0f} MiB as float32 "
        f"(`points_per_centroid` lowers it), their centroids {4 * clusters * DIM / 2**20:,.0f} MiB, similarities at most "
        "64 MiB at a time. One level of 25,000 clusters was looked at; 50,000 and 100,000 take two and four times as long.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--share", type=float, default=0.05, help="of the large data set's rows")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    load = os.getloadavg()[0]
    lines = ["| what | wall seconds | CPU seconds |", "| --- | --- | --- |", *small(), *large(options.share)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    about = (
        f"{datetime.date.today()}, {platform.machine()}, {options.threads} threads of {os.cpu_count()} cores, load "
        f"average {load:.1f} before, {os.getloadavg()[0]:.1f} after; made points of {DIM} numbers; peak memory of the "
        f"process {peak:,.0f} MiB. `python benchmarks/kmeans.py --threads {options.threads} --share {options.share:g}`"
    )
    text = "\n".join(["# Clustering a whole data set", "", about, "", *lines, ""])
    print(text)
    write_bytes(options.out, text.encode())


if __name__ == "__main__":
    main()
