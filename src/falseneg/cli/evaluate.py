"""``falseneg evaluate``: how good the features of an encoder are."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from falseneg.cli.configuration import device_of, instantiated, run_settings, uses_gpu
from falseneg.cli.messages import did_you_mean
from falseneg.cli.parser import CONFIG, run_parser
from falseneg.cli.protocols import USUAL_SIZE, Asked, file_name, measure
from falseneg.cli.trusting import named
from falseneg.data import as_image_set
from falseneg.errors import UserError
from falseneg.evaluation import (
    PAIR_EVALUATIONS,
    PROTOCOLS,
    Measure,
    Protocol,
    evaluate,
    evaluations_of,
    extract_features,
    pair_figures,
    pair_split,
)
from falseneg.evaluation.pairs import DEPTHS
from falseneg.files import write_bytes
from falseneg.methods import SimCLR
from falseneg.methods.two_towers import TwoTowers
from falseneg.train.embeddings import EmbedImages
from falseneg.train.names import TOWERS
from falseneg.train.plan import Plan, make_plan
from falseneg.train.run import Run, check_seed
from falseneg.train.sources import (
    KINDS,
    Source,
    about_encoder,
    check_there,
    has_towers,
    name_of,
    open_encoder,
    open_towers,
)

ABOUT = (
    "Measure an encoder. Without --protocol on frozen features: weighted nearest neighbours (k = 20), a linear probe, and "
    "logistic regression on a few labelled images of each class (mean over draws); of two towers and captioned images also "
    "retrieval and zero-shot accuracy; with it as a paper does. Classifiers learn "
    "from --data and are measured on --test, else on the data set's own test split, else on --holdout. Of a run, all these are "
    "the run's own unless given anew."
)
OPTIONS = (
    "test",
    "holdout",
    "seed",
    "few_labels",
    "few_label_draws",
    "prompts",
    "skip_unreadable",
    "accelerator",
    "workers",
)
FURTHER: dict[str, dict[str, Any]] = {
    "encoder": {"type": str | None, "metavar": "SOURCE", "help": KINDS},
    "--data": {"type": Dataset | None, "default": None, "help": "the images to learn from"},
    "--protocol": {
        "type": Protocol | None,
        "default": None,
        "help": f"one of {', '.join(PROTOCOLS)}; --protocol.help NAME shows its options",
    },
    "--weights": {"type": str | None, "help": "a file with weights for timm:NAME or open_clip:NAME (default: random)"},
    "--image_size": {"type": int | None, "help": "side of the images in pixels (default: the encoder's own, else 224)"},
    "--out": {
        "type": Path | None,
        "metavar": "FILE",
        "help": "where the figures go (default: beside the encoder, as JSON)",
    },
}


def run(arguments: Sequence[str]) -> int:
    """Run the command."""
    parser = run_parser("evaluate", ABOUT, only=OPTIONS)
    parser.usage = "falseneg evaluate SOURCE [options]"
    for name, details in FURTHER.items():
        parser.add_argument(name, **details)
    arguments = _by_name(arguments)
    if arguments and not arguments[0].startswith("-"):
        stored = Path(arguments[0]) / CONFIG
        if stored.is_file():
            parser.set_defaults(_settings_of_run(stored, arguments))
    elif not {"-h", "--help"} & {*arguments} and not any(each.startswith("--protocol.help") for each in arguments):
        raise UserError(f"evaluate needs SOURCE first: {KINDS}")
    options = parser.parse_args(arguments)
    check_seed(options["seed"])
    source = options["encoder"], options["weights"], options["image_size"]
    check_there(source[0])
    parts = instantiated(parser, options)
    protocol: Protocol | None = parts["protocol"]
    data = parts["data"]
    if data is None and (protocol is None or protocol.wants):
        raise UserError("evaluate needs --data, the images to learn from; see --help")
    torch.manual_seed(options["seed"])  # for a model without weights
    captioned = protocol is None and as_image_set(data).captioned
    towers = open_towers(*source) if captioned else None
    head = protocol is not None and protocol.head_layers > 0
    found = open_encoder(*source, head) if towers is None else Source(towers.encoder)
    run = Run(
        data=data,
        method=towers or SimCLR(found.encoder),  # type: ignore[arg-type]
        check_duplicates=False,
        **{name: parts[name] for name in OPTIONS},
    )
    if protocol is not None:
        return measure(protocol, Asked(run, found, options["encoder"], options["weights"], options["out"]))
    return _plain(run, about_encoder(options["encoder"], options["weights"], run.method.encoder), options["out"])


def _by_name(arguments: Sequence[str]) -> list[str]:
    """The arguments with a class's path instead of a protocol's name.

    Raises:
        UserError: there is no such protocol, or options of one that is not named.
    """
    result: list[str] = []
    names, place = list(PROTOCOLS), ""
    for argument in arguments:
        option, equals, value = argument.partition("=") if argument.startswith("--") else (place, "", argument)
        if option in ("--protocol", "--protocol.help") and (equals or place):
            if value in PROTOCOLS:
                value = f"falseneg.evaluation.{PROTOCOLS[value].__name__}"
            elif "." not in value and not value.startswith("{"):
                raise UserError(
                    f"there is no protocol {value}{did_you_mean(value, names)}; choose one of {', '.join(names)}, or name a class "
                    "of your own by its import path"
                )
            if not equals:
                result.pop()
            argument = f"{option}={value}"
        result.append(argument)
        place = argument if argument in ("--protocol", "--protocol.help") else ""
    if any(each.startswith("--protocol.") for each in result) and not any(
        each.startswith(("--protocol=", "--protocol.help", "--config")) for each in result
    ):
        raise UserError(
            f"there are options of a protocol, but no protocol; choose one with --protocol: {', '.join(names)}"
        )
    return result


def _plain(run: Run, about: dict[str, Any], out: Path | None) -> int:
    """What is measured of every encoder and of two towers, with usual settings."""
    figures, source = {**_measure(run), "encoder": about}, about["source"]
    out = out or _beside(source)
    write_bytes(out, (json.dumps(figures, indent=1) + "\n").encode())
    measured: list[Measure] = [*evaluations_of(figures["few_labels"], figures["few_label_draws"]), *PAIR_EVALUATIONS]
    for each in measured:
        if each.key in figures:
            accuracy, sd = figures[each.key], figures.get(f"{each.key}_sd")
            spread = "" if sd is None else f" ± {sd:.1%}"
            print(f"{each.title:<26}" + ("not measurable" if accuracy is None else f"{accuracy:.1%}{spread}"))
    for shared, words in (("", ""), ("shared_", ", any with the same words")):
        for way in ("image_to_text", "text_to_image") if "retrieval" in figures else ():
            found = " ".join(f"{figures[f'{shared}{way}_{depth}']:>6.1%}" for depth in DEPTHS)
            print(f"  {way.replace('_', ' ')}, at 1, 5 and 10   {found}{words}")
    print(
        f"{name_of(about)}: learned from {figures['images']:,} images, measured on {figures['test_images']:,}; written to {out}"
    )
    if "retrieval" not in figures and (why := _without_retrieval(run, source)):
        print(f"retrieval was not measured: {why}")
    return 0


def _without_retrieval(run: Run, source: str) -> str:
    """What is missing for retrieval, where one could expect it; else nothing."""
    if isinstance(run.method, TwoTowers) or has_towers(source):
        return "the images to measure on have no captions; give captioned ones as --data and --test"
    if as_image_set(run.data).captioned:
        return f"{source} has no tower of texts; of a run with two towers give the folder, its {TOWERS} or a checkpoint"
    return ""


def _measure(run: Run) -> dict[str, Any]:
    """The figures of a run's encoder or towers, and what they were measured on."""
    run.check()
    gpu = uses_gpu({"accelerator": run.accelerator})
    plan = make_plan(run, gpu, resumed=True, say=lambda _: None)
    measured = plan.test or plan.test_pairs
    if measured is None:
        raise UserError(
            "accuracy needs labelled images to learn from and to measure on; give them as --data and --test"
        )
    device = device_of({"accelerator": run.accelerator})
    encoder = run.method.encoder.to(device)
    size = getattr(encoder, "image_size", None) or USUAL_SIZE
    figures: dict[str, Any] = {}
    if plan.test is not None:
        figures |= evaluate(
            encoder,
            plan.train,
            plan.test,
            size,
            device=device,
            workers=plan.workers,
            seed=run.seed,
            evaluations=evaluations_of(run.few_labels, run.few_label_draws),
            progress=_progress,
        )
    if isinstance(run.method, TwoTowers) and plan.test_pairs is not None:
        figures |= _of_pairs(run.method.to(device), plan, size, device, run.prompts)
    about = {"images": len(plan.train), "test_images": len(measured), "image_size": size, "seed": run.seed}
    about |= {"few_labels": run.few_labels, "few_label_draws": run.few_label_draws}
    return {**figures, **about}


