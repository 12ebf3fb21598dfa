"""What the processes of a training tell each other in a step: bytes counted, beside the formula.

    python benchmarks/communication.py --out benchmarks/results/DATE-communication.md

Each of some gloo processes takes steps of a loss on random embeddings; whatever is handed to a collective is counted. A
process that holds n of N rows hears the N rows of D float32 numbers once, and gives back the gradient of all of them (NCCL: of
its own), and for each quantity that is kept of an image, or of a view, 8 bytes and 1 to 3 times 8 bytes. No count may grow with the square
of the batch: that is checked. The gradient of the parameters (DDP) comes on top: 4 bytes for each, on the way there and back.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from added_cost import machine
from torch import Tensor, nn
from torch.nn.functional import normalize

import falseneg as fn
from falseneg.files import write_bytes
from falseneg.losses import Criterion

DIM, ROWS, SIDE, PARAMETERS = 128, 100_000, 32, 11_168_832  # of a ResNet-18
SIZES = (64, 256, 1024)  # images on each process
FORMS = {
    "InfoNCE": lambda: (fn.NoDetection(), fn.InfoNCE(), fn.FixedTemperature(0.2)),
    "FNC, support set of 2": lambda: (fn.SupportSet(top_k=8), fn.InfoNCE(), fn.FixedTemperature(0.2)),
    "GloFND": lambda: (fn.GlobalThreshold(0.1), fn.InfoNCE(), fn.FixedTemperature(0.2)),
    "GloFND, iSogCLR": lambda: (fn.GlobalThreshold(0.1), fn.GlobalContrastive(rho=0.3), fn.IndividualTemperature(0.2)),
}


class Counted:
    """Bytes that a process hands to collectives, by what they are."""

    def __init__(self) -> None:
        self.bytes: Counter[str] = Counter()

    def __enter__(self) -> Counted:
        self.plain = {name: getattr(dist, name) for name in ("all_gather", "all_reduce", "broadcast")}
        dist.all_gather = lambda there, own, **more: self.note("all_gather", own, there, own, **more)
        dist.all_reduce = lambda tensor, *given, **more: self.note("all_reduce", tensor, tensor, *given, **more)
        dist.broadcast = lambda tensor, *given, **more: self.note("broadcast", tensor, tensor, *given, **more)
        return self

    def note(self, name: str, what: Tensor, *given: Any, **more: Any) -> Any:
        kind = "rows" if what.ndim > 1 and what.shape[-1] == DIM else "numbers of rows"
        self.bytes[kind if what.numel() > 8 else "single numbers"] += what.nbytes
        return self.plain[name](*given, **more)

    def __exit__(self, *_: object) -> None:
        for name, function in self.plain.items():
            setattr(dist, name, function)


class Rows(nn.Module):
    """An encoder whose features are the images."""

    feature_dim = DIM

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, :DIM].float() / 255


def count(rank: int, world: int, folder: str) -> None:
    """One process: a Counter for each form and size."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting{world}", rank=rank, world_size=world)
    found = {}
    for name, form in FORMS.items():
        for images in SIZES:
            method = fn.SimCLR(Rows(), head_layers=1, head_dim=DIM, support_views=2 if "support" in name else 0)
            criterion = Criterion(*_in_order(form()))
            criterion.prepare(fn.Facts(ROWS, 2 * (images * world - 1), contrasts=method.contrast_names))
            for step in range(2):  # the first prepares what the later ones find
                generator = torch.Generator().manual_seed(step * world + rank)
                streams = {
                    stream: torch.randint(0, 256, (images, number, 3, 7, 7), generator=generator, dtype=torch.uint8)
                    for stream, number in method.streams.items()
                }
                index = torch.randint(ROWS, (images,), generator=generator)
                embeddings = method.encode(fn.Batch(index, streams))
                with Counted() as counted:
                    loss, _ = criterion(method.contrasts(embeddings), fn.Clock(step, 2, 1))
                    loss.backward()
            found[name, images] = dict(counted.bytes)
    if rank == 0:
        torch.save(found, f"{folder}/found{world}.pt")
    dist.destroy_process_group()


def _in_order(form: tuple[Any, Any, Any]) -> tuple[Any, ...]:
    detector, objective, temperature = form
    return detector, fn.ELIMINATE, objective, temperature


def seconds(work: Callable[[], object], rounds: int = 5) -> float:
    """Median CPU time; the first round is not counted."""
    spent = []
    for _ in range(rounds + 1):
        before = time.process_time()
        work()
        spent.append(time.process_time() - before)
    return statistics.median(spent[1:])


