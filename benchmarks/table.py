"""Does a step cost more when the data set is larger? The operations on what is kept for each sample, timed alone.

    python benchmarks/table.py [--threads 1] --out FILE.md

A step of 256 images with 2 views: GloFND's thresholds (read, average over views, Adam, write, read), the running mean u
of SogCLR and the temperatures of iSogCLR, in tables of 10 thousand to 10 million rows, on rows drawn at random. The sweep
over the similarities is left out (8 candidates): it does not know how many rows there are. Medians of CPU time.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn.functional import normalize

import falseneg as fn
from falseneg.files import write_bytes

IMAGES, VIEWS, DIM, CANDIDATES = 256, 2, 128, 8
ROWS = (10_000, 100_000, 1_000_000, 10_000_000)
CLOCK = fn.Clock(0, 1, 1)


def contrast_of(sample: torch.Tensor) -> fn.Contrast:
    z = normalize(torch.randn(len(sample), DIM), dim=1)
    candidates = fn.Embedded(normalize(torch.randn(CANDIDATES, DIM), dim=1), torch.full((CANDIDATES,), fn.NOBODY))
    return fn.Contrast("views", fn.Embedded(z, sample), candidates, torch.ones(len(z), 1))


def median(work: Callable[[fn.Contrast], object], contrasts: list[fn.Contrast]) -> float:
    """Milliseconds of CPU time of one step; the first few are not counted."""
    spent = []
    for contrast in contrasts:
        started = time.process_time()
        work(contrast)
        spent.append(time.process_time() - started)
    return 1e3 * statistics.median(spent[5:])


def thresholds(facts: fn.Facts, contrasts: list[fn.Contrast]) -> float:
    detector = fn.GlobalThreshold(alpha=0.1, initial=1.0)
    detector.prepare(facts)
    return median(lambda contrast: detector.flag(contrast, CLOCK), contrasts)


def running_means(facts: fn.Facts, contrasts: list[fn.Contrast]) -> float:
    objective = fn.GlobalContrastive()
    objective.prepare(facts)
    running, seen = objective.running["views"], torch.randn(IMAGES * VIEWS)

    def observe(contrast: fn.Contrast) -> None:
        row = contrast.anchors.table_row
        running.before_filtering(row)
        running.update(row, seen, seen, torch.zeros_like(seen, dtype=torch.bool), 0.9)
        running.log_mean(row)

    return median(observe, contrasts)


def temperatures(facts: fn.Facts, contrasts: list[fn.Contrast]) -> float:
    temperature = fn.IndividualTemperature()
    temperature.prepare(facts)

    def move(contrast: fn.Contrast) -> None:
        tau = temperature(contrast)
        tau.grad = torch.ones_like(tau)
        temperature.after_backward(CLOCK)

    return median(move, contrasts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=205)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    lines = [
        f"# Operations on what is kept for each sample ({datetime.date.today()})",
        "",
        f"{platform.processor() or platform.machine()}, {options.threads} thread(s), torch {torch.__version__}. Milliseconds "
        f"of CPU time a step of {IMAGES} images x {VIEWS} views (median of {options.steps - 5} steps), by the rows of the table.",
        "",
        "| rows | thresholds (GloFND) | running mean (SogCLR) | temperatures (iSogCLR) |",
        "| --- | --- | --- | --- |",
    ]
    for rows in ROWS:
        torch.manual_seed(0)
        contrasts = [contrast_of(torch.randint(rows, (IMAGES,)).repeat_interleave(VIEWS)) for _ in range(options.steps)]
        facts = fn.Facts(rows=rows, negatives=CANDIDATES)
        spent = [part(facts, contrasts) for part in (thresholds, running_means, temperatures)]
        lines.append(f"| {rows:,} | " + " | ".join(f"{milliseconds:.2f}" for milliseconds in spent) + " |")
        print(lines[-1])
    write_bytes(options.out, ("\n".join(lines) + "\n").encode())


if __name__ == "__main__":
    main()
