"""What NumPy and torch have stored, bounded in memory; and nothing that is pickled in it is run."""

from __future__ import annotations

import io
import pickletools
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from falseneg.errors import UserError
from falseneg.foreign import check_unpacked

if TYPE_CHECKING:
    from torch import Tensor

_LEAST_PICKLE = 2**21
"""Bytes of pickled content that any file may have; beyond that, an eighth of its size."""
_LEGACY_PICKLES = 5
"""Pickles in a file from before torch 1.6: a number, a version, the system, the content, the names of the storages."""
_FOR_TENSORS = re.compile(
    r"collections (OrderedDict|Counter)|torch\._utils _rebuild_(tensor(_v[23])?|parameter(_with_state)?)"
    r"|torch (\w+Storage|Size|device|b?float\w*|u?int\w*|bool|complex\w*)|torch\.storage (Typed|Untyped)Storage"
)
"""What a file of tensors names. Others that torch takes for safe (bytearray, encode) make gigabytes of a few bytes."""


def load_array(path: Path) -> np.ndarray:
    """An .npy file, mapped: a header that claims more than the file holds is refused before anything is allocated.

    Raises:
        ValueError: it is not an array of plain values.
        OSError: it cannot be read.
    """
    return np.lib.format.open_memmap(path, mode="r")


def load_arrays(path: Path, beginnings: tuple[str, ...] = ("",)) -> dict[str, np.ndarray]:
    """The arrays of an .npz file whose names begin so.

    Raises:
        UserError: they are more than `most_unpacked` allows.
        Exception: whatever a damaged file makes NumPy raise.
    """
    with zipfile.ZipFile(path) as archive:
        check_unpacked([path], sum(member.file_size for member in archive.infolist()))
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files if name.startswith(beginnings)}


def load_tensors(path: Path) -> Any:
    """What `torch.save` wrote of tensors, plain values and collections of these; tensors on the CPU.

    Raises:
        UserError: it is compressed, or its tensors claim more than `most_unpacked` allows.
        Exception: whatever a damaged file makes torch raise.
    """
    import torch

    _check_pickles(path)
    content = torch.load(path, map_location="cpu", weights_only=True)
    check_unpacked([path], sum(tensor.numel() * tensor.element_size() for tensor in _tensors(content)))
    return content


def _check_pickles(path: Path) -> None:
    """Look at what is pickled, and at how it is stored, before torch does."""
    size = path.stat().st_size
    most = max(_LEAST_PICKLE, size // 8)
    with open(path, "rb") as file:
        archived = file.read(4) == b"PK\x03\x04"
        if not archived:
            file.seek(0)
            _check_pickle(path, file.read(most + 1), most, _LEGACY_PICKLES)
            return
        _check_directory(file, size)
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise UserError(f"{path} is compressed, which torch.save never does; give the file as torch.save wrote it")
        check_unpacked([path], sum(member.file_size for member in members))
        for member in members:
            if member.filename.lower().endswith(".pkl"):
                with archive.open(member) as pickled:
                    _check_pickle(path, pickled.read(most + 1), most)


def _check_directory(file: Any, size: int) -> None:
    """Make sure that all readers find the same list of members: the one at the very end, with nothing before or behind.

    Raises:
        ValueError: it is elsewhere.
    """
    file.seek(max(0, size - 98))
    end = file.read(98).rjust(98, b"\0")  # the end of the directory for large files, where to find it, the usual end
    listed, start = struct.unpack("<II", end[-10:-2])
    expected = size - 22
    if end[-42:-38] == b"PK\x06\x07":
        expected = size - 98
        listed, start = struct.unpack("<QQ", end[40:56])
        if end[:4] != b"PK\x06\x06" or struct.unpack("<Q", end[-34:-26])[0] != expected:
            raise ValueError("two directories")
    if end[-22:-18] != b"PK\x05\x06" or end[-2:] != b"\0\0" or listed + start != expected:
        raise ValueError("no directory at the end")


def _check_pickle(path: Path, content: bytes, most: int, pickles: int = 1) -> None:
    """Refuse pickled content that is long, or that names more than tensors are made of.

    Args:
        path: of the file.
        content: its beginning.
        most: bytes that it may have.
        pickles: how many follow one another.

    Raises:
        UserError: it is long.
        ValueError: it names something else, or is damaged.
    """
    stream = io.BytesIO(content)
    try:
        for _ in range(pickles):
            for operation, argument, _ in pickletools.genops(stream):
                named = operation.name in ("GLOBAL", "INST", "STACK_GLOBAL")
                if named and not _FOR_TENSORS.fullmatch(str(argument)):
                    raise ValueError(f"it names {argument!r}, which no tensor needs")
    except ValueError:
        if len(content) > most:
            raise UserError(
                f"{path} holds more than {most:,} bytes beside its tensors; give a file of tensors"
            ) from None
        raise


def _tensors(content: Any) -> Iterator[Tensor]:
    """All tensors in nested collections, each once."""
    from torch import Tensor

    pending, seen = [content], set()
    while pending:
        each = pending.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, Tensor):
            yield each
        elif isinstance(each, Mapping):
            pending += each.values()
        elif isinstance(each, list | tuple):
            pending += each
