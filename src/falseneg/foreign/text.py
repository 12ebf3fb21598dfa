"""YAML and JSON whose content is as small as it looks."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from falseneg.errors import UserError

MOST_BYTES = 2**20
"""Bytes of a YAML file, at most."""
MOST_NODES = 50_000
"""Values in a YAML file at most, each alias (``*name``) counted as all that it stands for."""
MOST_JSON = 2**22
"""Bytes of a JSON file, at most: Python takes up to 25 times as much."""


def read_yaml(path: Path) -> Any:
    """The content of a YAML file.

    Raises:
        UserError: it cannot be read, is not YAML, or has more than 1 MiB or, with its aliases written out, more than 50,000
            values.
    """
    try:
        return _parsed(_text(path, MOST_BYTES))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check the path") from error
    except RecursionError as error:
        raise UserError(f"{path} is nested too deeply; write a flatter file") from error
    except _TooMuch as error:
        raise UserError(f"{path} {error}; write a smaller file") from error
    except Exception as error:  # PyYAML raises whatever a value of the wrong form makes Python raise
        where = getattr(error, "problem_mark", None)
        line = f" in line {where.line + 1}" if where else ""
        raise UserError(f"{path} is not valid YAML{line}: {getattr(error, 'problem', None) or error}") from error


def read_json(path: Path) -> Any:
    """The content of a JSON file of at most 4 MiB.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not JSON, or too large, or nested too deeply.
    """
    try:
        return json.loads(_text(path, MOST_JSON))
    except (_TooMuch, RecursionError) as error:
        raise ValueError(str(error)) from error


class _TooMuch(Exception):
    """Larger than any file of this kind; not a `ValueError`, as what a reader raises."""


def _text(path: Path, most: int) -> str:
    with open(path, "rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise _TooMuch(f"has more than {most / 2**20:.0f} MiB")
    return content.decode("utf-8")


class _Loader(yaml.SafeLoader):
    """Counts as it goes, so that a file of many values is refused before they fill the memory."""

    nodes = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.nodes += 1
        _check(self.nodes)
        return super().compose_node(parent, index)


def _parsed(text: str) -> Any:
    loader = _Loader(text)
    node = loader.get_single_node()
    if node is None:
        return None
    _written_out(node, {})
    return loader.construct_document(node)


def _written_out(node: Any, known: dict[int, int]) -> int:
    """The values below a node if its aliases are written out, as merge keys (``<<``) and many readers do.

    A text counts as the values that are in it, for the parser of options reads it as YAML as well.

    Args:
        node: of a composed file.
        known: what is counted already, by the node; nothing yet of what lies above.

    Raises:
        _TooMuch: there are more than `MOST_NODES`, or a value contains itself.
    """
    if id(node) not in known:
        known[id(node)] = MOST_NODES + 1
        if isinstance(node, yaml.ScalarNode):
            known[id(node)] = 1 + _in_text(node.value)
        else:
            below = itertools.chain(*node.value) if isinstance(node, yaml.MappingNode) else node.value
            known[id(node)] = 1 + sum(_written_out(each, known) for each in below)
    _check(known[id(node)])
    return known[id(node)]


def _in_text(text: str) -> int:
    if "&" not in text or "*" not in text:  # without names and aliases it is as small as it looks
        return 0
    try:
        node = _Loader(text).get_single_node()
    except yaml.YAMLError:
        return 0
    return 0 if node is None or isinstance(node, yaml.ScalarNode) else _written_out(node, {})


def _check(nodes: int) -> None:
    if nodes > MOST_NODES:
        raise _TooMuch(f"holds more than {MOST_NODES:,} values, its aliases written out")
