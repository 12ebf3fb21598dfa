"""From a parsed configuration to a complete one, and from that to a `Run`.

A configuration is a plain mapping, as it stands in a YAML file; a class in it is written ``{class_path, init_args}``.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any, get_args, get_type_hints

import torch
import yaml  # type: ignore[import-untyped]
from jsonargparse import Namespace

from falseneg.cli.parser import Parser, run_parser
from falseneg.cli.trusting import constructor_defaults, imported
from falseneg.data import ImageSet, as_image_set
from falseneg.errors import UserError
from falseneg.strategy import STRATEGY_NAMES, Strategy
from falseneg.train.defaults import ENCODER, Circumstances, available_cores, complete, option, typical_side, usual_rate
from falseneg.train.run import Run, check_batch_size, check_seed

Configuration = dict[str, Any]

MOST = 2**63 - 1
"""The largest whole number that torch takes."""
NO_TEXT = "Unable to serialize instance"
"""What the parser writes for an object that no text stands for: only the default of an option can be one."""


def run_settings(parser: Parser, namespace: Namespace) -> Configuration:
    """Those of a parser's values that a `Run` is made of, as a plain mapping."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=f"\\s*{NO_TEXT}")
        plain = _with_text(yaml.safe_load(parser.dump(namespace, skip_unset=False, skip_validation=True)))
    return {field.name: plain[field.name] for field in dataclasses.fields(Run) if field.name in plain}


def check(configuration: Mapping[str, Any]) -> Configuration:
    """The configuration as the parser understands it, with defaults instead of what is missing.

    Raises:
        UserError: it holds an unknown option or class, or a value of the wrong kind.
    """
    parser = run_parser("", "")
    return run_settings(parser, parser.parse_object(dict(configuration)))


def resolve(configuration: Mapping[str, Any], cores: int | None = None) -> tuple[Configuration, ImageSet]:
    """The configuration with every open setting filled in to suit the data, and the data.

    Args:
        configuration: of a run.
        cores: for this run; None for all that this process may use.
    """
    facts, images = open_data(configuration, cores)
    return settle(configuration, facts), images


def open_data(configuration: Mapping[str, Any], cores: int | None = None) -> tuple[Circumstances, ImageSet]:
    """What open settings depend on, and the data; the arguments are those of `resolve`."""
    images = as_image_set(_part("data", configuration["data"]))
    return circumstances(configuration, images, cores), images


def circumstances(configuration: Mapping[str, Any], images: ImageSet, cores: int | None = None) -> Circumstances:
    """What open settings depend on, of images that are open; the other arguments are those of `resolve`."""
    gpu, weights = uses_gpu(configuration), option(configuration, f"{ENCODER}.weights") is not None
    return Circumstances(len(images), typical_side(images), gpu, cores or available_cores(), weights)


def settle(configuration: Mapping[str, Any], facts: Circumstances) -> Configuration:
    """The configuration with every open setting filled in, the learning rate and a named strategy included.

    Raises:
        UserError: an option that cannot be null is null, or outside its range.
    """
    _refuse_null("the configuration", Run, configuration)
    result = complete(configuration, facts)
    optimiser = result["optimiser"]
    if optimiser.get("init_args", {}).get("learning_rate") is None:
        check_batch_size(result["batch_size"])
        rate = usual_rate(_part("optimiser", optimiser), result["batch_size"], facts.weights)
        result["optimiser"] = {**optimiser, "init_args": {**optimiser.get("init_args", {}), "learning_rate": rate}}
    return with_weights(result)


def with_weights(configuration: Mapping[str, Any]) -> Configuration:
    """The configuration with a strategy's numbers instead of its name.

    Raises:
        UserError: an option that cannot be null is null, or a number is outside its range.
    """
    _refuse_null("the configuration", Run, configuration)
    named = configuration["strategy"]
    try:
        strategy = STRATEGY_NAMES[named] if isinstance(named, str) else Strategy(**named)
    except ValueError as error:
        raise UserError(str(error)) from error
    weights = {"positive": float(strategy.positive), "negative": float(strategy.negative)}
    return {**configuration, "strategy": {**weights, "renormalise": strategy.renormalise}}


