"""Writing files so that a reader, or a resumed run, never meets half of one; and how much a file may unpack to."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
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


WHAT_TO_DO = "make room or choose another folder; what was there before is untouched"


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        UserError: it cannot be written. The old file is untouched.
    """
    with replacing(path) as file:
        file.write(content)


def most_unpacked(files: Sequence[Path]) -> int:
    """How many bytes compressed files may unpack to: 256 MiB, or 100 times what they take on the disk if that is more.

    Files of images, labels or pairs stay far below; a bomb of some kilobytes is refused before it fills the memory.
    """
    return max(2**28, 100 * sum(file.stat().st_size for file in files))


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
