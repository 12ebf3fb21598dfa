"""The parser's long errors in one sentence, with the nearest name that exists.

The parser (jsonargparse) says where from the outside in, a line each, and then what:

    Parser key "method":
      Problem with given class_path 'falseneg.SimCLR':
        Option 'vies' is not accepted
"""

from __future__ import annotations

import inspect
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

from falseneg.cli.data_at import data_at
from falseneg.cli.messages import did_you_mean
from falseneg.data.remote import is_remote

_KEY = re.compile(r'Parser key "([^"]+)":?\s*(.*)', re.DOTALL)
_CLASS = re.compile(r"Problem with given class_path '([^']+)':\s*(.*)", re.DOTALL)
_UNION = re.compile(
    r"Does not validate against any of the Union subtypes.*?Errors:\n(.*?)\s*Given value type:", re.DOTALL
)
_NO_CLASS = re.compile(
    r"(Expected a dot import path string|Unexpected import path format|No module named|module '.*' has no attribute|Import path .* does)"
)
_ABSTRACT = re.compile(r"Expected an instantiatable class, but \S+ is abstract")
_VALUE = re.compile(r"(?:Got|Given) value: (.*)", re.DOTALL)
_PAPERS = {
    "fnc": ("SupportSet", "fnc-eliminate"),
    "ifnd": ("IncrementalClusters", "ifnd"),
    "glofnd": ("GlobalThreshold", "glofnd"),
}
"""The names of the papers, for which people look among the detectors: the detector of each, and the variant."""
_NOT_FROM_TEXT = {"Subset", "ViewSet"}
"""Data sets that only a program makes."""
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "tuple": "a list such as [0.2,1]",
    "list": "a list such as [1,2]",
    "dict": "a mapping such as {name: value}",
    "Path": "a path",
}


def explain(message: str, owner: type, options: list[str]) -> str:
    """One sentence for an error of the parser.

    Args:
        message: what the parser says.
        owner: the class whose constructor the command's options come from.
        options: the command's options, with their dashes.
    """
    keys: list[str] = []
    class_path, rest = "", message.strip()
    while True:
        if match := _KEY.match(rest):
            keys += [key for key in match[1].split(".") if key != "init_args"]
            owner, class_path = _find(class_path) or owner, ""
        elif match := _CLASS.match(rest):
            owner, class_path = _find(class_path) or owner, match[1]
        elif (match := _UNION.match(rest)) and (inner := _of_class(match[1])):
            rest = inner
            continue
        else:
            return _what(rest, keys, class_path, owner, options)
        rest = match[2].strip()


def _what(rest: str, keys: list[str], class_path: str, owner: type, options: list[str]) -> str:
    """The sentence for the last part of the parser's error."""
    option = _option(keys)
    if match := re.search(r"Importing '(.+?)' is not allowed", rest):
        return (
            f"{option} names {match[1]}, which is not part of falseneg; if you know its code and trust it, "
            f"repeat the command with --trust {match[1]}"
        )
    if _NO_CLASS.match(rest):
        given = class_path or rest.rsplit(": ", 1)[-1].strip()
        return _no_class(given, rest, option, list(class_names(owner, keys[-1])) if keys else [])
    holder = _find(class_path) or owner
    if _ABSTRACT.match(rest):
        return f"{option} has options, but no class; first choose one of {', '.join(class_names(owner, keys[-1]))}"
    if match := re.match(r"Option '(.+?)' is not accepted|Group '(.+?)' does not accept option '(.+?)'", rest):
        inner = [match[1]] if match[1] else [*match[2].split("."), match[3]]
        return _no_part(keys, inner, holder)
    if class_path and (match := re.match(r"unrecognized arguments: --([\w.]+)", rest)):
        return _no_part(keys, match[1].split("."), holder)
    if match := re.match(r"the following arguments are required: (.+)", rest):
        missing = ", ".join(_option([*keys, key.strip()]) for key in match[1].split(","))
        return f"{option + ' ' + class_path.rsplit('.', 1)[-1] if class_path else 'this command'} needs {missing}; see --help"
    if match := re.match(r"unrecognized arguments: (\S+)", rest):
        return _no_option(match[1].split("=")[0], options)
    if match := re.match(r"argument (\S+): expected (.+)", rest):
        return f"{match[1].split('/')[-1].replace('_', '-')} has no value; give {match[2].replace(' argument', '')}"
    if match := re.match(r"Multiple subclasses with name (\w+)\..*?: (.+?)\.?$", rest):
        return f"{option}: there are several classes {match[1]}; say which: {' or '.join(match[2].split(', '))}"
    if match := re.search(r"(?:does not exist|not readable|Unable to load config)\W*'?([^'\"]*)", rest):
        return f"{option or 'the configuration'}: there is no readable file {match[1].strip() or rest}"
    if _VALUE.search(rest):
        return _bad_value(rest, option)
    return " ".join([*([f"{option}:"] if option else []), *rest.split()])


