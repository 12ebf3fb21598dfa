"""Losses and their gradients beside those of the peers: time and memory, detection off and on, against the floor.

    pip install lightly pytorch-metric-learning open_clip_torch matplotlib
    python benchmarks/losses.py --out benchmarks/results/DATE-losses.md

All that is installed takes part. Calls alternate in one process, so that a busy machine is as unfair to one as to the
other; the figure is the median of CPU seconds, and of seconds on the wall. Memory is measured in a process of its own for
each: what its peak grows by, beyond the embeddings, from before the call, which is a detector's first. The floor is the time
of the matrix products that the method cannot do without, measured alone in the same run: of a symmetric matrix half the
products, once forward and once backward, two half products for the gradient, and another half for a detector that must see
all pairs before the loss does, or 8 for a support set of 8 views. A plot lies beside the table.
"""

from __future__ import annotations

import argparse
import datetime
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from added_cost import Case, Spent, cases, machine, prepared, spent_on
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

import falseneg as fn
from falseneg.methods.simclr import contrast_views
from falseneg.statistics import tiles

TEMPERATURE = 0.1
SUPPORT = 8
CLASSES = 100
CLOCK = fn.Clock(100, 10, 100)
LIGHTLY = "lightly NTXentLoss"
FLOORS = (4, 5, 4 + SUPPORT)
"""Half products: of a plain loss, of one after a detector that sees all pairs, of one after a support set."""
Call = Callable[[], object]


@dataclass(frozen=True)
class Measured:
    """One contender at one size; MiB are NaN where the process failed, or was not asked."""

    images: int
    dim: int
    name: str
    cpu: float
    wall: float
    mebibytes: float


def embeddings(images: int, dim: int, device: str) -> Tensor:
    """(B, 2, D) unit rows in about 100 loose groups, so that thresholds flag something."""
    draw = torch.Generator().manual_seed(0)
    centre = torch.randn(CLASSES, dim, generator=draw)[torch.randint(0, CLASSES, (images,), generator=draw)]
    rows = centre[:, None] + 1.5 * torch.randn(images, 2, dim, generator=draw)
    return normalize(rows, dim=-1).to(device).requires_grad_()


def backward(loss: Tensor, views: Tensor) -> None:
    loss.backward()
    views.grad = None


def ours(views: Tensor, case: Case, support: int = 0) -> Call:
    """The whole step on given embeddings: detection, loss and gradient."""
    images, _, dim = views.shape
    detector = prepared(case, images, str(views.device))
    criterion = fn.Criterion(detector, case.strategy, temperature=TEMPERATURE).to(views.device)
    rows = {"image": views}
    if support:
        rows["support"] = normalize(torch.randn(images, support, dim, device=views.device), dim=-1)
    sample = torch.arange(images, device=views.device)

    def call() -> None:
        loss, _ = criterion([contrast_views(fn.Embeddings(sample, rows))], CLOCK)
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
    scale = torch.tensor(1 / TEMPERATURE, device=views.device)
    return lambda: backward(loss(views[:, 0], views[:, 1], scale), views)


def dense(views: Tensor) -> Call:
    """NT-Xent in five lines of PyTorch."""

    def call() -> None:
        z = views.flatten(0, 1)
        logits = (z @ z.T / TEMPERATURE).fill_diagonal_(-torch.inf)
        backward(cross_entropy(logits, torch.arange(len(z), device=z.device) ^ 1), views)

    return call


def floor(views: Tensor, halves: int, dtype: torch.dtype = torch.float32) -> Call:
    """So many times the products of half the matrix with themselves, in tiles of the library's own size."""
    z = views.detach().flatten(0, 1).to(dtype)
    size = tiles.TILE if z.device.type == "cpu" else tiles.DEVICE_TILE
    out, sink = z.new_empty(size * size), torch.zeros_like(z)

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


