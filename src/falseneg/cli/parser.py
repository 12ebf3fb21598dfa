"""The parser of a run's options: from the signature and the docstring of `Run`, and of the classes that it is made of."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace, set_parsing_settings

from falseneg.cli.explain import class_names, explain
from falseneg.cli.recipes import recipe_path
from falseneg.cli.trusting import Untrusted, named, strings, trust, with_what_belongs_to_it
from falseneg.compare.variants import TWO_TOWERS
from falseneg.data import Augmentation
from falseneg.errors import UserError
from falseneg.evaluation import Protocol
from falseneg.foreign.text import read_yaml
from falseneg.models import Encoder, TextEncoder
from falseneg.row_step import RowStep
from falseneg.schedule import Schedule
from falseneg.strategy import Strategy, StrategyName
from falseneg.train.names import ABOUT
from falseneg.train.optimisers import Optimiser
from falseneg.train.run import Run

CONFIG = "config.yaml"
STRATEGY_HELP = (
    "what happens to the negatives that the detector flags: a name, or the numbers --strategy.positive (weight among the "
    "positives), --strategy.negative (weight among the negatives) and --strategy.renormalise"
)
PARTS = {
    "method": "falseneg.SimCLR",
    "detector": "falseneg.NoDetection",
    "objective": "falseneg.InfoNCE",
    "temperature": "falseneg.FixedTemperature",
    "optimiser": "falseneg.train.optimisers.AdamW",
}
"""The classes that stand where none is named."""
OF_TWO_TOWERS = {
    "temperature": {"class_path": "falseneg.LearnedTemperature"},
    "optimiser": {"class_path": "falseneg.train.optimisers.AdamW", "init_args": {"weight_decay": 0.1}},
    "augmentation": {"crop_scale": [0.9, 1.0], "flip": 0.0, "jitter": 0.0, "grayscale": 0.0, "blur": 0.0},
}
"""What stands instead where images are compared with texts: the temperature is learned, as in CLIP (Radford et al. 2021); crops
are open_clip's, and nothing else is done to an image, for its text tells of colours and sides; decay is FastCLIP's on CC3M."""


class Parser(ArgumentParser):
    """Options with dashes or underscores, recipes by name, and errors of one sentence.

    A class outside falseneg is imported only if its path stands on the command line or in a configuration file that the
    user names with --config: never because a stored run names it.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, formatter_class=_HelpFormatter, **kwargs)

    def parse_args(self, args: Sequence[str], *rest: Any, stored: Path | None = None, **more: Any) -> Namespace:  # type: ignore[override]
        """The options; of a run's ``stored`` configuration, as the arguments change it."""
        if not self.exit_on_error:  # a parser inside the parser
            return super().parse_args(args, *rest, **more)
        _refuse_what_is_no_text(args)
        arguments = _classes_first(_plain_options(args))
        trust(self._named(arguments))
        self._suit(_classes_named(arguments))
        if stored is not None:
            read_yaml(stored)  # which says where it is damaged
            arguments = ["--config", str(stored), *arguments]
        return with_what_belongs_to_it(lambda: super(Parser, self).parse_args(arguments, *rest, **more))

    def parse_object(self, cfg_obj: Any, *rest: Any, **more: Any) -> Namespace:
        if not self.exit_on_error:
            return super().parse_object(cfg_obj, *rest, **more)
        self._suit({part: _class_of(cfg_obj.get(part)) for part in PARTS})
        # A copy to the last list: the parser puts its own objects into those that it is given.
        again = super().parse_object
        return with_what_belongs_to_it(lambda: again(copy.deepcopy(cfg_obj), *rest, **more))

    def _named(self, arguments: Sequence[str]) -> Iterator[str]:
        """What the user names on the command line, and in their own files."""
        yield from named(arguments)
        for path in configuration_files(arguments):
            content = read_yaml(path)
            if isinstance(content, dict) and "variants" in content and not self._takes("variants"):
                raise UserError(f"{path} describes a comparison; run it with falseneg compare --config {path}")
            if not is_stored(path):
                yield from strings(content)

    def _suit(self, chosen: Mapping[str, str]) -> None:
        """Take the defaults that suit the classes of these names, by part. Before parsing, for --help and --print-config tell them."""
        if chosen.get("method") in [_bare(path) for path in TWO_TOWERS]:
            self.set_defaults({part: default for part, default in OF_TWO_TOWERS.items() if self._takes(part)})
        for part, name in chosen.items():
            # The parser takes values over into another class that has options of the same names: also those that are mere defaults.
            if self._takes(part) and name not in ("", _bare(PARTS[part])):
                self.set_defaults({part: {"class_path": name} if name in class_names(Run, part) else None})

    def _takes(self, option: str) -> bool:
        return any(action.dest == option for action in self._actions)

    def format_help(self, *args: Any) -> str:
        # Options are shown as they are mostly typed; in YAML files the same names have underscores.
        return re.sub(r"(?<![\w-])--[a-z][\w.]*", lambda match: match[0].replace("_", "-"), super().format_help(*args))

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # a parser inside the parser
            super().error(message, ex)
        options = [name.replace("_", "-") for action in self._actions for name in action.option_strings]
        said = explain(message, Run, options)
        if (untrusted := re.search(r"Importing '(.+?)' is not allowed", message)) is not None:
            raise Untrusted(said, untrusted[1]) from ex
        raise UserError(said) from ex