def _of_pairs(
    towers: TwoTowers, plan: Plan, size: int, device: torch.device, prompts: Sequence[str]
) -> dict[str, float | None]:
    """Retrieval and zero-shot accuracy, as a run measures them."""
    images = plan.test_pairs
    assert images is not None
    rows = extract_features(EmbedImages(towers), images, size, device=device, progress=_progress, workers=plan.workers)
    return pair_figures(pair_split(rows, images, towers, prompts, device))


def _settings_of_run(path: Path, arguments: Sequence[str]) -> dict[str, Any]:
    """The data of a stored run. Classes outside falseneg in it must be named on the command line."""
    parser = run_parser("evaluate", "")
    stored = run_settings(parser, parser.parse_args(["--trust", *named(arguments)], stored=path))
    return {name: stored[name] for name in (*OPTIONS, "data")}


def _beside(source: str) -> Path:
    place = Path(source)
    if place.is_dir():
        return place / "evaluation.json"
    return place.with_suffix(".evaluation.json") if place.is_file() else Path(f"{file_name(source)}.evaluation.json")


def _progress(done: int, total: int) -> None:
    """Says how many images are done, where there is a terminal."""
    if sys.stderr.isatty():
        print(f"\r{done:,} of {total:,} images", end="\n" if done == total else "", file=sys.stderr, flush=True)
