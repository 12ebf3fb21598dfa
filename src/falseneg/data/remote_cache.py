"""Local copies of what lies on remote storage, in a folder that is bounded: what was not used for longest goes first."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from falseneg.errors import UserError

VARIABLE = "FALSENEG_CACHE_GB"
_USUAL = 50.0
_SHARE_KEPT = 0.9  # of the bound, once something has to go
_LOOK_AFTER = 256  # a process looks how full the folder is whenever it has added this part of the bound
_ABANDONED = 3600.0  # seconds after which a half-written copy belongs to nobody

_added: defaultdict[Path, float] = defaultdict(lambda: math.inf)
"""Bytes that this process has added to a folder since it last looked."""


def bound() -> float:
    """Bytes that local copies may take.

    Raises:
        UserError: the variable is not a number.
    """
    given = os.environ.get(VARIABLE, "")
    try:
        gigabytes = float(given) if given else _USUAL
        if not 0 <= gigabytes < math.inf:
            raise ValueError
    except ValueError:
        raise UserError(f"{VARIABLE} is {given!r}: give a number of gigabytes, such as 200") from None
    return gigabytes * 1e9


@dataclass(frozen=True)
class RemoteCache:
    """Copies by name, each whole or not there. Any number of processes may use the folder at once.

    Args:
        folder: where they are; made when the first one is written.
    """

    folder: Path

    def path(self, name: str, size: int) -> Path | None:
        """The copy, marked as used; None if there is none of that size."""
        target = self.folder / name
        try:
            if os.stat(target).st_size != size:  # cut short by a loss of power
                target.unlink()
                return None
            os.utime(target)
        except OSError:
            return None
        return target

    def read(self, name: str, size: int, start: int, length: int) -> bytes | None:
        """A part of the copy; None if there is no copy of that size."""
        try:
            with open(self.folder / name, "rb") as stream:  # stays readable if it is removed now
                if os.fstat(stream.fileno()).st_size != size:
                    return None
                stream.seek(start)
                data = stream.read(length)
        except OSError:
            return None
        with contextlib.suppress(OSError):
            os.utime(self.folder / name)
        return data

    def write(self, name: str, pieces: Iterable[bytes]) -> Path:
        """Add a copy, and remove others if they are too many now.

        Raises:
            UserError: the folder cannot be written.
        """
        target = self.folder / name
        half = self.folder / f".{name}.{os.getpid()}.{time.monotonic_ns()}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(half, "wb") as stream:
                for piece in pieces:
                    stream.write(piece)
                size = stream.tell()
            os.replace(half, target)
        except OSError as error:
            raise UserError(
                f"{self.folder} cannot be written ({error.strerror or error}): free some space, lower {VARIABLE}, or name "
                "another folder with cache"
            ) from error
        finally:
            with contextlib.suppress(OSError):
                half.unlink(missing_ok=True)
        _added[self.folder] += size
        if _added[self.folder] > bound() / _LOOK_AFTER:
            self._remove_oldest(target)
        return target

    def _remove_oldest(self, newest: Path) -> None:
        """Keep within the bound; processes that do so at once agree on what goes."""
        copies, total = [], 0
        for entry in os.scandir(self.folder):
            with contextlib.suppress(OSError):
                status = entry.stat()
                in_work = entry.name.startswith(".") and time.time() - status.st_mtime < _ABANDONED
                total += status.st_size
                if not in_work and entry.name != newest.name:
                    copies.append((status.st_mtime_ns, status.st_size, entry.path))
        _added[self.folder] = 0
        if total <= bound():
            return
        for _, size, path in sorted(copies):
            if total <= _SHARE_KEPT * bound():
                return
            with contextlib.suppress(OSError):
                os.unlink(path)
                total -= size

    @contextlib.contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """Hold a name, so that of several processes one copies a large file and the others wait. Needs locks of the system."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / f".{name}.lock", "ab") as stream:
            with contextlib.suppress(ImportError, OSError):
                import fcntl

                fcntl.flock(stream, fcntl.LOCK_EX)
            yield
