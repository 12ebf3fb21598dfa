"""What detection adds to a step: the time of a detector's operations over that of the step without it.

    python benchmarks/added_cost.py --out benchmarks/results/DATE-added-cost.md

Both are measured alone, in one run. The step: a ResNet-18 at 224 pixels encodes the views, plain InfoNCE, the way back,
SGD; no loading of images, which would only make the share smaller. What is added: the detector's `flag`, and the loss on
given embeddings with the detector's rule and strategy less the same loss without any rule, there and back. FNC shares its
support set with multi-crop, so that its step has the crops with or without it. The step takes a time in proportion to its
images; it is measured at one batch size, and scaled for the others, where the added operations are measured too.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

import falseneg as fn
from falseneg.methods.simclr import contrast_views
from falseneg.statistics import stats_of_levels

SIDE, CROP_SIDE, CROPS, DIM = 224, 96, 8, 128
ROWS, CLASSES = 126_689, 100  # ImageNet-100
TWO, MULTI_CROP, TEN = "2 views", f"2 views and {CROPS} crops of {CROP_SIDE}", "10 views"
MAIN_VIEWS = {TWO: 2, MULTI_CROP: 2, TEN: 10}
CLOCK = fn.Clock(0, 100, 1)
TARGET = 0.02


@dataclass(frozen=True)
class Case:
    """A detector, what is done with what it flags, and the views of the step."""

    make: Callable[[], fn.Detector]
    strategy: fn.Strategy = fn.ELIMINATE
    views: str = TWO
    first_visits: bool = False


@dataclass(frozen=True)
class Spent:
    """Seconds on the wall and of all processor cores."""

    wall: float
    cpu: float

    @staticmethod
    def median(spent: list[Spent]) -> Spent:
        return Spent(statistics.median(s.wall for s in spent), statistics.median(s.cpu for s in spent))

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.wall + other.wall, self.cpu + other.cpu)

    def __mul__(self, factor: float) -> Spent:
        return Spent(self.wall * factor, self.cpu * factor)


def spent_on(work: Callable[[], object], device: str) -> Spent:
    """What one call takes, to its end on the device."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    wait()
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    wait()
    return Spent(time.perf_counter() - wall, time.process_time() - cpu)


def cases(folder: Path) -> dict[str, Case]:
    """Every detector; about one candidate in a hundred is flagged."""
    alpha = 1 / CLASSES
    listed = folder / "neighbours.npy"
    np.save(listed, np.random.default_rng(0).integers(0, ROWS, (ROWS, 10)))
    labels = torch.randint(CLASSES, (ROWS,), generator=torch.Generator().manual_seed(1))
    renormalised = fn.ELIMINATE.renormalised()
    return {
        "SupportSet, top 10 and above .7 (FNC)": Case(
            lambda: fn.SupportSet(top_k=10, threshold=0.7), fn.ATTRACT, MULTI_CROP
        ),
        "SupportSet, top 8, mean (FNC)": Case(lambda: fn.SupportSet(top_k=8, mean=True), fn.ELIMINATE, MULTI_CROP),
        "SupportSet, above .7 (FNC)": Case(lambda: fn.SupportSet(threshold=0.7), fn.ATTRACT, MULTI_CROP),
        "SupportSet, released form (FNC)": Case(lambda: fn.SupportSet(top_k=10, threshold=0.7), fn.ATTRACT, TEN),
        "IncrementalClusters, 3 levels (IFND)": Case(clusters),
        "GlobalThreshold (GloFND)": Case(lambda: fn.GlobalThreshold(alpha), renormalised),
        "GlobalThreshold, first visits": Case(lambda: fn.GlobalThreshold(alpha), renormalised, first_visits=True),
        "GlobalThreshold, shared": Case(lambda: fn.GlobalThreshold(alpha, shared=True), renormalised),
        "BatchQuantile": Case(lambda: fn.BatchQuantile(alpha)),
        "FixedThreshold": Case(lambda: fn.FixedThreshold(0.7)),
        "RelativeToPositive": Case(lambda: fn.RelativeToPositive(relative_margin=0.05)),
        "Neighbours, 10 an image": Case(lambda: fn.Neighbours(listed)),
        "Oracle": Case(lambda: fn.Oracle(labels), fn.ATTRACT),
    }


