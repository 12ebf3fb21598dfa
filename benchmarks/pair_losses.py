"""Losses of image-text pairs beside open_clip's: time and memory, GloFND off and on.

    pip install open_clip_torch
    python benchmarks/pair_losses.py --out benchmarks/results/DATE-pair-losses.md

Loss and gradient on given embeddings, both directions. Calls alternate in one process, so that a busy machine is as unfair to
one as to the other; the figure is the median of CPU seconds. Memory is measured in a process of its own for each: what its
peak grows by, beyond the embeddings, from before the first call, which is a detector's first. One product is that of all
images with all texts, measured in the same run. With --detection, instead: what GloFND adds to a step of a CLIP ResNet-50.
"""

from __future__ import annotations

import argparse
import datetime
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from added_cost import machine
from torch import Tensor
from torch.nn.functional import normalize

import falseneg as fn

CONTENDERS = ("open_clip ClipLoss", "falseneg, none", "falseneg, GloFND both ways", "falseneg, FastCLIP-v3 and GloFND")
CLASSES, ALPHA, SCALE = 100, 0.01, 14.3


def embeddings(pairs: int, dim: int) -> tuple[Tensor, Tensor]:
    """(B, D) unit rows in about 100 loose groups, so that thresholds flag something."""
    draw = torch.Generator().manual_seed(0)
    centre = torch.randn(CLASSES, dim, generator=draw)[torch.randint(0, CLASSES, (pairs,), generator=draw)]
    own = centre + 1.5 * torch.randn(pairs, dim, generator=draw)
    sides = (normalize(own + 0.7 * torch.randn(pairs, dim, generator=draw), dim=1) for _ in range(2))
    image, text = (side.requires_grad_() for side in sides)
    return image, text


def call_of(name: str, pairs: int, dim: int) -> Callable[[], object]:
    image, text = embeddings(pairs, dim)
    scale, sample = torch.tensor(SCALE, requires_grad=True), torch.arange(pairs)
    if name == CONTENDERS[0]:
        from open_clip.loss import ClipLoss

        peer = ClipLoss()
        loss = lambda: peer(image, text, scale)  # noqa: E731
    elif name == CONTENDERS[1]:
        plain = fn.PairLoss()
        loss = lambda: plain(image, text, scale)  # noqa: E731
    else:
        objective, temperature = None, None
        if name == CONTENDERS[3]:
            objective = fn.GlobalContrastive(0.8, relative=True, rho=6.5)
            temperature = fn.LearnedTemperature(1 / SCALE, step=fn.AdamStep(2e-4, 0.9, 0.999), slower_below=0.03)
        ours = fn.PairLoss(fn.GlobalThreshold(ALPHA), "eliminate", objective, temperature, pairs=pairs)
        loss = lambda: ours(image, text, scale, sample=sample)  # noqa: E731

    def call() -> None:
        loss().backward()
        image.grad = text.grad = scale.grad = None

    return call


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def memory_alone(name: str, pairs: int, dim: int) -> float:
    """MiB that the peak of a process of its own grows by."""
    command = [sys.executable, __file__, "--alone", name, "--pairs", str(pairs), "--dim", str(dim)]
    done = subprocess.run(command, capture_output=True, text=True)
    return float(done.stdout.split()[-1]) if done.returncode == 0 else float("nan")


def alone(name: str, pairs: int, dim: int) -> None:
    call_of(name, 64, dim)()  # what a first call loads
    call = call_of(name, pairs, dim)
    Path("/proc/self/clear_refs").write_text("5")  # begin a new peak
    status = Path("/proc/self/status")

    def high() -> float:
        return next(int(line.split()[1]) / 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM"))

    before = high()
    call()
    print(high() - before)


def measured(pairs: int, dim: int, repeat: int, names: tuple[str, ...]) -> dict[str, float]:
    """Median CPU seconds of each, and of one product."""
    calls = {name: call_of(name, pairs, dim) for name in names}
    image, text = (side.detach() for side in embeddings(pairs, dim))
    calls["one product"] = lambda: image @ text.T
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeat + 1):
        for name, call in calls.items():
            started = time.process_time()
            call()
            if turn:
                spent[name].append(time.process_time() - started)
    return {name: statistics.median(each) for name, each in spent.items()}


