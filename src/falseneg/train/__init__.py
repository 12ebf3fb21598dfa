"""Training: the loop, and all that surrounds it."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_ROOM_OF = {
    "AdamW": "optimisers",
    "LARS": "optimisers",
    "Optimiser": "optimisers",
    "Run": "run",
    "SGD": "optimisers",
    "fit": "pretrain",
}

__all__ = sorted(_ROOM_OF)


def __getattr__(name: str) -> Any:
    if name in _ROOM_OF:
        return getattr(import_module(f"falseneg.train.{_ROOM_OF[name]}"), name)
    raise AttributeError(f"module 'falseneg.train' has no attribute {name!r}")
