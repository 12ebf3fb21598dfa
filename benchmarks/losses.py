"""Losses and their gradients beside those of the peers: time and memory, detection off and on, against the floor.

    pip install lightly pytorch-metric-learning open_clip_torch
    python benchmarks/losses.py --out benchmarks/results/DATE-losses.md

All that is installed takes part. Calls alternate in one process, so that a busy machine is as unfair to one as to the
other; the figure is the median of CPU seconds, and of seconds on the wall. Memory is measured in a process of its own for
each: what its peak grows by, beyond the embeddings, from before the call. The floor is the time of the matrix products
that the method cannot do without, measured alone in the same run: of a symmetric matrix half the products, once forward
and once backward, two half products for the gradient, and another half for a detector that must see all pairs before
the loss does.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

import falseneg as fn
from falseneg.methods.simclr import contrast_views
from falseneg.statistics import tiles

TEMPERATURE = 0.1
SUPPORT = 8
CLOCK = fn.Clock(100, 10, 100)
Call = Callable[[], object]


def embeddings(images: int, dim: int, requires_grad: bool = True) -> Tensor:
    """(B, 2, D) unit rows in about 100 loose groups, so that thresholds flag something."""
    draw = torch.Generator().manual_seed(0)
    centre = torch.randn(100, dim, generator=draw)[torch.randint(0, 100, (images,), generator=draw)]
    rows = centre[:, None] + 1.5 * torch.randn(images, 2, dim, generator=draw)
    return normalize(rows, dim=-1).requires_grad_(requires_grad)


def backward(loss: Tensor, views: Tensor) -> None:
    loss.backward()
    views.grad = None


def ours(
    views: Tensor, make: Callable[[], fn.Detector], strategy: fn.Strategy = fn.ELIMINATE, support: int = 0
) -> Call:
    """The whole step on given embeddings: detection, loss and gradient."""
    images, _, dim = views.shape
    detector = make()
    detector.prepare(fn.Facts(images, 2 * images - 2, classes=100))
    criterion = fn.Criterion(detector, strategy, temperature=TEMPERATURE)
    further = normalize(torch.randn(images, support, dim), dim=-1) if support else None
    sample = torch.arange(images)

    def call() -> None:
        loss, _ = criterion([contrast_views(fn.Embeddings(views, further, sample))], CLOCK)
        backward(loss, views)

    return call


def lightly(views: Tensor) -> Call:
    from lightly.loss import NTXentLoss

    loss = NTXentLoss(TEMPERATURE)
    return lambda: backward(loss(views[:, 0], views[:, 1]), views)


def metric_learning(views: Tensor) -> Call:
    from pytorch_metric_learning.losses import NTXentLoss, SelfSupervisedLoss

    loss = SelfSupervisedLoss(NTXentLoss(TEMPERATURE))
    return lambda: backward(loss(views[:, 0], views[:, 1]), views)


def open_clip(views: Tensor) -> Call:
    from open_clip.loss import ClipLoss

    loss = ClipLoss()
    scale = torch.tensor(1 / TEMPERATURE)
    return lambda: backward(loss(views[:, 0], views[:, 1], scale), views)


def dense(views: Tensor) -> Call:
    """NT-Xent in five lines of PyTorch."""

    def call() -> None:
        z = views.flatten(0, 1)
        logits = (z @ z.T / TEMPERATURE).fill_diagonal_(-torch.inf)
        backward(cross_entropy(logits, torch.arange(len(z)) ^ 1), views)

    return call


def floor(views: Tensor, halves: int) -> Call:
    """So many times the products of half the matrix with themselves, in tiles of the library's own size."""
    z, size = views.detach().flatten(0, 1), tiles.TILE
    out, sink = torch.empty(size * size), torch.zeros_like(z)

    def call() -> None:
        for number in range(halves):
            for top in range(0, len(z), size):
                rows = z[top : top + size]
                for left in range(top, len(z), size):
                    cols = z[left : left + size]
                    block = out[: len(rows) * len(cols)].view(len(rows), len(cols))
                    if number < halves - 2:
                        torch.mm(rows, cols.T, out=block)
                    elif number == halves - 2:
                        sink[top : top + size].addmm_(block, cols)
                    else:
                        sink[left : left + size].addmm_(block.T, rows)

    return call