class _HelpFormatter(DefaultHelpFormatter):
    """Says of an option what it is, what it may be and what it is by default, in words."""

    def _expand_help(self, action: argparse.Action) -> str:
        text = re.sub(r"\bNone\b", "null", super()._expand_help(action))
        if action.dest.endswith(".help"):
            return f"show the options of {'this' if action.nargs == 0 else 'a class for'} --{action.dest.removesuffix('.help')}"
        text = re.sub(r"\(required, type: ([^)]*default: )", r"(type: \1", text)
        text = re.sub(r"default: \{'class_path': '[\w.]*?(\w+)'\}", r"default: \1", text)
        text = text.replace("<class 'Path'>", "path").replace("Path | null", "path | null")
        if (found := re.search(r", known subclasses: [^)]*", text)) is not None:
            names = ", ".join(class_names(Run, action.dest))
            choice = f"; one of {names}, or your own by import path)" if names else ")"
            text = text.replace(found[0], "").removesuffix(")") + choice
            text = re.sub(r"type: (<class '\w+'>|\w+( \| null)?)[,;] ", "", text)
        return text


def run_parser(command: str, about: str, only: Sequence[str] = ()) -> Parser:
    """A parser of the options of a `Run`.

    Args:
        command: its name.
        about: what it does.
        only: the options that it takes, if not all.
    """
    taken = {field.name for field in dataclasses.fields(Run) if field.name in (only or [field.name])}
    left_out = {field.name for field in dataclasses.fields(Run)} - taken
    # Parts of one class only: their options stand for themselves, without a class path.
    kinds: list[type | str] = [Optimiser, Protocol, RowStep, Schedule]
    set_parsing_settings(subclasses_disabled=[Encoder, TextEncoder, Augmentation], subclasses_enabled=kinds)
    parser = Parser(prog=f"falseneg {command}", description=about, usage=f"falseneg {command} [options]")
    parser.add_argument("--config", action="config", help="a YAML file with any of these options, or a recipe's name")
    parser.add_class_arguments(Run, as_group=False, skip={"strategy", "augmentation", *left_out})
    if "strategy" in taken:
        parser.add_argument("--strategy", type=StrategyName | Strategy, default="eliminate", help=STRATEGY_HELP)
    if "augmentation" in taken:
        parser.add_class_arguments(Augmentation, "augmentation")
    parser.set_defaults({part: {"class_path": path} for part, path in PARTS.items() if part in taken})
    trust_help = "classes outside falseneg that a stored configuration may name"
    parser.add_argument("--trust", nargs="*", default=argparse.SUPPRESS, metavar="CLASS", help=trust_help)
    return parser