def _no_class(given: str, rest: str, option: str, names: list[str]) -> str:
    base = given.rsplit(".", 1)[-1]
    if option == "--data" and (reader := data_at(given)) is not None:
        place = given if is_remote(given) else str(Path(given))
        meant = f"--data {reader[0]} --data.{reader[1]} {shlex.quote(place)}"
        return f"--data takes a kind of data set, but {given} is a path; give {meant}"
    if given.lower() in _PAPERS and _PAPERS[given.lower()][0] in names:
        detector, variant = _PAPERS[given.lower()]
        return (
            f"{option}: there is no {given}; its detector is {detector}, and --variant {variant} sets everything that belongs "
            "to it"
        )
    if "does not correspond" in rest:
        return f"{option} cannot be {base}; choose one of {', '.join(names)}, or a class of your own of that kind"
    if "." in given:
        reason = rest.split("\n")[0]
        return f"{option}: there is no class {given} ({reason}); a class of your own must be importable from here"
    return (
        f"{option}: there is no {given}{did_you_mean(given, names)}; choose one of {', '.join(names)}, "
        "or name a class of your own by its import path"
    )


def _no_part(keys: list[str], inner: list[str], holder: type) -> str:
    """Of an option inside a part: ``inner`` are the keys below ``holder``, the last of which is unknown."""
    for key in inner[:-1]:
        holder = next(_classes(_hints(holder).get(key)), holder)
    known = _parameters(holder)
    given = _option([*keys, *inner])
    takes = ", ".join(name.replace("_", "-") for name in known) or "no options"
    return f"there is no option {given}{did_you_mean(inner[-1], known)}; {holder.__name__} takes {takes}"


def _no_option(given: str, options: list[str]) -> str:
    if not given.startswith("-"):
        return f"there is no place for {given!r} among the options; quote values with spaces, write lists as [1,2]"
    # `--dta.root` is nearest to `--data`, and then means `--data.root`.
    head, _, tail = given.replace("_", "-").partition(".")
    heads = {option.partition(".")[0] for option in options}
    whole = did_you_mean(given, options) if head in heads or not tail else ""
    return f"there is no option {given}{whole or did_you_mean(head, heads)}; --help lists them all"


def _bad_value(rest: str, option: str) -> str:
    found = _VALUE.search(rest)
    value = (found[1] if found else "").strip().splitlines()[0]
    expected = re.sub(r"(Subtypes|Given value type):.*", "", rest[: found.start()] if found else rest)
    if match := re.search(r"Literal\[(.+?)\]", expected):
        choices = [choice.strip(" '\"") for choice in match[1].split(",")]
        return f"{option} is {value!r}{did_you_mean(value, choices)}; choose one of {', '.join(choices)}"
    if match := re.search(r"expects a function or a callable class: (.*)", expected):
        reason = match[1].strip(" .").removeprefix("Expected ")
        return f"{option} is {value!r}; give the import path of a function or a class with __call__ ({reason})"
    kinds = [_KINDS[kind] for kind in _KINDS if re.search(rf"\b{kind}\b", expected)]
    return f"{option} is {value!r}; give {' or '.join(kinds) or ' '.join(expected.split()).removeprefix('Expected ')}"


def _of_class(errors: str) -> str | None:
    """Of the complaints of an optional or alternative type, the one about a class, if there is one."""
    margin = re.match(r" *", errors)[0]  # type: ignore[index]
    pieces = [piece.strip() for piece in re.split(rf"^{margin}- ", errors, flags=re.MULTILINE)]
    if "Literal[" in errors and not any("Option" in piece for piece in pieces):
        return None
    numbers = any("<class 'float'>" in piece for piece in pieces)
    about = [piece for piece in pieces if _CLASS.match(piece) or (_NO_CLASS.match(piece) and not numbers)]
    about += [piece for piece in pieces if _ABSTRACT.match(piece)]
    return min(about, key=lambda piece: _NO_CLASS.match(piece) is not None, default=None)


def _option(keys: list[str]) -> str:
    return "--" + ".".join(keys).replace("_", "-") if keys else ""


def _find(class_path: str) -> type | None:
    """A class that is already imported."""
    module, _, name = class_path.rpartition(".")
    return getattr(sys.modules.get(module), name, None)


def _parameters(owner: type) -> list[str]:
    return [name for name in inspect.signature(owner).parameters if name not in ("args", "kwargs")]


def class_names(owner: type, key: str) -> Iterator[str]:
    """The names of falseneg's classes that a parameter can hold, without the abstract ones that they derive from."""
    for base in _classes(_hints(owner).get(key)):
        for found in _below(base):
            if not found.__name__.startswith("_") and found.__name__ not in _NOT_FROM_TEXT:
                yield found.__name__


def _hints(owner: type) -> dict[str, Any]:
    """The types of a constructor's parameters."""
    try:
        return get_type_hints(owner if "__dataclass_fields__" in vars(owner) else owner.__init__)  # type: ignore[misc]
    except NameError:
        return {}


def _classes(annotation: Any) -> Iterator[type]:
    if inspect.isclass(annotation) and not get_args(annotation):
        yield annotation
    for inner in get_args(annotation):
        yield from _classes(inner)


def _below(base: type) -> Iterator[type]:
    """The classes of falseneg at the ends of the tree below a class."""
    below: list[type] = base.__subclasses__()
    ours = [found for found in below if found.__module__.startswith("falseneg.")]
    for found in ours:
        yield from _below(found)
    if not ours and base.__module__.startswith("falseneg."):
        yield base
