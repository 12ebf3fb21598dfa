"""What a section of the page is. Each is one file of `falseneg.report.sections` and one template of its anchor's name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from falseneg.errors import UserError
from falseneg.report.comparison import ComparisonRecord
from falseneg.report.read import File, RunRecord

T = TypeVar("T")
DAMAGED = (TypeError, ValueError, LookupError, ArithmeticError, OSError, UserError)
"""What data of another form make drawing raise; any other error is a fault of the program, and is not hidden."""


class Heading(Protocol):
    """What the frame of the page shows of a section; ``templates/ANCHOR.html`` shows its content, there called ``it``."""

    @property
    def anchor(self) -> str: ...

    @property
    def title(self) -> str: ...

    @property
    def link(self) -> str: ...


@dataclass(frozen=True)
class Section:
    """A section: what it needs, and how its content is made.

    Attributes:
        place: sections stand on the page by rising places.
        anchor: its address on the page; ``templates/ANCHOR.html`` shows the content, there called ``it``.
        title: its heading.
        link: its name in the navigation.
        of_run: makes the content for a run's page; None leaves the section out.
        of_comparison: the same for a comparison's page.
        needs: the files of a run's folder, beside its figures, that are loaded before: of a comparison those of the runs
            that pictures are taken from.
    """

    place: int
    anchor: str
    title: str
    link: str
    of_run: Callable[[RunRecord], Any]
    of_comparison: Callable[[ComparisonRecord], Any]
    needs: tuple[File[Any], ...] = ()


def part(notes: list[str], what: str, draw: Callable[[], T]) -> T | None:
    """A part of the page; None if its data make drawing fail, which is then said on the page instead.

    Files are checked as they are read; this is for what passes and yet cannot be drawn. Tests see a fault of ours by the
    sentence, which a whole folder must not give.
    """
    try:
        return draw()
    except DAMAGED as error:
        notes.append(
            f"{what} cannot be drawn from the recorded data ({type(error).__name__}), so this part is left out"
        )
        return None
