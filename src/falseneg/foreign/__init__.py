"""Reading files that may come from anybody: nothing in them is run, and what they unpack to is bounded."""

from __future__ import annotations

import os
from collections.abc import Sequence

from falseneg.errors import UserError


def most_unpacked(files: Sequence[os.PathLike[str]]) -> int:
    """How many bytes compressed files may unpack to: 256 MiB, or 100 times what they take on the disk if that is more.

    Files of images, labels, pairs or weights stay far below; a bomb of some kilobytes is refused before it fills the memory.
    """
    return max(2**28, 100 * sum(os.stat(file).st_size for file in files))


def check_unpacked(files: Sequence[os.PathLike[str]], size: int, part: str = "") -> None:
    """Refuse files that unpack to more than `most_unpacked`.

    Args:
        files: what is unpacked.
        size: bytes that it unpacks to, or claims to.
        part: what of the files, as "the column 'x' of ".

    Raises:
        UserError: it is too much.
    """
    if size > (most := most_unpacked(files)):
        raise UserError(
            f"{part}{listed(files)} unpacks to more than {most / 2**20:,.0f} MiB, out of "
            f"{sum(os.stat(file).st_size for file in files):,} bytes: such a file is treated as damaged or malicious; split it, "
            "or store it without compression"
        )


def listed(files: Sequence[os.PathLike[str]]) -> str:
    """The first file, and how many there are beside it."""
    return str(files[0]) + (f" and {len(files) - 1} more" if len(files) > 1 else "")
