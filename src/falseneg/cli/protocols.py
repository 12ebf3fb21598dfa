"""One protocol on one encoder, from the plan of its data to the table and the file of its figures."""

from __future__ import annotations

import dataclasses
import json
import platform
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from falseneg.cli.configuration import device_of
from falseneg.data import ImageSet
from falseneg.errors import UserError
from falseneg.evaluation import Figure, Protocol, Task
from falseneg.evaluation.pieces import Pieces
from falseneg.files import write_bytes
from falseneg.train.checkpoint import fingerprint
from falseneg.train.names import EVALUATIONS
from falseneg.train.plan import Plan, make_plan
from falseneg.train.progress import Lines
from falseneg.train.run import Run
from falseneg.train.sources import Source, about_encoder, name_of

USUAL_SIZE = 224
"""Side of the images in pixels, where the encoder takes any."""


@dataclass(frozen=True, eq=False)
class Asked:
    """What the command line asks to be measured.

    Attributes:
        run: data, seed, device and workers.
        found: the encoder.
        source: what it is called on the command line.
        weights: those that are given there beside it; None for none.
        out: the file of the figures; None chooses it.
    """

    run: Run
    found: Source
    source: str
    weights: str | None
    out: Path | None


def measure(protocol: Protocol, asked: Asked) -> int:
    """Run a protocol, print its figures and write them."""
    run, encoder = asked.run, asked.found.encoder
    run.check()
    sets = _sets(protocol, run)
    size = protocol.image_size(getattr(encoder, "image_size", None) or USUAL_SIZE)
    device = device_of({"accelerator": run.accelerator})
    about = {
        "protocol": protocol.name,
        "settings": json.loads(json.dumps(protocol.settings())),
        "encoder": about_encoder(asked.source, asked.weights, encoder),
        "data": {name: _described(images) for name, images in sets.items()},
        "image_size": size,
        "seed": run.seed,
    }
    out = asked.out or _place(asked.source, protocol.name)
    pieces = Pieces(out.with_name(f"{out.name}.parts"), about)
    if pieces.begun:
        print(f"going on with what is in {pieces.folder}")
    task = Task(
        encoder.to(device),
        size,
        sets.get("train"),
        sets.get("test"),
        asked.found.head,
        run.seed,
        device,
        run.workers or 0,
        pieces,
        Lines().aside,
    )
    began = time.monotonic()
    figures = protocol.run(task)
    seconds = round(time.monotonic() - began, 1)
    listed = [dataclasses.asdict(each) for each in figures]
    content = {**about, "figures": listed, "versions": _versions(), "device": str(task.device), "seconds": seconds}
    write_bytes(out, (json.dumps(content, indent=1) + "\n").encode())
    pieces.clear()
    for line in table(figures):
        print(line)
    print(
        f"{protocol.name} of {name_of(about['encoder'])} (sha256 {about['encoder']['sha256'][:12]}), images of {size} pixels, "
        f"seed {run.seed}; written to {out}"
    )
    return 0


def table(figures: Sequence[Figure]) -> list[str]:
    """A line for each figure: what it was measured on, what it is, and how much."""
    lines = []
    for each in figures:
        value = "not measurable" if each.value is None else f"{each.value:.1%}"
        spread = "" if each.sd is None else f" ± {each.sd:.1%}"
        lines.append(f"{each.on:<24}{each.metric:<18}{value}{spread}")
    return lines


def file_name(source: str) -> str:
    """A source's name as a part of a file's."""
    return re.sub(r"[^\w.-]+", "-", source).strip("-")


def _sets(protocol: Protocol, run: Run) -> dict[str, ImageSet]:
    """The images that the protocol wants, by name."""
    if not protocol.wants:
        return {}
    if "test" not in protocol.wants:
        run = dataclasses.replace(run, holdout=0.0)
    plan: Plan = make_plan(run, False, resumed=True, say=lambda _: None)
    run.workers = plan.workers
    if "test" not in protocol.wants:
        return {"train": plan.train}
    if plan.test is None:
        raise UserError(
            "accuracy needs labelled images to learn from and to measure on; give them as --data and --test"
        )
    return {"train": plan.train, "test": plan.test}


def _described(images: ImageSet) -> dict[str, Any]:
    return {"images": len(images), "fingerprint": fingerprint(images)}


def _versions() -> dict[str, str]:
    import timm
    import torchvision

    import falseneg

    packages = {"falseneg": falseneg, "torch": torch, "torchvision": torchvision, "timm": timm}
    return {name: str(each.__version__) for name, each in packages.items()} | {"python": platform.python_version()}


def _place(source: str, name: str) -> Path:
    """Where figures go if nobody says: into the run, beside the file, or into the current directory."""
    place = Path(source)
    if place.is_dir():
        return place / EVALUATIONS / f"{name}.json"
    return place.with_suffix(f".{name}.json") if place.is_file() else Path(f"{file_name(source)}.{name}.json")
