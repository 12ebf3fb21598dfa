"""``falseneg audit``: duplicates and false negatives of a data set, seen by an encoder, without training."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.data import Dataset

from falseneg.cli.configuration import device_of, instantiated, uses_gpu
from falseneg.cli.data_at import ENDINGS, data_at
from falseneg.cli.parser import run_parser
from falseneg.cli.protocols import USUAL_SIZE, file_name
from falseneg.errors import UserError
from falseneg.files import alone
from falseneg.methods import SimCLR
from falseneg.report.svg import counted, percent
from falseneg.train.plan import make_plan
from falseneg.train.progress import Lines, duration
from falseneg.train.run import Run, check_seed
from falseneg.train.sources import KINDS, about_encoder, name_of, open_encoder

if TYPE_CHECKING:
    from falseneg.audit import Audit

ABOUT = (
    "Look at a data set through an encoder, without training: exact and near duplicates, what each detector would flag in a "
    "batch, how far detectors agree, how often they are right where there are labels, and what to set them to. Writes a page "
    "and tables of pairs to DIR."
)
OPTIONS = ("expected_classes", "seed", "skip_unreadable", "accelerator", "workers")
USUAL_BATCH = 256
FURTHER: dict[str, dict[str, Any]] = {
    "data": {"type": Dataset | None, "default": None, "help": "the images, if DATA is not simply a folder or file"},
    "encoder": {"type": str | None, "metavar": "SOURCE", "help": KINDS},
    "weights": {"type": str | None, "help": "a file with weights for timm:NAME or open_clip:NAME (default: random)"},
    "image_size": {"type": int | None, "help": "side of the images in pixels (default: the encoder's own, else 224)"},
    "batch_size": {"type": int, "default": USUAL_BATCH, "help": "images of the batches in which detectors flag"},
    "near_duplicates": {
        "type": float | None,
        "metavar": "COSINE",
        "help": "images more similar than this are near duplicates (default: than nine of ten slightly changed views are to "
        "their own image)",
    },
    "out": {
        "type": Path | None,
        "metavar": "DIR",
        "help": "the folder to write to: new, or empty (default: audit-DATA)",
    },
}
NO_DATA = "audit needs DATA first: a folder of images, or a data set with --data; see --help"


def run(arguments: Sequence[str]) -> int:
    """Run the command."""
    parser = run_parser("audit", ABOUT, only=OPTIONS)
    parser.usage = "falseneg audit DATA --encoder SOURCE [options]"
    for name, details in FURTHER.items():
        parser.add_argument(f"--{name}", **details)
    arguments, called = _with_data(arguments)
    options = parser.parse_args(arguments)
    if options["encoder"] is None:
        raise UserError(f"audit needs --encoder: {KINDS}")
    check_seed(options["seed"])
    out = _free(options["out"] or Path(f"audit-{file_name(called)}"))
    torch.manual_seed(options["seed"])  # for a model without weights
    encoder = open_encoder(options["encoder"], options["weights"], options["image_size"]).encoder
    parts = instantiated(parser, options)
    if parts["data"] is None:
        raise UserError(NO_DATA)
    prepared = Run(
        data=parts["data"],
        method=SimCLR(encoder),  # type: ignore[arg-type]
        check_duplicates=False,
        holdout=0.0,
        **{name: parts[name] for name in OPTIONS},
    )
    about = {"data": called, "encoder": about_encoder(options["encoder"], options["weights"], encoder)}
    with alone(out, f"another process is writing to {out}; wait for it, or choose another folder with --out"):
        _audit(prepared, encoder, options, about, out)
    return 0


def _audit(prepared: Run, encoder: nn.Module, options: Any, about: dict[str, Any], out: Path) -> None:
    """Make the audit, write its files, and print what was found."""
    from falseneg.audit import Asked, audit, write_files
    from falseneg.report.audit import write_page

    began, gpu = time.monotonic(), uses_gpu({"accelerator": prepared.accelerator})
    asked = Asked(
        size=getattr(encoder, "image_size", None) or USUAL_SIZE,
        batch_size=options["batch_size"],
        kinds=options["expected_classes"],
        near=options["near_duplicates"],
        seed=options["seed"],
        device=device_of({"accelerator": prepared.accelerator}),
        progress=Lines().aside,
    )
    asked.check()
    prepared.check()
    plan = make_plan(prepared, gpu, resumed=True, say=lambda _: None)
    if plan.unreadable:
        print(f"{counted(len(plan.unreadable), 'image')} left out, the first because: {plan.unreadable[0]}")
    print(f"{len(plan.train):,} images, seen by {name_of(about['encoder'])} at {asked.size} pixels", flush=True)
    found = audit(plan.train, encoder.to(asked.device), dataclasses.replace(asked, workers=plan.workers))
    seconds = time.monotonic() - began
    about |= {"image_size": asked.size, "seed": asked.seed, "seconds": round(seconds, 1)}
    write_files(found, out, about)
    page = write_page(found, about, out)
    for line in lines(found):
        print(line)
    print(f"after {duration(seconds)}: the page is {page}, the pairs are in {out / 'pairs.csv'}")


def lines(found: Audit) -> list[str]:
    """What was found, as it is printed."""
    from falseneg.audit.files import few

    duplicates, measured, suggestion = found.duplicates, found.measured, found.suggestion
    written = [
        f"exact duplicates   {counted(duplicates.copies, 'image')} equal to an earlier one, {counted(len(duplicates.exact), 'group')}",
        f"near duplicates    {counted(len(duplicates.near), 'pair')} above a cosine of {duplicates.threshold:.3f}",
    ]
    if found.shared_captions is not None:
        written.append(f"shared captions    {found.shared_captions:,} images have the captions of another")
    kinds = f"1 of {suggestion.chosen.kinds}"
    written.append(
        f"in a batch of {suggestion.batch:,}, each image has {suggestion.batch - 1:,} negatives; set to flag {kinds}:"
    )
    for place, name in enumerate(measured.names):
        share, counts = measured.share(place), measured.counts(place)
        right = "" if counts.precision is None else f", {percent(counts.precision)} of them right"
        right += "" if counts.recall is None else f", which is {percent(counts.recall)} of the false negatives"
        written.append(f"  {name:<17}{few(share * (suggestion.batch - 1)):>6} flagged{right}")
    share, rightly = measured.agreed(measured.majority)
    right = "" if rightly is None else f", {percent(rightly)} of them right"
    at_least = f"{measured.majority} or more agree"
    written.append(f"  {at_least:<17}{few(share * (suggestion.batch - 1)):>6} flagged{right}")
    if measured.labelled and (chance := measured.counts(0).chance) is not None:
        written.append(f"  {'by the labels':<17}{few(chance * (suggestion.batch - 1)):>6} are false negatives")
    return [*written, *advice(found)]


def advice(found: Audit) -> list[str]:
    """What to set detectors to, and why; or between what, and why no more is known."""
    from falseneg.audit.suggestion import NEARLY

    suggestion = found.suggestion
    chosen, best = suggestion.chosen, suggestion.by_agreement
    fewest, most = suggestion.fitting
    between = f"alpha from {most.alpha:.4g} to {fewest.alpha:.4g}"
    if not suggestion.known:
        kappa = "" if best.kappa is None else f" (kappa {best.kappa:.2f})"
        return [
            f"{between} fits ({fewest.kinds} to {most.kinds} kinds): clusters and support set agree beyond chance at least {NEARLY:.0%} "
            f"as well as at their best, {best.kinds} kinds{kappa}",
            "images alone do not say how fine a class is, so no alpha is suggested; give --expected-classes, or labels",
        ]
    why = {
        "labels": "where the support set has its highest F1 by your labels",
        "asked": "for the classes that you expect",
    }[suggestion.by]
    kappa = "" if chosen.kappa is None else f" (kappa {chosen.kappa:.2f})"
    return [
        f"take alpha = {chosen.alpha:.4g}, top_k = {suggestion.top_k}: {why}{kappa}",
        f"without that, {between} would fit",
    ]


def _with_data(arguments: Sequence[str]) -> tuple[list[str], str]:
    """The arguments with --data instead of a folder or file that stands first, and what to call the data.

    Raises:
        UserError: it is neither.
    """
    arguments = list(arguments)
    if not arguments or arguments[0].startswith("-"):
        if arguments and not any(each.startswith(("--data", "--config", "--help", "-h")) for each in arguments):
            raise UserError(NO_DATA)
        given = next((after for option, after in itertools.pairwise(arguments) if option == "--data"), "data")
        return arguments, given
    place, rest = arguments[0], arguments[1:]
    if any(each.split("=")[0] == "--data" for each in rest):
        raise UserError(f"{place} and --data both name the data; leave one of them out")
    if (reader := data_at(place)) is None:
        raise UserError(
            f"there is no folder {place}; give a folder of images, a file that ends in {', '.join(ENDINGS)}, or another data "
            "set with --data, such as --data Cifar10 --data.root DIR"
        )
    kind, option = reader
    return ["--data", kind, f"--data.{option}", place, *rest], _called(Path(place).expanduser())


def _called(path: Path) -> str:
    """The last two names of a path as it was typed; of one that ends in a dot or two, those of where it leads."""
    path = path.resolve() if path.name in ("", "..") else path
    names = [name for name in path.parts if name not in (path.anchor, "..")]
    return "/".join(names[-2:]).removesuffix(path.suffix)


def _free(folder: Path) -> Path:
    """A folder that nothing is in.

    Raises:
        UserError: there is something in it, or it is a file.
    """
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise UserError(f"{folder} is there already; choose another folder with --out, or remove it")
    return folder
