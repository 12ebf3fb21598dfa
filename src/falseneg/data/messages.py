"""What the data sets say about a name that they do not know."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from falseneg.errors import UserError

OR_LEAVE_OUT = "or leave unreadable images out with --skip-unreadable true"
MEND = f"replace it, remove it, {OR_LEAVE_OUT}"
"""What to do with an image that cannot be read."""


def unknown(what: str, given: str, known: Iterable[str]) -> UserError:
    """The error for a mistyped name, with the nearest name that exists."""
    names = list(known)
    lowered = {name.lower(): name for name in reversed(names)}
    nearest = difflib.get_close_matches(given.lower(), lowered, n=1)
    guess = f" (did you mean {lowered[nearest[0]]!r}?)" if nearest else ""
    return UserError(f"{what} {given!r} is unknown{guess}: choose one of {', '.join(names) or '(there are none)'}")


def check_choice(what: str, given: str, known: Iterable[str]) -> None:
    """Refuse a name that is not one of the known ones.

    Raises:
        UserError: the name is unknown.
    """
    names = tuple(known)
    if given not in names:
        raise unknown(what, given, names)
