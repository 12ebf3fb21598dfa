"""``falseneg evaluate``: how good the features of an encoder are."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from falseneg.cli.configuration import instantiated, run_settings, uses_gpu
from falseneg.cli.export import encoder_file
from falseneg.cli.parser import CONFIG, run_parser
from falseneg.cli.trusting import named
from falseneg.errors import UserError
from falseneg.evaluation import evaluate, evaluations_of
from falseneg.files import write_bytes
from falseneg.methods import SimCLR
from falseneg.models import Encoder
from falseneg.train.plan import make_plan
from falseneg.train.run import Run

ABOUT = (
    "Measure an encoder on frozen features: weighted nearest neighbours (k = 20), a linear probe, and logistic regression on "
    "a few labelled images of each class (mean over draws). Classifiers learn from --data and are measured on --test, else on "
    "the data set's own test split, else on --holdout. For a run, these default to the run's own."
)
OPTIONS = (
    "data",
    "test",
    "holdout",
    "seed",
    "few_labels",
    "few_label_draws",
    "skip_unreadable",
    "accelerator",
    "workers",
)
USUAL_SIZE = 224
FURTHER: dict[str, dict[str, Any]] = {
    "encoder": {"metavar": "RUN_OR_ENCODER", "help": "the folder of a run, or an encoder.safetensors"},
    "--out": {"metavar": "FILE", "help": "the JSON file to write the figures to (default: next to the encoder)"},
}


def run(arguments: Sequence[str]) -> int:
    """Run the command."""
    parser = run_parser("evaluate", ABOUT, only=OPTIONS)
    parser.usage = "falseneg evaluate RUN_OR_ENCODER [options]"
    for name, details in FURTHER.items():
        parser.add_argument(name, type=Path | None, **details)
    if arguments and not arguments[0].startswith("-"):
        stored = Path(arguments[0]) / CONFIG
        file = encoder_file(Path(arguments[0]))
        if stored.is_file():
            parser.set_defaults(_settings_of_run(stored, arguments))
    elif not {"-h", "--help"} & {*arguments}:
        raise UserError("evaluate needs RUN_OR_ENCODER first: the folder of a run, or an encoder.safetensors")
    options = parser.parse_args(arguments)
    parts = instantiated(parser, options)
    figures = _measure(
        Run(method=SimCLR(Encoder.load(file)), check_duplicates=False, **{name: parts[name] for name in OPTIONS})
    )
    out = options["out"] or _beside(options["encoder"])
    write_bytes(out, (json.dumps(figures, indent=1) + "\n").encode())
    for each in evaluations_of(figures["few_labels"], figures["few_label_draws"]):
        accuracy, sd = figures[each.key], figures.get(f"{each.key}_sd")
        spread = "" if sd is None else f" ± {sd:.1%}"
        print(f"{each.title:<20}" + ("not measurable" if accuracy is None else f"{accuracy:.1%}{spread}"))
    print(f"learned from {figures['images']:,} images, measured on {figures['test_images']:,}; written to {out}")
    return 0


def _measure(run: Run) -> dict[str, Any]:
    """The figures of a run's encoder, and what they were measured on."""
    run.check()
    gpu = uses_gpu({"accelerator": run.accelerator})
    prepared = make_plan(run, gpu, resumed=True, say=lambda _: None)
    if prepared.test is None:
        raise UserError(
            "accuracy needs labelled images to learn from and to measure on; give them as --data and --test"
        )
    device = torch.accelerator.current_accelerator() if gpu else None
    encoder = run.method.encoder.to(device or "cpu")
    size = getattr(encoder, "image_size", None) or USUAL_SIZE
    sets = (prepared.train, prepared.test)
    figures = evaluate(
        encoder,
        *sets,
        size,
        device=device or "cpu",
        workers=prepared.workers,
        seed=run.seed,
        evaluations=evaluations_of(run.few_labels, run.few_label_draws),
        progress=_progress,
    )
    about = {"images": len(prepared.train), "test_images": len(prepared.test), "image_size": size, "seed": run.seed}
    about |= {"few_labels": run.few_labels, "few_label_draws": run.few_label_draws}
    return {**figures, **about}


def _settings_of_run(path: Path, arguments: Sequence[str]) -> dict[str, Any]:
    """The data of a stored run. Classes outside falseneg in it must be named on the command line."""
    parser = run_parser("evaluate", "")
    stored = run_settings(parser, parser.parse_args(["--trust", *named(arguments)], stored=path))
    return {name: stored[name] for name in OPTIONS}


def _beside(encoder: Path) -> Path:
    return encoder / "evaluation.json" if encoder.is_dir() else encoder.with_suffix(".evaluation.json")


def _progress(done: int, total: int) -> None:
    """Says how many images are done, where there is a terminal."""
    if sys.stderr.isatty():
        print(f"\r{done:,} of {total:,} images", end="\n" if done == total else "", file=sys.stderr, flush=True)
