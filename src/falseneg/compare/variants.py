"""The treatments that can be compared by name: what each changes in a configuration. All else stays as it is."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

Overrides = Mapping[str, Any]

BY_DEFAULT = ("none", "fnc-eliminate", "fnc-attract", "oracle", "oracle-eliminate")
SUPPORT_VIEWS = 4
"""Support views of the FNC variants where the configuration has none. The paper finds 8 best; 4 cost half."""


def named_variants(expected_classes: int | None, support_views: int = 0) -> dict[str, Overrides]:
    """The variants by name.

    FNC (Huynh et al. 2022, section 4.3) does best with the 8 most similar of 8,190 candidates in 1,000 classes for
    elimination, which is one over the number of classes, and with half as many for attraction.

    Args:
        expected_classes: C; None leaves out the variants that cannot do without it.
        support_views: what the configuration has already.
    """
    variants: dict[str, Overrides] = {"none": _treatment(_part("NoDetection"), "ignore")}
    if expected_classes is not None:
        share = 1 / expected_classes
        support = {"method": {"init_args": {"support_views": support_views or SUPPORT_VIEWS}}}
        variants["fnc-eliminate"] = support | _treatment(_part("SupportSet", share=share), "eliminate")
        variants["fnc-attract"] = support | _treatment(_part("SupportSet", share=share / 2), "attract")
    variants["oracle"] = _treatment(_part("Oracle"), "attract")
    variants["oracle-eliminate"] = _treatment(_part("Oracle"), "eliminate")
    return variants


def changed(configuration: Mapping[str, Any], overrides: Overrides) -> dict[str, Any]:
    """The configuration with the overrides in it. A class of another name takes nothing over from the one before."""
    result = copy.deepcopy(dict(configuration))
    for key, value in overrides.items():
        old = result.get(key)
        other_class = isinstance(value, Mapping) and value.get("class_path", "") not in ("", _class_of(old))
        if isinstance(value, Mapping) and isinstance(old, Mapping) and not other_class:
            result[key] = changed(old, value)
        else:
            result[key] = copy.deepcopy(value)
    return result


def _class_of(value: Any) -> Any:
    return value.get("class_path") if isinstance(value, Mapping) else None


def _treatment(detector: dict[str, Any], strategy: str) -> dict[str, Any]:
    return {"detector": detector, "strategy": strategy}


def _part(name: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": f"falseneg.{name}", "init_args": arguments}
