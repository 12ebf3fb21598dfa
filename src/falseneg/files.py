"""Writing files whole or not at all, and folders that one process writes."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from falseneg.errors import UserError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file that takes the place of ``path`` once it is whole and on the disk; until then the old one stays.

    Raises:
        UserError: it cannot be written, as on a full disk. The old file is untouched.
    """
    new = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(new, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
        _sync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)
        # torch.save and others turn a failed write into an error of their own; the disk's is its cause or context.
        if (cause := disk_error(error)) is not None:
            raise UserError(f"{path} could not be written ({cause.strerror or cause}); {WHAT_TO_DO}") from error
        raise


LOCK = ".lock"
_HELD: set[int] = set()
"""The locks of this process, as open files."""


@contextlib.contextmanager
def alone(folder: Path, refusal: str, patience: float = 0.0) -> Iterator[None]:
    """Hold a folder: no other process can, until this one leaves it or dies. Where the system has no locks, it is free.

    A folder that is made for this, and left empty, goes again.

    Args:
        folder: made if it is not there.
        refusal: what to say where another process holds it.
        patience: seconds to wait for the other process.

    Raises:
        UserError: another process holds it, or it cannot be made or written.
    """
    made = [path for path in (folder, *folder.absolute().parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = _lock(folder / LOCK, time.monotonic() + patience)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}); choose another folder with --out") from error
    if lock is None:
        raise UserError(refusal)
    _HELD.add(lock)
    try:
        yield
    finally:
        if lock in _HELD:  # and not in a fork of this process
            _HELD.remove(lock)
            with contextlib.suppress(OSError):
                (folder / LOCK).unlink()
            os.close(lock)
            with contextlib.suppress(OSError):
                for path in made:
                    path.rmdir()


def _lock(path: Path, until: float) -> int | None:
    """The locked file; None if another process holds it at that time."""
    while True:
        # A link may come from anybody, and lead anywhere.
        lock = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            if time.monotonic() >= until:
                return None
            time.sleep(0.1)
            continue
        except (ImportError, OSError):  # Windows, or a file system without locks
            return lock
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock), os.stat(path)):
                return lock
        os.close(lock)  # whoever held it has just removed it


def _let_go() -> None:
    """In a fork, such as a process that loads images: it may outlive the one that holds the locks."""
    for lock in _HELD:
        os.close(lock)
    _HELD.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)

WHAT_TO_DO = "free some space or choose another folder; what was there before is untouched"


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        UserError: it cannot be written. The old file is untouched.
    """
    with replacing(path) as file:
        file.write(content)


def disk_error(error: BaseException) -> OSError | None:
    """The error of the operating system behind an error, if there is one."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno is not None:
            return seen
        seen = seen.__cause__ or seen.__context__
    return None


def _sync_folder(folder: Path) -> None:
    """Make the new name itself survive a loss of power, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
