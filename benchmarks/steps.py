"""Seconds of a whole training step with each detector, over those of the same step without any.

    python benchmarks/steps.py --out benchmarks/results/DATE-steps.md
    python benchmarks/steps.py --device cuda --encoder resnet50 --side 224 --images 256 --out FILE.md

The step is the one of `falseneg pretrain`: encode, compare, flag, the way back, the optimiser, and the count of what was
flagged against the labels; on views of noise that are in memory already. Steps with and without a detector take turns in one
process; the ratio is the median of the ratios of neighbours. On a GPU each figure is that of several steps in a row, for
only so it shows what waits. `added_cost.py` measures the added operations alone, which says more where they are few.
"""

from __future__ import annotations

import argparse
import datetime
import shlex
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from added_cost import (
    CLASSES,
    CLOCK,
    CROP_SIDE,
    MULTI_CROP,
    ROWS,
    TWO,
    Case,
    Spent,
    cases,
    crop_side,
    machine,
    prepared,
    spent_on,
    trainee,
)
from lightning_fabric import Fabric

import falseneg as fn
from falseneg.train.metrics import Meter
from falseneg.train.step import EncodeBatch, Learner, training_step

Steps = Callable[[], object]


def steps_of(case: Case, options: argparse.Namespace) -> Steps:
    """Some steps in a row: one on a CPU."""
    fabric = Fabric(accelerator=options.device, devices=1, precision=options.precision)
    method, views = trainee(options.encoder, options.side, case.views, options.images, options.device)
    criterion = fn.Criterion(prepared(case, options.images, options.device), case.strategy).to(options.device)
    optimiser = fabric.setup_optimizers(torch.optim.SGD(method.parameters(), 0.01, momentum=0.9))
    learner = Learner(fabric, method, fabric.setup_module(EncodeBatch(method)), criterion, optimiser)
    method.train()
    labels = torch.randint(CLASSES, (ROWS,), generator=torch.Generator().manual_seed(1)).to(options.device)

    def run() -> None:
        counted = Meter()
        for _ in range(options.steps if options.device == "cuda" else 1):
            loss, judged = training_step(learner, views, CLOCK)
            counted = counted + Meter.of_step(loss, judged, labels)
        counted.pooled(fabric)

    return run


def beside(plain: Steps, detecting: Steps, options: argparse.Namespace) -> tuple[Spent, float]:
    """What the detecting steps take, and how many times the plain ones' time that is."""
    plain(), detecting()
    pairs = [(spent_on(plain, options.device), spent_on(detecting, options.device)) for _ in range(options.repeat)]
    on_cpu = options.device == "cpu"
    ratios = [theirs.cpu / own.cpu if on_cpu else theirs.wall / own.wall for own, theirs in pairs]
    return Spent.median([theirs for _, theirs in pairs]), statistics.median(ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="resnet18")
    parser.add_argument("--side", type=int, default=64, help="pixels of a view")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--repeat", type=int, default=5, help="pairs of turns")
    parser.add_argument("--steps", type=int, default=10, help="steps of a turn on a GPU")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    lines = [
        f"# Whole training steps, {datetime.date.today()}",
        "",
        f"`{shlex.join(['python', 'benchmarks/steps.py', *sys.argv[1:]])}`",
        "",
        f"{machine(options.device)}. {options.encoder}, views of {options.side} pixels, {options.images} images a step. "
        + __doc__.split("\n\n")[2].replace("\n", " ").strip(),
        "",
        "| detector | step | s a step | images a second | over none |",
        "| --- | --- | --- | --- | --- |",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for name, case in cases(Path(folder)).items():
            if case.first_visits or case.views not in (TWO, MULTI_CROP):
                continue
            plain = steps_of(Case(fn.NoDetection, fn.IGNORE, case.views), options)
            spent, ratio = beside(plain, steps_of(case, options), options)
            seconds = spent.wall / (options.steps if options.device == "cuda" else 1)
            figures = f"{seconds:.3f} | {options.images / seconds:,.0f} | {ratio:.3f}"
            views = case.views.replace(f"of {CROP_SIDE}", f"of {crop_side(options.side)}")
            lines.append(f"| {name} | {views} | {figures} |")
            print(lines[-1], flush=True)
            if options.out is not None:
                options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