def clusters() -> fn.Detector:
    return fn.IncrementalClusters([CLASSES, 3 * CLASSES, 10 * CLASSES], warmup="0 epochs", acceptance=1.0)


def prepared(case: Case, images: int, device: str) -> fn.Detector:
    """The detector with its tables; pseudo-labels are drawn, for the time that a look-up takes depends on none."""
    detector = case.make()
    detector.prepare(fn.Facts(ROWS, MAIN_VIEWS[case.views] * (images - 1)))
    if isinstance(detector, fn.IncrementalClusters):
        for level, number in enumerate(detector.clusters or ()):
            detector.clusters_of[:, level] = torch.randint(number, (ROWS,))
            detector.place_of[:, level] = torch.randperm(ROWS)
    return detector.to(device)


def embeddings_of(views: str, images: int, device: str) -> tuple[fn.Embeddings, list[Tensor]]:
    """Unit rows around a centre for each class, and the leaves that want a gradient."""
    draw = torch.Generator().manual_seed(0)
    number = MAIN_VIEWS[views] + (CROPS if views == MULTI_CROP else 0)
    centres = torch.randn(CLASSES, DIM, generator=draw)[torch.randint(CLASSES, (images,), generator=draw)]
    z = centres[:, None] + 0.5 * torch.randn(images, number, DIM, generator=draw)
    z = normalize(z, dim=-1).to(device)
    main, support = z[:, : MAIN_VIEWS[views]].clone().requires_grad_(), None
    if views == MULTI_CROP:
        support = z[:, MAIN_VIEWS[views] :].clone().requires_grad_()
    elif views == TEN:
        support = main.detach()
    sample = torch.randperm(ROWS, generator=draw)[:images].to(device)
    return fn.Embeddings(sample, {"image": main} | ({} if support is None else {"support": support})), [
        leaf for leaf in (main, support) if leaf is not None
    ]


def added(case: Case, images: int, device: str, repeat: int) -> tuple[Spent, Spent]:
    """What `flag` takes, and what the loss takes more, there and back, than without any rule."""
    embeddings, leaves = embeddings_of(case.views, images, device)
    tau = torch.tensor(0.1, device=device)

    def contrast() -> fn.Contrast:
        return contrast_views(embeddings, case.views == MULTI_CROP)

    def loss(rules: tuple[fn.PairRule, ...], strategy: fn.Strategy) -> None:
        made = contrast()
        levels = stats_of_levels(made, tau, rules, strategy)
        losses = [fn.InfoNCE()(made, stats, tau, strategy).mean() for stats in levels]
        torch.autograd.backward(torch.stack(losses).mean(), inputs=[leaf for leaf in leaves if leaf.requires_grad])

    detector, seen = prepared(case, images, device), contrast()
    flagging, growing = [], []
    for turn in range(repeat + 2):
        if case.first_visits:
            detector = prepared(case, images, device)
        flag = spent_on(lambda detector=detector: detector.flag(seen, CLOCK), device)
        rules = detector.flag(seen, CLOCK)
        rules = rules if isinstance(rules, tuple) else (rules,)
        more = spent_on(lambda rules=rules: loss(rules, case.strategy), device)
        less = spent_on(lambda: loss((fn.NoPairs(),), fn.ELIMINATE), device)
        if turn >= 2:  # the first ones find everything cold
            flagging.append(flag)
            growing.append(more + less * -1)
    return Spent.median(flagging), Spent.median(growing)


def crop_side(side: int) -> int:
    """Pixels of a crop beside views of so many: 96 for 224."""
    return round(side * CROP_SIDE / SIDE)


