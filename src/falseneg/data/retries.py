"""Storage that fails for a while or does not answer: asked again, a bounded number of times."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from falseneg.errors import UserError

T = TypeVar("T")
WAITS = (1.0, 2.0, 4.0, 8.0)
"""Seconds before the second attempt, the third, and so on."""
PATIENCE = 60.0
"""Seconds that an attempt may take; what has not answered by then is left alone."""

_asked_again = [0]
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _asked_again.__setitem__(0, 0))


def asked_again() -> int:
    """How many times this process has asked for something again so far."""
    return _asked_again[0]


def answered(place: str, ask: Callable[[], T], absent: str, patience: float | None = None) -> T:
    """What storage answers: asked up to five times, with growing waits, if it fails in a way that may pass.

    Args:
        place: what is asked for, for messages.
        ask: asks once. Runs in a thread, which is left behind if it takes too long.
        absent: what to say where there is no such thing.
        patience: seconds that an attempt may take; `PATIENCE` by default.

    Raises:
        UserError: there is no such thing, access is refused, a package is missing, or the last attempt failed, too.
    """
    seconds = PATIENCE if patience is None else patience
    for wait in (*WAITS, None):
        try:
            return _within(seconds, ask)
        except UserError:
            raise
        except Exception as error:
            if (sentence := _lasting(place, error, absent)) is not None:
                raise UserError(sentence) from error
            if isinstance(error, (AssertionError, AttributeError, LookupError, NameError, TypeError)):
                raise  # a bug
            if wait is None:
                raise UserError(
                    f"{place} could not be read in {len(WAITS) + 1} attempts (the last one: {reason_of(error)}): check the "
                    "storage and the connection to it, then start again"
                ) from error
        _asked_again[0] += 1
        time.sleep(wait)
    raise AssertionError


def _within(seconds: float, ask: Callable[[], T]) -> T:
    """The answer, if it comes in time. No library's own limit covers all that can hang, such as the look-up of a name."""
    answer: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            answer.put((ask(), None))
        except BaseException as error:
            answer.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        value, error = answer.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer within {seconds:g} s") from None
    if error is not None:
        raise error
    return value


def _lasting(place: str, error: BaseException, absent: str) -> str | None:
    """What to say about an error that would come again; None for one that may pass."""
    if isinstance(error, ImportError):
        return missing_package(place, error)
    status = _status(error)
    if isinstance(error, FileNotFoundError) and type(error.__cause__).__module__.startswith(("aiohttp", "asyncio")):
        return _lasting(place, error.__cause__, absent)  # type: ignore[arg-type]  # said by fsspec's http whatever happened
    if status in (404, 410) or isinstance(error, (FileNotFoundError, IsADirectoryError, NotADirectoryError)):
        return absent
    refused = status in (401, 403) or isinstance(error, PermissionError) or "Credential" in type(error).__name__
    if refused:
        return (
            f"access to {place} is refused ({reason_of(error)}): give credentials that may read it, in the environment or "
            "the files where the storage's own tools look for them"
        )
    if status is not None and 400 <= status < 500 and status not in (408, 425, 429):
        return f"{place} cannot be read ({reason_of(error)}): correct its address"
    return None


def missing_package(place: str, error: ImportError, package: str = "") -> str:
    """The sentence about storage of a kind that nothing installed can read; without its name, fsspec's own words."""
    how = f"pip install {package}" if package else reason_of(error)
    return f"{place} needs a package that is not installed: {how}"


def _status(error: BaseException) -> int | None:
    """The number with which an HTTP server refused, wherever the library puts it."""
    response = getattr(error, "response", None)
    for holder, name in ((error, "status"), (error, "code"), (response, "status_code")):
        with contextlib.suppress(TypeError, ValueError):
            return int(getattr(holder, name, None))  # type: ignore[arg-type]
    return None


def reason_of(error: BaseException) -> str:
    """An error in one line, without a full stop."""
    text = " ".join(str(error).split()).rstrip(".")
    return text[:300] or type(error).__name__
