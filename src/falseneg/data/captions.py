"""Texts that describe images: as they stand in a file, and which images share them."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from falseneg.data.image_set import ImageSet
from falseneg.errors import UserError

MOST_BYTES = 2**20
"""Bytes of a caption, at most."""
NO_CAPTION = -1
_CHUNK = 1024
LEAVE_OUT = "or leave such images out with --skip-unreadable true"


def as_captions(value: Any, place: str) -> tuple[str, ...]:
    """Captions as they stand in a file, as texts: markup and white space stay as they are.

    Args:
        value: a text, a list of texts, or None; bytes are taken for UTF-8, and a byte order mark is left out.
        place: what to call the image.

    Returns:
        the texts, in their order; those that are None are left out.

    Raises:
        UserError: it is something else, is not UTF-8, or has more than 1 MiB.
    """
    values = value if isinstance(value, (list, tuple, np.ndarray)) else (value,)
    return tuple(_text(each, place) for each in values if each is not None)


def _text(value: Any, place: str) -> str:
    if not isinstance(value, (str, bytes)):
        raise UserError(
            f"{place} has a caption of type {type(value).__name__}: give a text or a list of texts, {LEAVE_OUT}"
        )
    if len(value) > MOST_BYTES:
        raise UserError(f"{place} has a caption of {len(value):,} bytes: give at most {MOST_BYTES:,}, {LEAVE_OUT}")
    try:
        if isinstance(value, bytes):
            return value.decode("utf-8").removeprefix("\ufeff")
        value.encode("utf-8")  # JSON may hold half of a pair of surrogates, which no tokenizer takes
    except UnicodeError as error:
        where = f" (byte {error.start})" if isinstance(error, UnicodeDecodeError) else ""
        raise UserError(f"{place} has a caption that is not UTF-8 text{where}: convert it, {LEAVE_OUT}") from error
    return value


@dataclass(frozen=True, eq=False)
class CaptionFindings:
    """What `look_at_captions` found.

    Attributes:
        groups: (n,) int64, see `caption_groups`.
        problems: a sentence for each row whose captions cannot be used, by row.
        total: how many captions there are, one that an image has twice counted once.
        distinct: how many of them differ.
        shared: how many of them another image has, too.
    """

    groups: Tensor
    problems: dict[int, str] = field(default_factory=dict)
    total: int = 0
    distinct: int = 0
    shared: int = 0


def caption_groups(image_set: ImageSet) -> Tensor:
    """Which images have the same captions: certain false negatives of each other.

    Captions are compared without their outer white space, and the order of an image's captions plays no part. Reads all
    captions once; what is kept of each is a hash of 64 bits.

    Returns:
        (n,) int64: rows with the same set of captions share a number; numbers count from 0 in the order of rows. −1 where
        a row has no captions, or none that can be used.
    """
    return look_at_captions(image_set).groups


def look_at_captions(image_set: ImageSet, progress: Callable[[int], None] | None = None) -> CaptionFindings:
    """Read all captions once: what is missing, blank or not to be read, and what is there twice.

    Args:
        image_set: the set.
        progress: told now and then how many rows are done.
    """
    rows = len(image_set)
    problems: dict[int, str] = {}
    hashes = array("Q")
    of_rows = np.zeros(rows, dtype=np.uint64)
    for row in range(rows):
        try:
            own = sorted({_hash(text.encode()) for text in _usable(image_set, row)})
        except UserError as error:
            problems[row] = str(error)
        else:
            hashes.extend(own)
            of_rows[row] = own[0] if len(own) == 1 else _hash(np.array(own, dtype=np.uint64).tobytes())
        if progress and ((row + 1) % _CHUNK == 0 or row + 1 == rows):
            progress(row + 1)
    _, counts = np.unique(np.frombuffer(hashes, dtype=np.uint64), return_counts=True)
    groups = torch.full((rows,), NO_CAPTION, dtype=torch.int64)
    captioned = np.setdiff1d(np.arange(rows), np.fromiter(problems, dtype=np.int64))
    groups[torch.from_numpy(captioned)] = torch.from_numpy(_numbered(of_rows[captioned]))
    return CaptionFindings(groups, problems, len(hashes), len(counts), int(counts[counts > 1].sum()))


def _usable(image_set: ImageSet, row: int) -> list[str]:
    """The captions of a row, without outer white space.

    Raises:
        UserError: there are none, or one cannot be read or is blank.
    """
    texts = [text.strip() for text in image_set.captions(row)]
    if not texts:
        raise UserError(f"{image_set.place(row)} has no caption: give it one, {LEAVE_OUT}")
    if not all(texts):
        what = "an empty caption" if len(texts) == 1 else f"an empty caption among its {len(texts)}"
        raise UserError(f"{image_set.place(row)} has {what}: write one or remove it, {LEAVE_OUT}")
    return texts


def _hash(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def _numbered(values: np.ndarray) -> np.ndarray:
    """Equal values as equal numbers, counted from 0 in the order of their first appearance."""
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse.reshape(-1)]
