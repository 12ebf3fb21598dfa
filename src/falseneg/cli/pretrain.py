"""``falseneg pretrain``: train an encoder on images."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from falseneg.cli.configuration import Configuration, build, resolve, run_settings, to_yaml, with_weights
from falseneg.cli.parser import CONFIG, Parser, run_parser
from falseneg.cli.trusting import trusted
from falseneg.cli.variants import as_variant
from falseneg.compare.variants import NAMES
from falseneg.errors import UserError
from falseneg.train.run import INCIDENTAL

EPOCHS = "epochs"
ABOUT = (
    "Train an encoder on images. Settings left null are chosen to suit the data; all are written to DIR/config.yaml, "
    "which --config takes to do the same again."
)


def run(arguments: Sequence[str]) -> int:
    """Run the command."""
    parser = run_parser("pretrain", ABOUT)
    # No settings of a run, so --print-config leaves them out.
    folder_option: dict[str, Any] = {"type": Path, "default": argparse.SUPPRESS, "metavar": "DIR"}
    parser.add_argument("--out", **folder_option, help="the folder of the run: new, or empty")
    variant_option: dict[str, Any] = {"type": str, "default": argparse.SUPPRESS, "metavar": "NAME"}
    variant_help = f"how false negatives are treated, by the names of falseneg compare: {', '.join(NAMES)}"
    parser.add_argument("--variant", **variant_option, help=variant_help)
    resume_help = (
        "continue the run in this folder as it was configured; without a folder, the one of --out; with more --epochs also one "
        "that is finished"
    )
    parser.add_argument("--resume", nargs="?", **folder_option, help=resume_help)
    if resuming := any(argument.split("=")[0] == "--resume" for argument in arguments):
        folder, configuration, images = *_stored(parser, arguments), None
    else:
        options = parser.parse_args(arguments)
        if "out" not in options:
            raise UserError("pretrain needs --out DIR, the folder to write the run to")
        folder = options["out"]
        configuration, images = resolve(run_settings(parser, options))
        if "variant" in options:
            configuration = as_variant(options["variant"], configuration, arguments, images)
    run = build(configuration, images)
    run.check()

    from falseneg.train import fit

    fit(run, folder, resume=resuming, configuration=to_yaml(configuration))
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"the run is in {folder}; falseneg report {folder} makes a page of it")
    return 0


def _stored(parser: Parser, arguments: Sequence[str]) -> tuple[Path, Configuration]:
    """The folder and the settings of the run to continue. Options may be repeated, but not contradict it.

    Raises:
        UserError: there is no such run, or an option contradicts it.
    """
    folder = _folder_to_resume(arguments)
    stored = folder / CONFIG
    if not stored.is_file():
        raise UserError(f"{folder} holds no run to continue (there is no {CONFIG} in it); start one there with --out")
    options = parser.parse_args(arguments, stored=stored)
    wanted = with_weights(run_settings(parser, options))
    there = run_settings(parser, parser.parse_args(["--trust", *trusted()], stored=stored))
    if options.get("out", folder) != folder:
        raise UserError(f"--resume continues the run in {folder}; leave out --out, or start a new run with --init-from")
    for key in wanted:
        if key not in INCIDENTAL and _contradicts(wanted[key], there[key]) and not _longer(key, wanted, there):
            raise UserError(
                f"--resume continues the run in {folder} as it was configured, but --{key.replace('_', '-')} differs from "
                "it; leave that out, or start a new run from these weights with --init-from and another --out"
            )
    changed = {key: wanted[key] for key in (*INCIDENTAL, EPOCHS) if wanted[key] is not None}
    return folder, {**there, **changed}


def _longer(key: str, wanted: Configuration, stored: Configuration) -> bool:
    """Whether the run is to go on beyond the epochs that it was given."""
    return key == EPOCHS and stored[key] is not None and wanted[key] > stored[key]


def _folder_to_resume(arguments: Sequence[str]) -> Path:
    """The folder behind --resume, or else behind --out."""
    given = {}
    for option, after in zip(arguments, [*arguments[1:], "--"], strict=True):
        name, equals, value = option.partition("=")
        if name in ("--resume", "--out") and (equals or not after.startswith("--")):
            given[name] = value if equals else after
    if not given:
        raise UserError("--resume needs the folder of the run to continue, after it or as --out")
    return Path(given.get("--resume", given.get("--out", "")))


def _contradicts(wanted: Any, stored: Any) -> bool:
    """Whether a setting is asked for in another way than it is stored. What is left open (null) is not asked for."""
    if isinstance(wanted, Mapping) and isinstance(stored, Mapping):
        return any(_contradicts(value, stored.get(key)) for key, value in wanted.items())
    return wanted is not None and wanted != stored
