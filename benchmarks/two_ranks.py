"""Two processes on two cores against one process with both: images a second of a whole step, and where the time goes.

    python benchmarks/two_ranks.py cifar10/train.parquet --out benchmarks/results/DATE-two-ranks.md

Each is `falseneg.train.fit` on real images that are read, decoded and augmented in the training process itself. Beside the two that
users choose between stand two that explain them: two processes that train apart at the same time (what is missing to the two
together is talking and waiting), and one process on one core while the other is idle (what is missing to the two apart is
sharing memory and cache). They take turns; the medians of the steps after the first few stand in the table.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from added_cost import machine

import falseneg as fn
from falseneg.data import Augmentation, Parquet, Subset
from falseneg.files import write_bytes
from falseneg.train import fit, loop
from falseneg.train.optimisers import SGD
from falseneg.train.progress import Silent
from falseneg.train.run import Run
from falseneg.train.step import Learner

STEPS, FIRST = 13, 3
SMALL = {"stem_width": 16, "channels": [32, 64, 128, 256]}
NETWORKS: dict[str, tuple[str, int, dict[str, Any], int]] = {
    "a small ResNet, 1.3 million parameters, 32 pixels": ("resnet10t", 32, SMALL, 256),
    "ResNet-18, 11 million parameters, 64 pixels": ("resnet18", 64, {}, 64),
}
MODES = {  # processes, threads of each, whether they train together
    "one process, both cores": (1, 2, False),
    "**two processes, together**": (2, 1, True),
    "two processes, apart, half of the images each": (2, 1, False),
    "one process, one core, half of the images": (1, 1, False),
}
PARTS = ("reading and views", "encoding", "comparing", "way back", "the rest")


def worker(data: str, network: str, images: int, out: Path) -> None:
    """One training; its steps' seconds by part go to a file."""
    name, side, arguments, _ = NETWORKS[network]
    spent: list[dict[str, float]] = []
    now: dict[str, float] = {}

    def timed(part: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def measured(*given: Any, **more: Any) -> Any:
            before = time.perf_counter()
            try:
                return work(*given, **more)
            finally:
                now[part] = now.get(part, 0.0) + time.perf_counter() - before

        return measured

    ended = [time.perf_counter()]
    plain_step = loop.step

    def step(session: Any, batch: Any) -> Any:
        now.clear()
        session.learner.fabric.backward = timed("way back", type(session.fabric).backward.__get__(session.fabric))
        before = time.perf_counter()
        stepped = plain_step(session, batch)
        after = time.perf_counter()
        spent.append({"reading and views": before - ended[0], **now, "all": after - ended[0]})
        ended[0] = after
        return stepped

    loop.step = step
    Learner.encode = timed("encoding", Learner.encode)  # type: ignore[method-assign]
    fn.Criterion.forward = timed("comparing", fn.Criterion.forward)  # type: ignore[method-assign]
    encoder = fn.Encoder(name, side, small_stem=False, arguments=arguments)
    run = Run(
        Subset(Parquet(data), range(STEPS * images)),
        fn.SimCLR(encoder, head_dim=128),
        fn.GlobalThreshold(0.1),
        optimiser=SGD(0.03),
        augmentation=Augmentation(size=side),
        batch_size=images,
        epochs=1,
        workers=0,
        checkpoint_every=None,
        evaluate="later",
        check_duplicates=False,
        accelerator="cpu",
        log_every=1000,
    )
    fit(run, out, progress=Silent())
    write_bytes(out / f"spent-{os.environ.get('RANK', '0')}.json", json.dumps(spent[FIRST:]).encode())


def turn(data: Path, network: str, mode: str) -> list[dict[str, float]]:
    """The steps of all processes of one turn; those of two together are one process's."""
    processes, threads, together = MODES[mode]
    images = NETWORKS[network][3]
    each = images if together or threads == 2 else images // 2
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    started = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*(started if together else [sys.executable]), __file__, str(data), "--network", network]
    with tempfile.TemporaryDirectory() as folder:
        outs = [Path(folder) / str(number) for number in range(1 if together else processes)]
        there = [
            subprocess.Popen(
                [*command, "--images", str(each), "--out", str(out)], env=environment, stdout=subprocess.PIPE
            )
            for out in outs
        ]
        for process in there:
            process.communicate()
            if process.returncode:
                raise SystemExit(f"{mode}: exit status {process.returncode}")
        return [step for out in outs for step in json.loads((out / "spent-0.json").read_text())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--network", help=argparse.SUPPRESS)
    parser.add_argument("--images", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if options.network:
        worker(str(options.data), options.network, options.images, options.out)
        return
    lines = [
        f"# Two processes on two cores, {datetime.date.today()}",
        "",
        f"`{shlex.join(['python', 'benchmarks/two_ranks.py', *sys.argv[1:]])}`; {machine('cpu')}.",
        "",
        __doc__.split("\n\n")[2].replace("\n", " ").strip(),
    ]
    for network, (_, _, _, images) in NETWORKS.items():
        steps: dict[str, list[dict[str, float]]] = {mode: [] for mode in MODES}
        speeds: dict[str, list[float]] = {mode: [] for mode in MODES}
        for _ in range(options.rounds):
            for mode, (processes, threads, _) in MODES.items():
                found = turn(options.data, network, mode)
                steps[mode] += found
                done = images / 2 if (processes, threads) == (1, 1) else images
                speeds[mode].append(done / statistics.median(step["all"] for step in found))
                print(network, mode, round(speeds[mode][-1], 1), flush=True)
        lines += ["", f"## {network[0].upper()}{network[1:]}, {images} images a step", ""]
        lines += [f"| | images a second (each of {options.rounds} rounds) | s a step | {' | '.join(PARTS)} |"]
        lines += ["| --- | --- | --- |" + " --- |" * len(PARTS)]
        for mode, found in steps.items():
            whole = statistics.median(step["all"] for step in found)
            parts = [statistics.median(step[part] for step in found) for part in PARTS[:-1]]
            seconds = " | ".join(f"{each:.3f}" for each in [whole, *parts, whole - sum(parts)])
            rates = ", ".join(f"{each:,.0f}" for each in speeds[mode])
            lines.append(f"| {mode} | {rates} | {seconds} |")
    write_bytes(options.out, ("\n".join(lines) + "\n").encode())


if __name__ == "__main__":
    main()