OURS: dict[str, Callable[[Tensor], Call]] = {
    "falseneg, none": lambda views: ours(views, fn.NoDetection),
    "falseneg, GlobalThreshold": lambda views: ours(views, lambda: fn.GlobalThreshold(0.01)),
    "falseneg, BatchQuantile": lambda views: ours(views, lambda: fn.BatchQuantile(0.01)),
    "falseneg, FixedThreshold": lambda views: ours(views, lambda: fn.FixedThreshold(0.5)),
    "falseneg, FixedThreshold, attraction": lambda views: ours(views, lambda: fn.FixedThreshold(0.5), fn.ATTRACT),
    "falseneg, SupportSet, 8 views, top 10": lambda views: ours(
        views, lambda: fn.SupportSet(top_k=10), support=SUPPORT
    ),
}
PEERS = {
    "lightly NTXentLoss": lightly,
    "pytorch-metric-learning NTXentLoss": metric_learning,
    "open_clip ClipLoss (half the pairs, 2 directions)": open_clip,
    "dense PyTorch": dense,
}
FLOORS = {
    "floor, 4 half products": lambda views: floor(views, 4),
    "floor, 5 half products": lambda views: floor(views, 5),
}
CONTENDERS = {**OURS, **PEERS, **FLOORS}
MOST_IMAGES = {"pytorch-metric-learning NTXentLoss": 256, "dense PyTorch": 8192}
MOST_IMAGES |= {"lightly NTXentLoss": 8192, "open_clip ClipLoss (half the pairs, 2 directions)": 8192}


def contenders(images: int) -> list[str]:
    """Those that are installed and fit into the memory."""
    found = []
    for name, make in CONTENDERS.items():
        if images > MOST_IMAGES.get(name, images):
            continue
        try:
            make(embeddings(16, 8))
        except ImportError:
            continue
        found.append(name)
    return found


def times(
    images: int, dim: int, names: list[str], least_seconds: float, most_calls: int
) -> dict[str, tuple[float, float]]:
    """Median CPU and wall seconds of each, of calls that alternate."""
    views = embeddings(images, dim)
    calls = {name: CONTENDERS[name](views) for name in names}
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for call in calls.values():
        call()
    started = time.perf_counter()
    while len(spent[names[0]]) < 3 or (
        time.perf_counter() - started < least_seconds and len(spent[names[0]]) < most_calls
    ):
        for name, call in calls.items():
            before = time.process_time(), time.perf_counter()
            call()
            spent[name].append((time.process_time() - before[0], time.perf_counter() - before[1]))
    return {name: tuple(map(statistics.median, zip(*all_of_it, strict=True))) for name, all_of_it in spent.items()}  # type: ignore[misc]


def memory(images: int, dim: int, name: str) -> float:
    """MiB that a call's peak lies above what was there before it; in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--memory-of", name, "--images", str(images), "--dims", str(dim)],
        capture_output=True,
        text=True,
    )
    return float(done.stdout.split()[-1]) if done.returncode == 0 else float("nan")


def print_memory(images: int, dim: int, name: str) -> None:
    CONTENDERS[name](embeddings(64, dim))()  # loads what is loaded once
    call = CONTENDERS[name](embeddings(images, dim))
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew (Linux)
    before = status("VmRSS")
    call()
    print((status("VmHWM") - before) / 1024)


def status(key: str) -> int:
    """A line of what the kernel knows of this process, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1])


def table(images: int, dim: int, options: argparse.Namespace) -> str:
    names = contenders(images)
    measured = times(images, dim, names, options.seconds, options.calls)
    reference = measured.get("lightly NTXentLoss")
    lowest = {half: measured[name][0] for half, name in ((4, "floor, 4 half products"), (5, "floor, 5 half products"))}
    lines = [f"\n## {images:,} images, {dim} dimensions\n"]
    lines += [
        "| | CPU ms | wall ms | MiB | of lightly's time | times its floor |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name in names:
        cpu, wall = measured[name]
        room = "" if name.startswith("floor") else f"{memory(images, dim, name):,.0f}"
        share = "" if reference is None else f"{cpu / reference[0]:.2f}"
        sees_first = any(word in name for word in ("GlobalThreshold", "BatchQuantile"))
        over = f"{cpu / lowest[5 if sees_first else 4]:.2f}" if name.startswith("falseneg") else ""
        lines.append(f"| {name} | {1e3 * cpu:,.1f} | {1e3 * wall:,.1f} | {room} | {share} | {over} |")
        print(lines[-1], flush=True)
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", nargs="+", type=int, default=[256, 1024, 4096])
    parser.add_argument("--dims", nargs="+", type=int, default=[128, 512])
    parser.add_argument("--seconds", type=float, default=20.0, help="for all calls of one table, about")
    parser.add_argument("--calls", type=int, default=200, help="of each, at most")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        print_memory(options.images[0], options.dims[0], options.memory_of)
        return
    heading = (
        f"# Losses and their gradients, {datetime.date.today()}\n\n`python {' '.join(['benchmarks/losses.py', *sys.argv[1:]])}`\n\n"
        f"{platform.machine()}, {torch.get_num_threads()} threads of {os.cpu_count()} cores, torch {torch.__version__}, "
        f"float32. {__doc__.split(chr(10) * 2)[2]}\n"
    )
    text = heading
    for dim in options.dims:
        for images in options.images:
            text += table(images, dim, options)
            if options.out:
                options.out.write_text(text)


if __name__ == "__main__":
    main()