def build(configuration: Mapping[str, Any], images: ImageSet | None = None) -> Run:
    """The run that a configuration describes, with first weights that depend on its seed alone.

    Args:
        configuration: its classes are imported, if they are falseneg's or the user has named them.
        images: the data, if they are there already.
    """
    parser = run_parser("", "")
    _refuse_null("the configuration", Run, configuration)
    namespace = parser.parse_object(dict(configuration))
    if images is not None:
        namespace["data"] = images
    check_seed(seed := configuration.get("seed", 0))
    torch.manual_seed(seed)
    parts = instantiated(parser, namespace)
    run = Run(**{field.name: parts[field.name] for field in dataclasses.fields(Run)})
    if isinstance(run.strategy, str):
        run.strategy = STRATEGY_NAMES[run.strategy]
    return run


def to_yaml(configuration: Mapping[str, Any]) -> str:
    """The configuration as a YAML file holds it."""
    return yaml.safe_dump(dict(configuration), sort_keys=False, allow_unicode=True)


def uses_gpu(configuration: Mapping[str, Any]) -> bool:
    """Whether the run will find an accelerator and may use it."""
    return configuration["accelerator"] != "cpu" and torch.accelerator.is_available()


def device_of(configuration: Mapping[str, Any]) -> torch.device:
    """Where a run in this process will compute."""
    accelerator = torch.accelerator.current_accelerator() if uses_gpu(configuration) else None
    return accelerator or torch.device("cpu")


def _part(name: str, configuration: Mapping[str, Any]) -> Any:
    """One part of a run by itself."""
    parser = Parser()
    parser.add_argument(f"--{name}", type=get_type_hints(Run)[name])
    return instantiated(parser, parser.parse_object({name: dict(configuration)}))[name]


def instantiated(parser: Parser, namespace: Namespace) -> Namespace:
    """What the configuration describes.

    Raises:
        UserError: a constructor refuses its arguments.
    """
    refused: list[UserError] = []

    def constructed(kind: type, *arguments: Any, **options: Any) -> Any:
        try:
            return _constructed(kind, *arguments, **options)
        except UserError as error:
            refused.append(error)
            raise

    try:
        return parser.instantiate(namespace, instantiators=[(constructed, object, True)])
    except UserError:
        raise
    except ValueError as error:
        # Of what may also be null the parser lists all that it tried, with the constructor's own sentence in the middle.
        raise (refused[-1] if refused else UserError(str(error))) from error
    except TypeError as error:  # dict_kwargs go past the parser, and so does what is not a group of options
        if "must be a mapping" in str(error):
            given = str(error).rsplit("not ", 1)[-1].replace("NoneType", "null")
            raise UserError(
                f"a group of options in the configuration (--augmentation or --method.encoder, say) is {given}; write below it "
                "each option as name: value"
            ) from error
        if "unexpected keyword argument" not in str(error):
            raise
        raise UserError(f"a class in the configuration takes no such option: {error}; check its dict_kwargs") from error


def _with_text(value: Any) -> Any:
    """Nested mappings and lists, without the options whose default no text stands for: they stay open."""
    if isinstance(value, Mapping):
        return {key: _with_text(item) for key, item in value.items() if not str(item).startswith(NO_TEXT)}
    return [_with_text(item) for item in value] if isinstance(value, list) else value


def _constructed(kind: type, *arguments: Any, **options: Any) -> Any:
    """An instance. The parser leaves a function that is the default of an option as its import path: that is left out."""
    _refuse_null(kind.__name__, kind, options)
    for name, value in options.items():
        if any(isinstance(each, int) and abs(each) > MOST for each in (value if isinstance(value, list) else [value])):
            raise UserError(f"{kind.__name__}: {name} is {value}; give at most {MOST}")
    defaults = constructor_defaults(kind)
    named = {name for name, value in options.items() if isinstance(value, str) and callable(defaults.get(name))}
    left_out = {name for name in named if imported(options[name]) is defaults[name]}
    return kind(*arguments, **{name: value for name, value in options.items() if name not in left_out})


def _refuse_null(owner: str, kind: type, options: Mapping[str, Any]) -> None:
    """The parser lets null through to every option of a class, whatever its constructor says.

    Raises:
        UserError: an option is null, and the constructor does not say that it may be.
    """
    try:
        hints = get_type_hints(kind if dataclasses.is_dataclass(kind) else kind.__init__)  # type: ignore[misc]
    except (NameError, TypeError):  # of somebody else's class
        return
    for name, value in options.items():
        hint = hints.get(name, Any)
        if value is None and hint is not Any and type(None) not in (hint, *get_args(hint)):
            raise UserError(f"{owner}: {name} is null; give a value, or leave it out")
