"""The sections of the page: whatever is in this folder, by rising places."""

from __future__ import annotations

import pkgutil
from importlib import import_module

from falseneg.report.section import Section


def all_sections() -> list[Section]:
    """One of each file here, so that a new section needs no line anywhere else."""
    modules = [import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
    return sorted((module.SECTION for module in modules), key=lambda section: section.place)
