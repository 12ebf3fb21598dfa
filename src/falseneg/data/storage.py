"""Files that are named by pattern, here or on remote storage, and a place for what is worked out from them once."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import logging
import math
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from falseneg.data.remote import RemoteFile, at_once, is_remote
from falseneg.data.remote_cache import VARIABLE, RemoteCache, bound
from falseneg.data.remote_listing import remote_files
from falseneg.errors import UserError
from falseneg.foreign import listed

File = Path | RemoteFile
T = TypeVar("T")
_LOG = logging.getLogger("falseneg")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def data_files(path: str | Sequence[str], ending: str, cache: str | None = None) -> list[File]:
    """The files that are meant: files, folders of files, patterns with * and ?, number ranges such as {00000..00012}.

    Args:
        path: one of these, or several; each a path of this machine, or an address such as s3://bucket/train-*.tar.
        ending: what the files of a folder must end in, such as ".tar".
        cache: the folder for copies of remote files; None for the user's cache folder.

    Returns:
        the files, those of a folder or pattern in sorted order.

    Raises:
        UserError: nothing is found, or remote storage cannot be reached.
    """
    wanted = [path] if isinstance(path, (str, os.PathLike)) else list(path)
    patterns = [pattern for one in wanted for pattern in _without_ranges(str(one))]
    if not patterns:
        raise UserError("no file was given: give at least one")
    found = at_once(lambda pattern: _matching(pattern, ending, cache), patterns)
    return [file for files in found for file in files]


def _without_ranges(pattern: str) -> list[str]:
    """The patterns that a number range stands for, as webdataset writes it."""
    match = _RANGE.search(pattern)
    if not match:
        return [pattern]
    first, last = match.groups()
    numbers = range(int(first), int(last) + 1)
    rest = [pattern[: match.start()] + f"{number:0{len(first)}d}" + pattern[match.end() :] for number in numbers]
    return [each for one in rest for each in _without_ranges(one)]


def _matching(pattern: str, ending: str, cache: str | None) -> Sequence[File]:
    if pattern.startswith("pipe:"):
        raise UserError(f"{pattern!r} is not a file: copy it to one first, for rows are read in random order")
    if is_remote(pattern):
        return remote_files(pattern, ending, remote_cache(cache))
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


def remote_cache(folder: str | None) -> RemoteCache:
    """Where copies of remote files go: below the folder, or the user's cache folder."""
    return RemoteCache((expanded(folder) if folder else _cache_folder()) / "remote")


def check_fits(files: Sequence[File]) -> None:
    """Refuse remote files that are read whole, again and again, and are together too large for the cache.

    Raises:
        UserError: they are.
    """
    size = sum(file.size for file in files if isinstance(file, RemoteFile))
    if size > bound():
        raise UserError(
            f"{listed(files)} has {size / 1e9:.1f} GB, and copies of remote files may take {bound() / 1e9:g} GB: set "
            f"{VARIABLE} to {math.ceil(size / 1e9)} or more, or store the images as tar shards, of which parts are read"
        )


def fingerprint(files: Sequence[File]) -> str:
    """Changes when one of the files does: sizes and times of the last change, or what remote storage tells instead."""
    return repr([_state(file) for file in files])


def _state(file: File) -> tuple[int, int | str]:
    if isinstance(file, RemoteFile):
        return file.size, file.version
    status = os.stat(file)
    return status.st_size, status.st_mtime_ns


def kept(
    name: str, files: Sequence[File], folder: str | None, build: Callable[[Path], None], load: Callable[[Path], T]
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
    identity = f"{stem.split('|')[0]}-{_digest(repr([_address(file) for file in files]) + stem)}"
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


def _address(file: File) -> str:
    return str(file) if isinstance(file, RemoteFile) else str(file.absolute())


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "falseneg"
    except RuntimeError as error:
        raise UserError(
            "no home folder is known, so there is nowhere to keep what is computed once: set HOME, or name a folder with cache"
        ) from error


def expanded(path: str | Path) -> Path:
    """A path of this machine, with its leading ~ replaced by the home folder.

    Raises:
        UserError: there is none, as for a user of a container who is not in its list of users; or it is a remote address.
    """
    if is_remote(path):
        raise UserError(
            f"{path} must be a path of this machine: Folder, FileList, Table, Shards and Parquet read remote storage, other data sets "
            "and caches are local"
        )
    try:
        return Path(str(path).removeprefix("file://")).expanduser()
    except RuntimeError as error:
        raise UserError(
            f"{path} cannot be found, for no home folder is known: set HOME, or give a full path"
        ) from error


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).hexdigest()
