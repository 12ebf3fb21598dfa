"""Images per CPU second that an encoder learns from, by the pixels of its views and by its stem.

    python benchmarks/stems.py --out benchmarks/results/DATE-stems.md

ResNet-18 from random weights, forward and backward, one thread, in channels-last as `Encoder` runs it. Cells are visited in
turn, round after round, and figures are medians of CPU time, so that a busy machine is as unfair to one as to the other.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import statistics
import time
from pathlib import Path

import torch
from torch import nn

import falseneg as fn
from falseneg.models.encoder import SMALL_STEM

SIZES = (32, 48, 64, 80, 96, 128)
STEMS = {
    "small: 3 × 3, no pooling": {"small_stem": True},
    "half: 3 × 3 of stride 2, no pooling": {"small_stem": True, "stride": 2},
    "usual: 7 × 7 of stride 2, pooling": {"small_stem": False},
}


def encoder_of(size: int, small_stem: bool | None, stride: int = 1, channels: list[int] | None = None) -> fn.Encoder:
    encoder = fn.Encoder(
        "resnet18", size, small_stem=small_stem, arguments={"channels": channels} if channels else None
    )
    if stride > 1:
        encoder.backbone.conv1.stride = (stride, stride)
    return encoder.train()


def cost(encoder: nn.Module, images: torch.Tensor) -> float:
    """CPU seconds an image."""
    begin = time.process_time()
    encoder(images).square().sum().backward()
    return (time.process_time() - begin) / len(images)


def table(rounds: int, batch: int, channels: list[int] | None) -> list[str]:
    cells = {
        (stem, size): encoder_of(size, **options, channels=channels)
        for stem, options in STEMS.items()
        for size in SIZES
    }
    times: dict[tuple[str, int], list[float]] = {cell: [] for cell in cells}
    for turn in range(rounds + 1):
        for (stem, size), encoder in cells.items():
            seconds = cost(encoder, torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8))
            if turn:  # the first round warms up
                times[stem, size].append(seconds)
    rate = {cell: 1 / statistics.median(seconds) for cell, seconds in times.items()}
    lines = ["| stem | " + " | ".join(f"{size} pixels" for size in SIZES) + " |", "| --- |" + " --- |" * len(SIZES)]
    lines += [f"| {stem} | " + " | ".join(f"{rate[stem, size]:.1f}" for size in SIZES) + " |" for stem in STEMS]
    small, _, usual = STEMS
    chosen = [rate[small if size <= SMALL_STEM else usual, size] for size in SIZES]
    before = [rate[small if size <= 64 else usual, size] for size in SIZES]
    lines += [f"| **by default** | {' | '.join(f'**{value:.1f}**' for value in chosen)} |"]
    lines += [f"| by default until now | {' | '.join(f'{value:.1f}' for value in before)} |"]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = [f"# Stems, {datetime.date.today()}", "", "`python benchmarks/stems.py`", ""]
    lines += [
        f"{platform.machine()}, one thread, torch {torch.__version__}, {options.batch} images at a time. Images per CPU second."
    ]
    for title, channels in (
        ("ResNet-18", None),
        ("ResNet-18 with half its channels, the default on a CPU", [32, 64, 128, 256]),
    ):
        lines += ["", f"## {title}", "", *table(options.rounds, options.batch, channels)]
    text = "\n".join(lines) + "\n"
    print(text)
    if options.out:
        options.out.write_text(text)


if __name__ == "__main__":
    main()
