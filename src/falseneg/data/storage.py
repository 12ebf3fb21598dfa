"""Local files that are named by pattern, and a place for what is worked out from them once."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import logging
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from falseneg.errors import UserError

T = TypeVar("T")
_LOG = logging.getLogger("falseneg")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def local_files(path: str | Sequence[str], ending: str) -> list[Path]:
    """The files that are meant: files, folders of files, patterns with * and ?, number ranges such as {00000..00012}.

    Args:
        path: one of these, or several.
        ending: what the files of a folder must end in, such as ".tar".

    Returns:
        the files, those of a folder or pattern in sorted order.

    Raises:
        UserError: nothing is found, or the path is not a local one.
    """
    wanted = [path] if isinstance(path, (str, os.PathLike)) else list(path)
    files = [file for one in wanted for pattern in _without_ranges(str(one)) for file in _matching(pattern, ending)]
    if not files:
        raise UserError("no file was given: give at least one")
    return files


def _without_ranges(pattern: str) -> list[str]:
    """The patterns that a number range stands for, as webdataset writes it."""
    match = _RANGE.search(pattern)
    if not match:
        return [pattern]
    first, last = match.groups()
    numbers = range(int(first), int(last) + 1)
    rest = [pattern[: match.start()] + f"{number:0{len(first)}d}" + pattern[match.end() :] for number in numbers]
    return [each for one in rest for each in _without_ranges(one)]


def _matching(pattern: str, ending: str) -> list[Path]:
    if re.match(r"[a-z0-9+]+://|pipe:", pattern):
        raise UserError(f"{pattern!r} is not a local file: copy it here first, for rows are read in random order")
    place = expanded(pattern)
    if place.is_file():
        return [place]
    if place.is_dir():
        found = sorted(file for file in place.glob(f"*{ending}") if file.is_file())
        if not found:
            raise UserError(f"the folder {pattern} holds no {ending} files: give the folder or the files that do")
        return found
    found = sorted(Path(name) for name in glob.glob(str(place)))
    if not found:
        raise UserError(f"there is no file {pattern!r}: give a file, a folder, or a pattern such as 'folder/*{ending}'")
    return found


def fingerprint(files: Sequence[Path]) -> str:
    """Changes when one of the files does: sizes and times of the last change."""
    return repr([(status.st_size, status.st_mtime_ns) for status in map(os.stat, files)])


def kept(
    name: str, files: Sequence[Path], folder: str | None, build: Callable[[Path], None], load: Callable[[Path], T]
) -> T:
    """Load what was worked out from files before, or work it out now and keep it.

    Args:
        name: what it is, with its options and file ending: part of its identity.
        files: what it is worked out from; if one of them changes it is worked out again.
        folder: where it is kept; None for the user's cache folder.
        build: writes it to the path that it is given.
        load: reads it, and raises if it is damaged.

    Raises:
        UserError: it cannot be written.
    """
    place = expanded(folder) if folder else _cache_folder()
    stem, ending = os.path.splitext(name)
    identity = f"{stem.split('|')[0]}-{_digest(repr([str(file.absolute()) for file in files]) + stem)}"
    target = place / f"{identity}-{_digest(fingerprint(files))}{ending}"
    if target.exists():
        try:
            return load(target)
        except Exception as error:  # a half-written or foreign file: cheaper to make anew than to explain
            _LOG.info("%s is damaged (%s) and is rebuilt", target, error)
    half = place / f".{target.name}.{os.getpid()}"
    try:
        place.mkdir(parents=True, exist_ok=True)
        build(half)
        os.replace(half, target)
    except OSError as error:
        raise UserError(
            f"{place} cannot be written ({error.strerror or error}): name another folder with cache"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            half.unlink(missing_ok=True)
    for outdated in place.glob(f"{identity}-*{ending}"):
        if outdated != target:
            with contextlib.suppress(OSError):
                outdated.unlink()
    return load(target)


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "falseneg"
    except RuntimeError as error:
        raise UserError(
            "no home folder is known, so there is nowhere to keep what is computed once: set HOME, or name a folder with cache"
        ) from error


def expanded(path: str | Path) -> Path:
    """A path with its leading ~ replaced by the home folder.

    Raises:
        UserError: there is none, as for a user of a container who is not in its list of users.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(
            f"{path} cannot be found, for no home folder is known: set HOME, or give a full path"
        ) from error


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).hexdigest()
