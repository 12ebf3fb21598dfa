"""Which detector finds the false negatives best? All of them on the frozen checkpoints of one run for each seed.

    python benchmarks/frozen_checkpoints.py RUN [RUN ...] --out FILE.md

A RUN is the folder of a `falseneg pretrain --keep-every …` on labelled images without detection. Its views are embedded
once, in evaluation mode; every detector then sees the same batches of them, at several batch sizes. Detectors that learn
(GloFND) go through all passes; the figures of all are those of the last pass: micro-averaged over every pair.
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from torch import Tensor

import falseneg as fn
from falseneg.cli.configuration import build
from falseneg.data import EpochSampler, ViewSet, view_loader
from falseneg.evaluation import DetectionCounts, extract_features
from falseneg.evaluation.features import evaluation_mode
from falseneg.methods.simclr import contrast_views
from falseneg.train.checkpoint import load_checkpoint
from falseneg.train.embeddings import EmbedImages
from falseneg.train.plan import make_plan

SUPPORT_VIEWS = 4
FIGURES = ("precision", "recall", "f1", "share_flagged")


@dataclass(frozen=True, eq=False)
class Frozen:
    """What an encoder makes of a data set.

    Attributes:
        main: (passes, n, 2, D) unit rows of random views.
        support: (n, S, D) of further views, for the last pass.
        still: (n, D) of the images without augmentation.
        labels: (n,).
        classes: how many there are.
        seed: of the run.
    """

    main: Tensor
    support: Tensor
    still: Tensor
    labels: Tensor
    classes: int
    seed: int


def freeze(folder: Path, checkpoint: Path, passes: int) -> Frozen:
    """Embed the training images of a run with the weights of one of its checkpoints."""
    configuration = yaml.safe_load((folder / "config.yaml").read_text())
    run = build(configuration)
    data = make_plan(run, False, True, print)
    run.method.load_state_dict(load_checkpoint(checkpoint)["method"])
    augmentation = run.augmentation.for_size(data.size)
    rows, labels = len(data.train), data.train.labels
    main, support = torch.empty(passes, rows, 2, 0), torch.empty(rows, SUPPORT_VIEWS, 0)
    method = EmbedImages(run.method)
    with evaluation_mode(method), torch.no_grad():
        for epoch in range(passes):
            last = epoch == passes - 1
            views = ViewSet(data.train, {"image": [augmentation] * (2 + (SUPPORT_VIEWS if last else 0))}, run.seed)
            sampler = EpochSampler(rows, rows if rows < 250 else 250, run.seed)
            sampler.set_epoch(epoch + 1_000)  # views that no epoch of the training has seen
            for batch in view_loader(views, sampler):
                seen = batch.streams["image"]
                z = method(seen.flatten(0, 1)).unflatten(0, seen.shape[:2])
                if not main.shape[-1]:
                    main, support = (
                        torch.empty(passes, rows, 2, z.shape[-1]),
                        torch.empty(rows, SUPPORT_VIEWS, z.shape[-1]),
                    )
                main[epoch, batch.index] = z[:, :2]
                if last:
                    support[batch.index] = z[:, 2:]
        still = extract_features(method, data.train, data.size)
    return Frozen(main, support, still, labels, int(labels.max()) + 1, run.seed)


def detectors(classes: int) -> dict[str, tuple[Callable[[], fn.Detector], bool]]:
    """Each detector by name, and whether it learns from pass to pass. All flag about one over the number of classes."""
    alpha = 1 / classes
    k = max(classes, 10)
    return {
        "BatchQuantile": (lambda: fn.BatchQuantile(alpha), False),
        "GloFND, shared": (lambda: fn.GlobalThreshold(alpha, shared=True), True),
        "GloFND": (lambda: fn.GlobalThreshold(alpha), True),
        "GloFND, rate .01": (lambda: fn.GlobalThreshold(alpha, fn.AdamStep(learning_rate=0.01)), True),
        "FNC, 4 support views": (lambda: fn.SupportSet(share=alpha), False),
        "FNC, no support set": (lambda: fn.SupportSet(share=alpha, space=None), False),
        "IFND, C clusters": (lambda: clusters(k, 1.0), False),
        "IFND, C clusters, half accepted": (lambda: clusters(k, 0.5), False),
        "IFND, 3C clusters": (lambda: clusters(3 * k, 1.0), False),
    }


def clusters(number: int, accepted: float) -> fn.Detector:
    return fn.IncrementalClusters(clusters=[number], warmup="0 epochs", acceptance=accepted)


def detect(frozen: Frozen, detector: fn.Detector, learns: bool, batch_size: int) -> DetectionCounts:
    """The counts of the last pass."""
    rows, passes = frozen.main.shape[1], frozen.main.shape[0]
    facts = fn.Facts(rows, 2 * (batch_size - 1), None, frozen.classes, seed=frozen.seed)
    detector.prepare(facts)
    sampler = EpochSampler(rows, batch_size, frozen.seed)
    steps, counts = len(sampler), DetectionCounts()
    for epoch in range(0 if learns else passes - 1, passes):
        detector.start_epoch(lambda: frozen.still, fn.Clock(epoch * steps, steps, passes))
        sampler.set_epoch(epoch)
        for step, keys in enumerate(sampler):
            row = torch.tensor([row for _, row in keys])
            last = epoch == passes - 1
            embedded = {"image": frozen.main[epoch, row]} | ({"support": frozen.support[row]} if last else {})
            contrast = contrast_views(fn.Embeddings(row, embedded))
            rule = detector.flag(contrast, fn.Clock(epoch * steps + step, steps, passes))
            if last:
                counts.add(fn.confusion(contrast, rule, frozen.labels))
    return counts


def kept(folder: Path) -> list[tuple[int, Path]]:
    """The epochs of a run's first and last kept checkpoint, and the files."""
    files = sorted((folder / "checkpoints").glob("step-*.pt"))
    settings = load_checkpoint(files[0])["settings"]
    per_epoch = int(settings["images"]) // int(settings["batch_size"])
    return [(int(file.stem.removeprefix("step-")) // per_epoch, file) for file in dict.fromkeys((files[0], files[-1]))]


def cell(values: list[float | None]) -> str:
    known = [100 * value for value in values if value is not None]
    if not known:
        return ""
    spread = f" ± {statistics.stdev(known):.1f}" if len(known) > 1 else ""
    return f"{statistics.fmean(known):.1f}{spread}"


def markdown(found: Mapping[tuple[int, int, str], list[DetectionCounts]], runs: int) -> str:
    lines = []
    for epoch, size in sorted({key[:2] for key in found}):
        chance = cell([c.chance for c in next(v for k, v in found.items() if k[:2] == (epoch, size))])
        lines += [f"\n### After epoch {epoch}, batches of {size} (chance {chance})\n"]
        lines += ["| detector | precision | recall | F1 | flagged |", "| --- | --- | --- | --- | --- |"]
        for (of_epoch, of_size, name), counts in found.items():
            if (of_epoch, of_size) == (epoch, size):
                cells = " | ".join(cell([getattr(count, figure) for count in counts]) for figure in FIGURES)
                lines.append(f"| {name} | {cells} |")
    return (
        f"Per cent, micro-averaged over all pairs; mean ± sample standard deviation of {runs} runs.\n"
        + "\n".join(lines)
        + "\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[64, 128, 256, 512])
    parser.add_argument("--passes", type=int, default=5, help="passes over the data set that learning detectors get")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    found: dict[tuple[int, int, str], list[DetectionCounts]] = defaultdict(list)
    for folder in options.runs:
        for epoch, checkpoint in kept(folder):
            frozen = freeze(folder, checkpoint, options.passes)
            for size in options.batch_sizes:
                for name, (make, learns) in detectors(frozen.classes).items():
                    counts = detect(frozen, make(), learns, size)
                    found[epoch, size, name].append(counts)
                    print(f"{folder} epoch {epoch} batch {size} {name}: {counts.figures()}", flush=True)
        options.out.write_text(markdown(found, len(set(options.runs))))


if __name__ == "__main__":
    main()
