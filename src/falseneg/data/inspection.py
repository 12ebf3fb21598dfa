"""A look at every image and caption before training: what cannot be read, is converted, or is there twice."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from falseneg.data.captions import LEAVE_OUT, CaptionFindings, look_at_captions
from falseneg.data.decoding import NEEDED
from falseneg.data.image_set import ImageSet, Subset
from falseneg.data.messages import OR_LEAVE_OUT
from falseneg.data.workers import IDLE, at_row, batches_of, worker_options
from falseneg.errors import UserError

Progress = Callable[[str, int, int], None]
"""Called now and then with what is being done, how many images are done, and how many there are."""
_READING, _COMPARING, _CAPTIONS = "reading images", "comparing files", "reading captions"
_CHUNK = 32
_MISSING = re.compile(
    rf"\w+, {NEEDED} [^)]+"
)  # the format of an image that could be read with something else installed
_NOT_STORED = -1


@dataclass(frozen=True)
class Inspection:
    """What `inspect` found.

    Attributes:
        images: how many images the set has.
        checked: how many of them were decoded.
        unreadable: a sentence for each image that cannot be read, then for each whose captions cannot be used; it names the
            image.
        unreadable_rows: their rows, in the same order.
        converted: how many images needed each kind of conversion; an image counts once for each kind.
        sizes: how many images there are of each (height, width), in pixels.
        duplicates: groups of rows whose stored bytes are equal: certain false negatives of each other.
        duplicates_checked: whether they were looked for.
        captions: how many captions there are, one that an image has twice counted once; None if they were not looked at.
        distinct_captions: how many of them differ by more than outer white space.
        shared_captions: how many of them another image has, too.
        without_captions: how many of the unreadable images have captions that are missing, blank or no text.
    """

    images: int
    checked: int
    unreadable: list[str] = field(default_factory=list)
    unreadable_rows: list[int] = field(default_factory=list)
    converted: dict[str, int] = field(default_factory=dict)
    sizes: dict[tuple[int, int], int] = field(default_factory=dict)
    duplicates: list[list[int]] = field(default_factory=list)
    duplicates_checked: bool = True
    captions: int | None = None
    distinct_captions: int = 0
    shared_captions: int = 0
    without_captions: int = 0

    @property
    def exact_duplicate_images(self) -> int:
        """Images that are a copy of one before them."""
        return sum(len(group) - 1 for group in self.duplicates)

    def readable(self, image_set: ImageSet) -> ImageSet:
        """The set without its unreadable images and, where captions were looked at, those without usable ones.

        Raises:
            UserError: none is left.
        """
        if not self.unreadable_rows:
            return image_set
        left = np.setdiff1d(np.arange(len(image_set)), self.unreadable_rows)
        if not len(left):
            how = "" if self.captions is None else " with its captions"
            raise UserError(
                f"none of the {len(image_set)} images can be read{how}, the first because: {self.unreadable[0]}"
            )
        return Subset(image_set, torch.from_numpy(left))

    def sentences(self) -> list[str]:
        """The findings for the log, one sentence each; none if there is nothing to say."""
        of = "" if self.checked == self.images else f" of {self.checked:,} looked at"
        found = []
        images = self.unreadable[: len(self.unreadable) - self.without_captions]
        if images:
            missing = Counter(match[0] for problem in images if (match := _MISSING.search(problem)))
            why = "".join(f", {number:,} of them {what}" for what, number in sorted(missing.items()))
            found.append(f"unreadable images{of}: {len(images):,}{why}, the first: {without_advice(images[0])}")
        if self.without_captions:
            found.append(
                f"images without usable captions: {self.without_captions:,} of {self.images:,}, the first: "
                f"{without_advice(self.unreadable[len(images)])}"
            )
        if self.converted:
            kinds = ", ".join(f"{number:,} {kind}" for kind, number in sorted(self.converted.items()))
            found.append(f"converted to 8-bit RGB{of}: {kinds}")
        if self.duplicates:
            found.append(
                f"exact duplicates, which are certain false negatives: {self.exact_duplicate_images:,} "
                f"(groups of equal images: {len(self.duplicates):,})"
            )
        return found + self._of_captions()

    def _of_captions(self) -> list[str]:
        found = []
        if self.shared_captions:
            found.append(
                f"captions that another image has, too, which makes the two false negatives: {self.shared_captions:,} of "
                f"{self.captions:,} (distinct captions: {self.distinct_captions:,})"
            )
        if self.captions is not None and 2 * self.distinct_captions < self.images:
            found.append(
                f"warning: there are only {self.distinct_captions:,} distinct captions for {self.images:,} images: most "
                "images repel captions that describe them; look whether the right captions are read, or detect and eliminate "
                "false negatives"
            )
        return found


def without_advice(problem: str) -> str:
    """A sentence about an image without its last words, for where images are left out already, or that is said of all."""
    return problem.removesuffix(f", {OR_LEAVE_OUT}").removesuffix(f", {LEAVE_OUT}")


def inspect(
    image_set: ImageSet,
    progress: Progress | None = None,
    *,
    limit: int | None = None,
    check_duplicates: bool = True,
    check_captions: bool = False,
    workers: int = 0,
) -> Inspection:
    """Decode the images once and look for exact duplicates; where a method needs captions, read these once, too.

    Takes about as long as the images take to decode, and memory for a few numbers an image.

    Args:
        image_set: the set.
        progress: told how far it is.
        limit: decode at most so many images, spread evenly over the set; 0 decodes none. Duplicates are looked for
            among all.
        check_duplicates: look for duplicates: reads all images whose stored size is not unique.
        check_captions: read the captions of all images, whatever the limit: an image whose captions are missing, blank or
            not to be read counts as unreadable.
        workers: processes that decode; 0 for this process.

    Raises:
        UserError: one of these was killed; or captions are needed and the set has none.
    """
    total = len(image_set)
    captions = _look_at_captions(image_set, progress) if check_captions else None
    rows = np.arange(total) if limit is None or limit >= total else np.linspace(0, total - 1, limit).round().astype(int)
    unreadable: list[str] = []
    unreadable_rows: list[int] = []
    converted: Counter[str] = Counter()
    sizes: Counter[tuple[int, int]] = Counter()
    for row, problem, conversions, size in _scan(image_set, rows, workers, progress):
        if problem is not None:
            unreadable.append(problem)
            unreadable_rows.append(row)
            continue
        converted.update(conversions)
        sizes[size] += 1
    duplicates = find_duplicates(image_set, progress) if check_duplicates else []
    found = Inspection(
        total, len(rows), unreadable, unreadable_rows, dict(converted), dict(sizes), duplicates, check_duplicates
    )
    return found if captions is None else _with_captions(found, captions)


def _look_at_captions(image_set: ImageSet, progress: Progress | None) -> CaptionFindings:
    if not image_set.captioned:
        raise UserError(
            "the data hold no captions, and the method learns from pairs of image and text: name the column, field or "
            "file of the captions, or choose a method for images alone"
        )
    total = len(image_set)
    return look_at_captions(image_set, (lambda done: progress(_CAPTIONS, done, total)) if progress else None)


def _with_captions(found: Inspection, captions: CaptionFindings) -> Inspection:
    known = set(found.unreadable_rows)
    problems = {row: problem for row, problem in captions.problems.items() if row not in known}
    return replace(
        found,
        unreadable=[*found.unreadable, *problems.values()],
        unreadable_rows=[*found.unreadable_rows, *problems],
        captions=captions.total,
        distinct_captions=captions.distinct,
        shared_captions=captions.shared,
        without_captions=len(problems),
    )


Finding = tuple[int, str | None, tuple[str, ...], tuple[int, int]]


class _Scan(Dataset[Finding]):
    """Row, what is wrong or None, conversions and size of each image."""

    def __init__(self, image_set: ImageSet, rows: np.ndarray) -> None:
        self.image_set = image_set
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, positions: list[int]) -> list[Finding]:
        rows = [int(self.rows[position]) for position in positions]
        self.image_set.fetch(rows)
        found = [self._look(row) for row in rows]
        at_row(IDLE)
        return found

    def _look(self, row: int) -> Finding:
        at_row(row)
        try:
            image, conversions = self.image_set.load(row)
        except UserError as error:
            return row, str(error), (), (0, 0)
        return row, None, conversions, (image.shape[1], image.shape[2])


def _scan(image_set: ImageSet, rows: np.ndarray, workers: int, progress: Progress | None) -> Iterator[Finding]:
    scan = _Scan(image_set, rows)
    loader = DataLoader(scan, _CHUNK, collate_fn=list, **worker_options(scan, workers))
    done = 0
    for findings in batches_of(loader):
        yield from findings
        done += len(findings)
        if progress:
            progress(_READING, done, len(rows))


def find_duplicates(image_set: ImageSet, progress: Progress | None = None) -> list[list[int]]:
    """Groups of rows whose stored bytes are equal; the images themselves are compared where no bytes are stored.

    Only images of equal stored size are read and hashed, one size after the other. Unreadable images are left out.

    Returns:
        groups of at least two rows, each in rising order, by their first row.
    """
    sizes = np.array([_stored_size(image_set, row) for row in range(len(image_set))], dtype=np.int64)
    order = np.argsort(sizes, kind="stable")
    runs = np.split(order, np.flatnonzero(np.diff(sizes[order])) + 1)
    runs = [run for run in runs if len(run) > 1]
    total, done = sum(map(len, runs)), 0
    groups: list[list[int]] = []
    for run in runs:
        rows_of: defaultdict[bytes, list[int]] = defaultdict(list)
        for row in run.tolist():
            with contextlib.suppress(UserError):
                rows_of[_digest(image_set, row)].append(row)
            done += 1
            if progress and (done % _CHUNK == 0 or done == total):
                progress(_COMPARING, done, total)
        groups += [rows for rows in rows_of.values() if len(rows) > 1]
    return sorted(groups)


def _stored_size(image_set: ImageSet, row: int) -> int:
    with contextlib.suppress(UserError):
        size = image_set.encoded_size(row)
        return _NOT_STORED if size is None else size
    return _NOT_STORED


def _digest(image_set: ImageSet, row: int) -> bytes:
    data = image_set.encoded(row)
    if data is None:
        image = image_set.image(row).contiguous()
        data = repr(tuple(image.shape)).encode() + image.numpy().tobytes()
    return hashlib.blake2b(data, digest_size=16).digest()
