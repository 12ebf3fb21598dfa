"""Whose code the parser may import: falseneg's own, and what the user has named. A stored run names nothing."""

from __future__ import annotations

import contextlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from jsonargparse import set_parsing_settings

from falseneg.errors import UserError

T = TypeVar("T")

_IMPORT_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
_PATHS = ("--config", "--out", "--resume", "--init_from", "--init-from")
"""Options whose values are names of files and folders, and may look like import paths."""
_trusted: set[str] = set()


class Untrusted(UserError):
    """A class path that nobody has named.

    Args:
        message: the sentence.
        path: the path.
    """

    def __init__(self, message: str, path: str) -> None:
        super().__init__(message)
        self.path = path


def trust(names: Iterable[str]) -> None:
    """Allow these import paths, and no longer those from before. All but falseneg's own are forbidden otherwise."""
    now = {name for name in names if _IMPORT_PATH.fullmatch(name)}
    now = {name for name in now if name.split(".")[0] not in ("falseneg", "jsonargparse")}
    set_parsing_settings(
        import_path_denylist=["*", *(_trusted - now)],
        import_path_allowlist=["falseneg", *now],
        instantiate_subclass_spec_in_any=False,
    )
    _trusted.clear()
    _trusted.update(now)
    # A user's own classes most often lie in the current directory. It is not a place to import from otherwise, for it may be a
    # stranger's; and last in line, so that no file there stands in for another module.
    if now and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


def trusted() -> list[str]:
    """The import paths that are allowed at present."""
    return sorted(_trusted)


def named(arguments: Sequence[str]) -> list[str]:
    """What of a command's arguments may name a class: all that looks like it, but for names of files and folders."""
    names = []
    for place, argument in enumerate(arguments):
        option, _, value = argument.rpartition("=")
        of_path = (option or arguments[place - 1] if place else option) in _PATHS
        if _IMPORT_PATH.fullmatch(value) and not of_path and (place or option):  # what comes first is a folder
            names.append(value)
    return names


def strings(content: Any) -> Iterator[str]:
    """All texts in a nested mapping or list."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, Mapping | list | tuple):
        for item in content.values() if isinstance(content, Mapping) else content:
            yield from strings(item)


def with_what_belongs_to_it(parse: Callable[[], T]) -> T:
    """Parse, and trust with each class also its path of definition and the functions that its constructor has as defaults.

    They are known once the parser has imported the class: then it is asked again.

    Raises:
        Untrusted: another path is not trusted.
    """
    while True:
        try:
            return parse()
        except Untrusted as error:
            found = imported(error.path)
            if found is None or not any(found is each for name in _trusted for each in _belonging(name)):
                raise
            trust([*_trusted, error.path])


def imported(path: str) -> Any:
    """What stands behind an import path; None if its module has not been imported."""
    module, _, name = path.rpartition(".")
    return getattr(sys.modules.get(module), name, None)


def constructor_defaults(found: type) -> dict[str, Any]:
    """The defaults of a constructor's parameters, and of its parents' constructors, to which it may pass what it does not know."""
    defaults: dict[str, Any] = {}
    for parent in reversed(inspect.getmro(found)):
        with contextlib.suppress(TypeError, ValueError):
            defaults |= {name: each.default for name, each in inspect.signature(parent).parameters.items()}
    return defaults


def _belonging(name: str) -> list[Any]:
    """What has that name and, of a class, the functions and classes that its constructor has as defaults."""
    found = imported(name)
    defaults = constructor_defaults(found).values() if inspect.isclass(found) else ()
    return [found, *(each for each in defaults if inspect.isclass(each) or inspect.isroutine(each))]
