"""What stands in a variant's configuration for the run of another variant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

RUN_OF = "run of "
"""Begins an option of a detector, as in ``guide: run of none``, that stands for another variant's run with the same seed."""


def with_runs(configuration: Mapping[str, Any], folders: Mapping[str, str] | None) -> dict[str, Any]:
    """A configuration with the folders of the runs that its detector names; without them, if there are none yet."""
    result = dict(configuration)
    if "detector" in result:
        result["detector"] = _replaced(result["detector"], folders)
    return result


def _replaced(value: Any, folders: Mapping[str, str] | None) -> Any:
    if isinstance(value, Mapping):
        return {key: _replaced(item, folders) for key, item in value.items()}
    if isinstance(value, list | tuple):
        kept = [_replaced(item, folders) for item in value if folders is not None or _variant_of(item) is None]
        return kept if kept or not value else None
    name = _variant_of(value)
    return value if name is None else folders and folders[name]


def runs_named(configuration: Mapping[str, Any]) -> list[str]:
    """The variants whose runs the detector of a configuration names."""
    return list(dict.fromkeys(_variants_in(configuration.get("detector"))))


def _variants_in(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping | list | tuple):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _variants_in(part)
    elif (name := _variant_of(value)) is not None:
        yield name


def _variant_of(value: Any) -> str | None:
    """The variant in "run of VARIANT"; None if it is anything else."""
    return value.removeprefix(RUN_OF) if isinstance(value, str) and value.startswith(RUN_OF) else None