def encoding(images: int) -> float:
    """Seconds of a process for its images, both views, forward and back."""
    encoder = fn.Encoder("resnet18", SIDE)
    views = torch.randint(0, 256, (2 * images, 3, SIDE, SIDE), dtype=torch.uint8)
    return seconds(lambda: encoder(views).sum().backward(), 2)


def comparing(images: int, world: int) -> float:
    """Seconds of a process for the loss of its images against those of all, GloFND and the gradient included."""
    of_anchor = torch.arange(images).repeat_interleave(2)
    everyone = torch.arange(images * world).repeat_interleave(2)
    detector = fn.GlobalThreshold(0.1)
    criterion = Criterion(detector, fn.ELIMINATE, temperature=0.2)
    criterion.prepare(fn.Facts(images * world, 2 * (images * world - 1), contrasts=("views",)))
    z = normalize(torch.randn(len(of_anchor), DIM), dim=1).requires_grad_()
    others = normalize(torch.randn(len(everyone), DIM), dim=1).requires_grad_()
    anchors, candidates = fn.Embedded(z, of_anchor), fn.Embedded(others, everyone)

    def step() -> None:
        contrast = fn.Contrast("views", anchors, candidates, z.sum(1, keepdim=True) * 0 + 0.9)
        criterion([contrast], fn.Clock(1, 10, 1))[0].backward()

    return seconds(step)


def weak_scaling(images: int, bandwidth: float) -> list[str]:
    """Lines of a table: what a step would take on more processes with the same number of images each."""
    alone = encoding(images)
    lines = [
        "",
        f"## More processes, {images} images on each: an estimate",
        "",
        f"A ResNet-18 at {SIDE} pixels, GloFND, D = {DIM}; one thread of this machine as each process's device: encoding and the "
        f"way back take {alone:.2f} s (measured), the loss against the rows of all processes what stands in the table (measured, "
        "alone, with random rows of that number), the bytes follow from the formula with NCCL's reduce-scatter (rows there, "
        f"gradients back, {PARAMETERS:,} parameters twice). Assumed: {bandwidth:g} GB/s for each process, nothing hidden behind "
        "computing, no process waits for a slower one. A GPU encodes some hundred times as fast: the last column says what is "
        "left there if it compares as much faster as it encodes, by a factor of 100, and the network stays the same.",
        "",
        "| processes | images in all | loss, s | MB sent by each | s for them | kept of one process's speed | with devices 100 times as fast |",
        "|---|---|---|---|---|---|---|",
    ]
    first = alone + comparing(images, 1)
    for world in (1, 2, 4, 8, 16, 32, 64, 128, 256):
        loss = comparing(images, world)
        share = (world - 1) / world
        sent = share * (2 * 2 * images * world * DIM * 4 + 2 * PARAMETERS * 4 + 80 * images * world)
        wire = sent / (bandwidth * 1e9)
        kept, fast = first / (alone + loss + wire), first / 100 / ((alone + loss) / 100 + wire)
        lines.append(
            f"| {world} | {images * world:,} | {loss:.3f} | {sent / 1e6:,.1f} | {wire:.4f} | {kept:.0%} | {fast:.0%} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bandwidth", type=float, default=12.5, help="GB/s of each process, for the estimate")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        f"# What processes tell each other in a step, {datetime.date.today()}",
        "",
        f"`python benchmarks/communication.py`; {machine('cpu')}. Two views, D = {DIM}. Bytes that one process hands to collectives, "
        "for each of *its* images (to a gather its own rows, to an all-reduce of gradients those of all processes); the same with "
        f"{', '.join(map(str, SIZES))} images on each process, which is checked.",
        "",
        "| form | processes | embeddings and their gradient | formula | kept of each image | single numbers, in all |",
        "|---|---|---|---|---|---|",
    ]
    for world in (2, 3, 4):
        with tempfile.TemporaryDirectory() as folder:
            mp.spawn(count, (world, folder), nprocs=world)
            found = torch.load(f"{folder}/found{world}.pt", weights_only=True)
        for name in FORMS:
            expected = 2 * DIM * 4 * (1 + world)
            of_sizes = {
                (there["rows"] / images, there["numbers of rows"] / images, there["single numbers"])
                for (other, images), there in found.items()
                if other == name
            }
            assert len(of_sizes) == 1, (name, world, of_sizes)
            rows, kept, single = of_sizes.pop()
            assert rows == expected, (name, world, rows)
            lines.append(
                f"| {name} | {world} | {rows:,.0f} | 2 · {DIM} · 4 · (1 + {world}) = {expected:,} | {kept:,.0f} | {single} |"
            )
    write_bytes(options.out, ("\n".join(lines + weak_scaling(64, options.bandwidth)) + "\n").encode())


if __name__ == "__main__":
    main()