def table(sizes: list[tuple[int, int]], repeat: int) -> str:
    lines = [
        "| pairs | D | loss | CPU seconds | of open_clip's | products | MiB | of open_clip's |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for pairs, dim in sizes:
        names = CONTENDERS if pairs <= 8192 else CONTENDERS[1:3]
        times = measured(pairs, dim, repeat if pairs <= 8192 else 1, names)
        memory = {name: memory_alone(name, pairs, dim) for name in names}
        for name in names:
            share = [f"{of[name] / of[CONTENDERS[0]]:.0%}" if CONTENDERS[0] in of else "" for of in (times, memory)]
            products = times[name] / times["one product"]
            lines.append(
                f"| {pairs:,} | {dim} | {name} | {times[name]:.2f} | {share[0]} | {products:.1f} | {memory[name]:,.0f} | {share[1]} |"
            )
    return "\n".join(lines)


def detection(pairs: int, repeat: int) -> str:
    """What GloFND adds to a step of CLIP's ResNet-50: its `flag` in both directions, and the loss with its rules less without."""
    import open_clip

    from falseneg.losses import Criterion
    from falseneg.methods.two_towers import contrast_pairs

    model = open_clip.create_model("RN50", load_weights=False)
    few = 8
    images, texts = torch.randn(few, 3, 224, 224), open_clip.get_tokenizer("RN50")(["a photo of a thing"] * few)
    spent = []
    for _ in range(repeat + 1):
        started = time.process_time()
        image, text, _ = model(images, texts)
        (image.sum() + text.sum()).backward()
        spent.append(time.process_time() - started)
    step = statistics.median(spent[1:]) / few * pairs  # in proportion to the images; the optimiser's part is left out
    side, other = embeddings(pairs, 1024)
    rows = {"image": side[:, None], "text": other[:, None]}
    facts = fn.Facts(10 * pairs, pairs - 1, contrasts=fn.TwoTowers.contrast_names)
    parts = {"plain": Criterion(temperature=0.07), "glofnd": Criterion(fn.GlobalThreshold(ALPHA), temperature=0.07)}
    times: dict[str, list[float]] = {name: [] for name in parts}
    for criterion in parts.values():
        criterion.prepare(facts)
    for turn in range(repeat + 1):
        for name, criterion in parts.items():
            started = time.process_time()
            loss, _ = criterion(contrast_pairs(fn.Embeddings(torch.arange(pairs), rows)), fn.Clock(0, 10, 10))
            loss.backward()
            if turn:
                times[name].append(time.process_time() - started)
    plain, with_it = (statistics.median(times[name]) for name in ("plain", "glofnd"))
    return (
        f"| pairs | step without detection, s | loss, s | loss with GloFND, s | added / step |\n|---|---|---|---|---|\n"
        f"| {pairs:,} | {step + plain:,.1f} | {plain:.2f} | {with_it:.2f} | {(with_it - plain) / (step + plain):.4f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["1024x512", "4096x512", "32768x512"])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--detection", type=int, help="instead: what GloFND adds to a step of so many pairs")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    parser.add_argument("--pairs", type=int, default=4096, help=argparse.SUPPRESS)
    parser.add_argument("--dim", type=int, default=512, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.alone:
        alone(given.alone, given.pairs, given.dim)
        return
    if given.detection:
        found = detection(given.detection, given.repeat)
    else:
        sizes = [(int(size.split("x")[0]), int(size.split("x")[1])) for size in given.sizes]
        found = table(sizes, given.repeat)
    command = " ".join(["python benchmarks/pair_losses.py", *sys.argv[1:]])
    text = f"# Losses of image-text pairs, {datetime.date.today()}\n\n{machine('cpu')}, {given.threads} thread(s). `{command}`\n\n{found}\n"
    print(text)
    if given.out:
        given.out.write_text(text)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
