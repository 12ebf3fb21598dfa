"""By how much does an encoder that has learnt beat the same network with random weights, in each protocol?

    python benchmarks/pretrained_against_random.py DATA lite0.pth --out FOLDER

DATA holds caltech101/train and test (a folder for each class) and cifar10/train.parquet and test.parquet; lite0.pth is made as
docs/own-photos.md says. Two encoders, each on both data sets: timm's tf_efficientnet_lite0, pretrained on ImageNet with
labels, and a small ResNet that `falseneg pretrain` trains here on 5,000 images of CIFAR-10 without labels. All figures come
from `falseneg evaluate`; the commands stand in FOLDER/commands.txt, the table in FOLDER/table.md. A call that is repeated
goes on where it was. The seed draws the random weights and whatever a protocol draws; what it does not change is run once.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import torch

from falseneg import Encoder
from falseneg.cli import main as falseneg
from falseneg.foreign.text import read_yaml

SEEDS = 3
LEARNT, RANDOM = "pretrained", "random"
PROTOCOLS: dict[str, tuple[str, bool, bool]] = {
    # what is run, whether with every seed, and whether the seed matters to an encoder that is not random
    "knn": ("knn", True, False),
    "linear, cached": ("linear --protocol.cached true --protocol.batch-size 64", True, True),
    "few-label": ("few-label --protocol.labels [1,2,5,10] --protocol.draws 5", True, True),
    "label-fractions, cached": (
        "label-fractions --protocol.cached true --protocol.shares [1,.1] --protocol.epochs [90,285]",
        True,
        True,
    ),
    "transfer": ("transfer --protocol.penalties [1e-4,1e-3,.01,.1,1,10,100,1e3]", True, True),
    "linear, crops": ("linear --protocol.batch-size 64 --protocol.epochs 6", False, True),
    "semi-supervised": (
        "semi-supervised --protocol.lars false --protocol.learning-rate .02 --protocol.batch-size 32 --protocol.epochs [20,10]",
        False,
        True,
    ),
    "fine-tuning": (
        "fine-tuning --protocol.steps 30 --protocol.batch-size 32 --protocol.learning-rates [.01,.05] "
        "--protocol.weight-decays [0]",
        False,
        True,
    ),
}
CIFAR = {"train": 1000, "test": 500}
"""Images to learn from and to measure on."""


def prepared(data: Path, out: Path) -> dict[str, tuple[str, str]]:
    """For each data set the options of its images, and those of the tree that the protocols of transfer read."""
    places = {part: out / f"cifar10-{part}.parquet" for part in CIFAR}
    for part, number in CIFAR.items():
        if not places[part].exists():
            table = pq.read_table(data / "cifar10" / f"{part}.parquet")
            pq.write_table(table.slice(0, number), places[part])
            # No set of published names takes a part of CIFAR-10; the one that is a folder for each class takes any images.
            for row, (image, label) in enumerate(
                zip(table["image"][:number].to_pylist(), table["label"][:number].to_pylist(), strict=True)
            ):
                file = out / "trees" / "birdsnap" / part / str(label) / f"{row}.jpg"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(image)
    photos, tree = data / "caltech101", out / "trees" / "caltech101" / "101_ObjectCategories"
    if not tree.exists():
        for part in CIFAR:
            for file in (photos / part).glob("*/*.jpg"):
                (tree / file.parent.name).mkdir(parents=True, exist_ok=True)
                shutil.copy(file, tree / file.parent.name / f"{part}-{file.name}")
    root = f"--protocol.root {out / 'trees'} --protocol.sets"
    return {
        "Caltech-101": (
            f"--data Folder --data.root {photos / 'train'} --test Folder --test.root {photos / 'test'}",
            f'{root} ["Caltech101"]',
        ),
        "CIFAR-10": (
            f"--data Parquet --data.path {places['train']} --test Parquet --test.path {places['test']}",
            f'{root} ["Birdsnap"]',
        ),
    }


def encoders(data: Path, weights: Path, out: Path) -> dict[str, dict[str, str]]:
    """For each encoder the options that name it with learnt and with random weights."""
    run, config = out / "cifar-run", Path(__file__).parent / "cifar.yaml"
    if not (run / "encoder.safetensors").exists():
        table = pq.read_table(data / "cifar10" / "train.parquet").slice(0, 5000)
        pq.write_table(table, out / "pretraining.parquet")
        call(
            f"pretrain --config {config} --data.path {out / 'pretraining.parquet'} --test.path {out / 'cifar10-test.parquet'} "
            f"--out {run}",
            out,
        )
    arguments = read_yaml(config)["method"]["init_args"]["encoder"]
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        Encoder(**arguments).save(out / f"random-{seed}.safetensors")
    model = "timm:tf_efficientnet_lite0 --image-size 64"
    return {
        "lite0": {LEARNT: f"{model} --weights {weights}", RANDOM: model},
        "small ResNet": {LEARNT: f"{run}/checkpoints/last.pt", RANDOM: f"{out}/random-SEED.safetensors"},
    }


def call(command: str, out: Path) -> None:
    """One command of falseneg, in this process."""
    with (out / "commands.txt").open("a") as file:
        file.write(f"falseneg {command}\n")
    print(f"falseneg {command}", flush=True)
    if falseneg(shlex.split(command.replace('"', '\\"'))):
        sys.exit(1)


def measured(data: Path, weights: Path, out: Path) -> Iterator[tuple[tuple[str, str, str], str, list[dict]]]:
    """Of each data set, encoder and protocol, the figures of learnt or random weights with one seed."""
    sets = prepared(data, out)
    models = encoders(data, weights, out)
    for seed in range(SEEDS):
        for encoder, kinds in models.items():
            for name, (images, tree) in sets.items():
                for protocol, (options, every, drawn) in PROTOCOLS.items():
                    for kind, source in kinds.items():
                        if seed and not (every and (drawn or kind == RANDOM)):
                            continue
                        file = out / "figures" / f"{encoder}-{name}-{protocol}-{kind}-{seed}.json".replace(" ", "-")
                        if not file.exists():
                            began = time.process_time()
                            where = tree if protocol in ("transfer", "fine-tuning") else images
                            call(
                                f"evaluate {source.replace('SEED', str(seed))} --protocol {options} {where} --seed {seed} "
                                f"--workers 0 --accelerator cpu --out {file}",
                                out,
                            )
                            print(f"{time.process_time() - began:.0f} CPU seconds", flush=True)
                        yield (encoder, name, protocol), kind, json.loads(file.read_text())["figures"]


def table(found: dict[tuple[str, ...], dict[str, list[float]]]) -> Iterator[str]:
    """A line for each figure: both kinds of weights, and the difference."""
    yield "| encoder, images | protocol | figure | pretrained | random | difference |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for (encoder, images, protocol, figure), values in found.items():
        if not values[LEARNT] or not values[RANDOM]:
            continue
        both = [_words(values[kind]) for kind in (LEARNT, RANDOM)]
        more = 100 * (statistics.mean(values[LEARNT]) - statistics.mean(values[RANDOM]))
        yield f"| {encoder}, {images} | {protocol} | {figure} | {both[0]} | {both[1]} | {more:+.1f} |"


def _words(values: list[float]) -> str:
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    (options.out / "figures").mkdir(parents=True, exist_ok=True)
    found: dict[tuple[str, ...], dict[str, list[float]]] = defaultdict(lambda: {LEARNT: [], RANDOM: []})
    for key, kind, figures in measured(options.data, options.weights, options.out):
        for each in figures:
            if each["value"] is not None:
                words = " ".join(filter(None, (each["on"], each["metric"])))
                found[(*key, words)][kind].append(each["value"])
        (options.out / "table.md").write_text("\n".join(table(found)) + "\n")
    print(f"load average {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