def contenders(folder: Path) -> dict[str, Callable[[Tensor], Call]]:
    """All of them by name; the lists of neighbours lie in the folder."""
    alpha = 1 / CLASSES
    added = cases(folder)
    mine = {
        "none": Case(fn.NoDetection),
        "FixedThreshold": Case(lambda: fn.FixedThreshold(0.5)),
        "FixedThreshold, attraction": Case(lambda: fn.FixedThreshold(0.5), fn.ATTRACT),
        "GlobalThreshold": Case(lambda: fn.GlobalThreshold(alpha)),
        "BatchQuantile": Case(lambda: fn.BatchQuantile(alpha)),
        "RelativeToPositive": added["RelativeToPositive"],
        "IncrementalClusters, 3 levels": added["IncrementalClusters, 3 levels (IFND)"],
        "Neighbours, 10 an image": added["Neighbours, 10 an image"],
        "Oracle, attraction": added["Oracle"],
    }
    support = f"SupportSet, {SUPPORT} views, top 10"
    found: dict[str, Callable[[Tensor], Call]] = {
        f"falseneg, {name}": lambda views, case=case: ours(views, case) for name, case in mine.items()
    }
    found[f"falseneg, {support}"] = lambda views: ours(views, Case(lambda: fn.SupportSet(top_k=10)), SUPPORT)
    found |= {
        LIGHTLY: lightly,
        "pytorch-metric-learning NTXentLoss": metric_learning,
        "open_clip ClipLoss (half the pairs, 2 directions)": open_clip,
        "dense PyTorch": dense,
    }
    found |= {f"floor, {halves} half products": lambda views, halves=halves: floor(views, halves) for halves in FLOORS}
    found |= {
        f"floor, {halves} half products in bfloat16": lambda views, halves=halves: floor(views, halves, torch.bfloat16)
        for halves in FLOORS
    }
    return found


MOST_IMAGES = {
    "pytorch-metric-learning NTXentLoss": 256,
    "dense PyTorch": 8192,
    LIGHTLY: 8192,
    "open_clip ClipLoss (half the pairs, 2 directions)": 8192,
}
"""What fits into the memory of 24 GiB, and pytorch-metric-learning's into a minute."""


def taking_part(makers: dict[str, Callable[[Tensor], Call]], images: int, options: argparse.Namespace) -> list[str]:
    """Those that are asked for, are installed and fit into the memory."""
    found = []
    for name, make in makers.items():
        wanted = not options.only or any(word in name for word in options.only)
        needless = "bfloat16" in name and options.device == "cpu"
        if not wanted or needless or images > MOST_IMAGES.get(name, images):
            continue
        try:
            make(embeddings(16, 8, options.device))
        except ImportError:
            continue
        found.append(name)
    return found


def times(calls: dict[str, Call], options: argparse.Namespace) -> dict[str, Spent]:
    """Medians of calls that alternate; the first calls warm up, unless they take all the time."""
    started = time.perf_counter()
    first = {}
    for name, call in calls.items():
        if "GlobalThreshold" in name:
            call()  # its first visit looks at all pairs once more
        first[name] = spent_on(call, options.device)
    spent: dict[str, list[Spent]] = {name: [] for name in calls}
    for _ in range(options.calls):
        if time.perf_counter() - started > options.seconds:
            break
        for name, call in calls.items():
            spent[name].append(spent_on(call, options.device))
    return {name: Spent.median(spent[name] or [first[name]]) for name in calls}