def trainee(encoder: str, side: int, views: str, images: int, device: str) -> tuple[fn.SimCLR, fn.Batch]:
    """A method, and a batch of noise for it, on the device."""
    crops, small_side = CROPS if views == MULTI_CROP else 0, crop_side(side)
    method = fn.SimCLR(
        fn.Encoder(encoder, side),
        views=MAIN_VIEWS[views],
        support_views=crops,
        support_as_positives=bool(crops),
        support_from_views=views == TEN,
    )
    main = torch.randint(0, 256, (images, MAIN_VIEWS[views], 3, side, side), dtype=torch.uint8)
    small = torch.randint(0, 256, (images, max(crops, 1), 3, small_side, small_side), dtype=torch.uint8)
    return method.to(device), fn.Batch(
        torch.arange(images), {"image": main} | ({"support": small} if crops else {})
    ).to(device)


def step(views: str, images: int, device: str, repeat: int) -> Spent:
    """The whole step without detection."""
    method, batch = trainee("resnet18", SIDE, views, images, device)
    optimiser = torch.optim.SGD(method.parameters(), 0.01, momentum=0.9)
    criterion = fn.Criterion(temperature=0.1)

    def work() -> None:
        optimiser.zero_grad(set_to_none=True)
        loss, _ = criterion(method.contrasts(method.encode(batch)), CLOCK)
        loss.backward()
        optimiser.step()

    return Spent.median([spent_on(work, device) for _ in range(repeat + 1)][1:])


def table(steps: dict[str, Spent], step_images: int, batches: list[int], device: str, repeat: int) -> list[str]:
    lines = [
        "| detector | step | images | flag, ms | loss, ms more | step without, s | added / step | by CPU time |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for name, case in cases(Path(folder)).items():
            for images in batches:
                flag, more = added(case, images, device, repeat)
                total, whole = flag + more, steps[case.views] * (images / step_images)
                lines.append(
                    f"| {name} | {case.views} | {images} | {1e3 * flag.wall:.2f} | {1e3 * more.wall:.2f} | {whole.wall:.2f} | "
                    f"{total.wall / whole.wall:.5f} | {total.cpu / whole.cpu:.5f} |"
                )
                print(lines[-1], flush=True)
    return lines


def machine(device: str) -> str:
    if device == "cuda":
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    names = [line.split(":")[1].strip() for line in cpu_lines() if line.startswith("model name")]
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}; load average at the start {load}"


def cpu_lines() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.is_file() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step-images", type=int, default=64, help="images in the step that is measured")
    parser.add_argument("--batches", nargs="+", type=int, default=[64, 256], help="images where the rest is measured")
    parser.add_argument(
        "--repeat", type=int, default=3, help="steps; the added operations are measured 7 times as often"
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    about = machine(options.device)
    steps = {views: step(views, options.step_images, options.device, options.repeat) for views in (TWO, MULTI_CROP)}
    steps[TEN] = steps[TWO] * (MAIN_VIEWS[TEN] / MAIN_VIEWS[TWO])
    for views, spent in steps.items():
        print(f"{views}: {spent.wall:.2f} s, {spent.cpu:.2f} s of CPU", flush=True)
    lines = table(steps, options.step_images, options.batches, options.device, 7 * options.repeat)
    text = (
        f"# What detection adds to a step\n\n{datetime.date.today()}, {about}.\n\n"
        f"    python benchmarks/added_cost.py --step-images {options.step_images} --repeat {options.repeat}\n\n"
        f"ResNet-18 at {SIDE} pixels, float32, embeddings of {DIM} dimensions, tables of {ROWS:,} rows. Medians. The step was "
        f"measured at {options.step_images} images ({', '.join(f'{v}: {s.wall:.1f} s' for v, s in steps.items() if v != TEN)}) "
        f"and scaled to the others, and to {TEN}, in proportion to its views; what is added was measured at each size. On a "
        f"busy machine the CPU times say more; a difference within the noise may be negative. Target: at most {TARGET:g}.\n\n"
        + "\n".join(lines)
        + "\n"
    )
    if options.out is not None:
        options.out.write_text(text)


if __name__ == "__main__":
    main()