def _refuse_what_is_no_text(arguments: Sequence[str]) -> None:
    """Options are read and written down as text, which names of files need not be.

    Raises:
        UserError: an argument is not text.
    """
    for argument in arguments:
        text = argument.encode("utf-8", "replace").decode()
        if text != argument:
            raise UserError(
                f"{text} is not UTF-8, as every option must be; rename that file or folder, or give a link to it"
            )


def is_stored(path: Path) -> bool:
    """Whether a configuration file was written by a run, and so may come from anybody."""
    return path.name == CONFIG and (path.parent / ABOUT).exists()


def _plain_options(arguments: Sequence[str]) -> list[str]:
    """Option names with underscores instead of dashes, and files instead of recipes' names."""
    plain: list[str] = []
    for argument in arguments:
        if argument.startswith("--"):
            name, equals, value = argument.partition("=")
            argument = "--" + name[2:].replace("-", "_") + equals + value
            if argument.startswith("--config="):
                argument = f"--config={recipe_path(value)}"
            if argument.startswith("--loggers="):
                argument = f"--loggers={_as_list(value)}"
        elif plain and plain[-1] == "--config":
            argument = str(recipe_path(argument))
        elif plain and plain[-1] == "--loggers":
            argument = _as_list(argument)
        plain.append(argument)
    return plain


def _classes_first(arguments: Sequence[str]) -> list[str]:
    """The arguments with the options of a class behind the class, as the parser wants them: users write them in any order."""
    units: list[list[str]] = []  # an option and its value
    for argument in arguments:
        if argument.startswith("--") or not units or len(units[-1]) > 1 or "=" in units[-1][0]:
            units.append([argument])
        else:
            units[-1].append(argument)
    names = [unit[0].partition("=")[0] for unit in units]
    for part in sorted(name for name in names if names.count(name) == 1):  # the outer class before the inner one
        place = next(at for at, unit in enumerate(units) if unit[0].partition("=")[0] == part)
        own = [unit[0].startswith(f"{part}.") and not unit[0].startswith(f"{part}.help") for unit in units]
        order = sorted(range(place + 1), key=own.__getitem__)  # the others, the class, then its own: the sort is stable
        units[: place + 1] = [units[at] for at in order]
    return [argument for unit in units for argument in unit]


def _as_list(value: str) -> str:
    """A list as the parser reads it, of one name or of several with commas between."""
    return value if value.startswith("[") else f"[{value}]"


def _classes_named(arguments: Sequence[str]) -> dict[str, str]:
    """The bare names of the classes that arguments and their configuration files choose, by part; without those they leave open."""
    found: dict[str, str] = {}
    for before, argument in zip(["", *arguments], arguments, strict=False):
        name, equals, value = argument.partition("=") if argument.startswith("--") else (before, "=", argument)
        if not equals:
            continue
        if name == "--config":
            content = read_yaml(recipe_path(value))
            chosen = {part: _class_of(content.get(part)) for part in PARTS} if isinstance(content, dict) else {}
        else:
            chosen = {name.removeprefix("--").removesuffix(".class_path"): _bare(value)}
        found |= {part: kind for part, kind in chosen.items() if part in PARTS and kind}
    return found


def _class_of(part: Any) -> str:
    """The bare name of the class in a part of a configuration; empty if there is none."""
    path = part.get("class_path") if isinstance(part, Mapping) else part
    return _bare(path) if isinstance(path, str) else ""


def _bare(path: str) -> str:
    """The name of a class without its module."""
    return path.rpartition(".")[2]


def configuration_files(arguments: Sequence[str]) -> Iterator[Path]:
    """The files behind --config; instead of a recipe's name the recipe's file."""
    for before, argument in zip(["", *arguments], arguments, strict=False):
        if before == "--config":
            yield recipe_path(argument)
        elif argument.startswith("--config="):
            yield recipe_path(argument.removeprefix("--config="))