def memory(images: int, dim: int, name: str, device: str) -> float:
    """MiB that a call's peak lies above what was there before it; in a process of its own."""
    command = [
        sys.executable,
        __file__,
        "--memory-of",
        name,
        "--images",
        str(images),
        "--dims",
        str(dim),
        "--device",
        device,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    return float(done.stdout.split()[-1]) if done.returncode == 0 else float("nan")


def print_memory(images: int, dim: int, name: str, device: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        make = contenders(Path(folder))[name]
        make(embeddings(64, dim, device))()  # loads what is loaded once
        call = make(embeddings(images, dim, device))
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            call()
            print((torch.cuda.max_memory_allocated() - before) / 2**20)
            return
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew (Linux)
        before = status("VmRSS")
        call()
        print((status("VmHWM") - before) / 1024)


def status(key: str) -> int:
    """A line of what the kernel knows of this process, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1])


def measure(images: int, dim: int, options: argparse.Namespace) -> list[Measured]:
    with tempfile.TemporaryDirectory() as folder:
        makers = contenders(Path(folder))
        names = taking_part(makers, images, options)
        views = embeddings(images, dim, options.device)
        spent = times({name: makers[name](views) for name in names}, options)
    rooms = {name: float("nan") if "floor" in name else memory(images, dim, name, options.device) for name in names}
    return [Measured(images, dim, name, spent[name].cpu, spent[name].wall, rooms[name]) for name in names]


def table(rows: list[Measured], device: str) -> str:
    """The rows of one size, the peers' and the floor's shares beside them."""
    by_name = {row.name: row for row in rows}

    def seconds(name: str) -> float:
        """Of one processor core, or on the wall where a device does the work."""
        row = by_name.get(name)
        return float("nan") if row is None else row.cpu if device == "cpu" else row.wall

    lines = [f"\n## {rows[0].images:,} images, {rows[0].dim} dimensions\n"]
    lines += ["| | CPU ms | wall ms | MiB | of lightly's time | times its floor |", "| --- " * 6 + "|"]
    for row in rows:
        own_floor = f"floor, {floor_of(row.name)} half products"
        figures = [1e3 * row.cpu, 1e3 * row.wall]
        shares = [seconds(row.name) / seconds(LIGHTLY), seconds(row.name) / seconds(own_floor)]
        cells = [f"{figure:,.1f}" for figure in figures] + [f"{row.mebibytes:,.0f}"]
        cells += [f"{share:.2f}" for share in shares[: 2 if row.name.startswith("falseneg") else 1]]
        cells = ["" if cell == "nan" else cell for cell in cells]
        lines.append(f"| {row.name} | " + " | ".join(cells + [""] * (5 - len(cells))) + " |")
    return "\n".join(lines) + "\n"


def floor_of(name: str) -> int:
    """How many half products a contender cannot do without."""
    if "SupportSet" in name:
        return 4 + SUPPORT
    return 5 if any(word in name for word in ("GlobalThreshold", "BatchQuantile")) else 4


DRAWN = ("none", "GlobalThreshold", "IncrementalClusters", "SupportSet", *MOST_IMAGES, "floor, 4 half products")


def draw(rows: list[Measured], device: str, path: Path) -> None:
    """Time and memory by the number of images: a line for each peer, for the floor and for one detector of each kind."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "falseneg"  # the same picture from the same figures
    from matplotlib import pyplot

    dims = sorted({row.dim for row in rows})
    figure, axes = pyplot.subplots(len(dims), 2, figsize=(11, 4.2 * len(dims)), squeeze=False, layout="constrained")
    for (left, right), dim in zip(axes, dims, strict=True):
        names = dict.fromkeys(row.name for row in rows if row.name.removeprefix("falseneg, ").startswith(DRAWN))
        for number, name in enumerate(names):
            of_name = [row for row in rows if (row.name, row.dim) == (name, dim)]
            style = {
                "color": f"C{number % 10}" if not name.startswith("floor") else "0.6",
                "linestyle": "-" if name.startswith("falseneg") else ":" if name.startswith("floor") else "--",
                "marker": "os^Dv<>Ppx"[number % 10],
                "markersize": 4,
            }
            images = [row.images for row in of_name]
            label = name if dim == dims[0] else None
            left.plot(images, [row.cpu if device == "cpu" else row.wall for row in of_name], label=label, **style)
            if not name.startswith("floor"):
                right.plot(images, [max(1.0, row.mebibytes) for row in of_name], **style)
        for axis, title in ((left, f"seconds, {dim} dimensions"), (right, "MiB beyond the embeddings, at least 1")):
            axis.set(xscale="log", yscale="log", xlabel="images in the batch, two views each", title=title)
            axis.set_xticks(
                sorted({row.images for row in rows}), [f"{n:,}" for n in sorted({row.images for row in rows})]
            )
            axis.minorticks_off()
            axis.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", nargs="+", type=int, default=[256, 1024, 4096])
    parser.add_argument("--dims", nargs="+", type=int, default=[128, 512])
    parser.add_argument("--only", nargs="+", metavar="WORD", help="those whose names contain one of these words")
    parser.add_argument("--seconds", type=float, default=60.0, help="for all calls of one table, about")
    parser.add_argument("--calls", type=int, default=200, help="of each, at most")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        print_memory(options.images[0], options.dims[0], options.memory_of, options.device)
        return
    rows: list[Measured] = []
    text = (
        f"# Losses and their gradients, {datetime.date.today()}\n\n`{shlex.join(['python', 'benchmarks/losses.py', *sys.argv[1:]])}`\n\n"
        f"{machine(options.device)}; float32. {__doc__.split(chr(10) * 2)[2]}\n"
    )
    for dim in options.dims:
        for images in options.images:
            found = measure(images, dim, options)
            rows += found
            text += table(found, options.device)
            print(table(found, options.device), flush=True)
            if options.out:
                options.out.write_text(text)
                draw(rows, options.device, options.out.with_suffix(".svg"))


if __name__ == "__main__":
    main()
