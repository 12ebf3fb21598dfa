"""Files on remote storage that fsspec reaches (s3://, gs://, hf://, https://, ...), with local copies.

A file system of fsspec belongs to the process that opened it, so no file holds one: each process asks fsspec for its own,
which keeps one of each kind.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import fsspec
from fsspec.registry import get_filesystem_class, known_implementations

from falseneg.data.remote_cache import RemoteCache, bound
from falseneg.data.retries import answered, missing_package
from falseneg.errors import UserError

S = TypeVar("S")
T = TypeVar("T")
Info = Mapping[str, Any]
"""What fsspec tells of a file: name, size, type and, depending on the storage, more."""
_LOG = logging.getLogger("falseneg")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(://|::)")
_BLOCK = 2**24  # bytes of a large file that are asked for at once
_AT_ONCE = 16  # questions: an answer takes tens of milliseconds, nearly all of them waiting
_TRUSTED_FOR = (
    60.0  # seconds after which parts of a file are taken for those of the same file only once it has been looked at
)
_SHARE_AHEAD = 0.1  # of the cache, that is brought here before it is read
_VERSIONS = (
    *("ETag", "etag", "blob_id", "md5Hash", "crc32c", "checksum", "Content-MD5", "generation"),
    *("mtime", "LastModified", "Last-Modified", "last_modified", "updated", "modified", "created"),
)
"""What storage tells of a file that changes with its content, the surest first."""
_looked_at: dict[tuple[str, str], float] = {}
_opened: dict[int, Any] = {}
"""All that this process and those that it was forked from have opened. A fork must not collect what it has inherited: closing
its connections would take them from the loop of the other process, which shares the kernel's list of them and would wait for ever."""


def is_remote(path: object) -> bool:
    """Whether it is an address such as s3://bucket/photos, not a path of this machine."""
    return isinstance(path, str) and bool(_URL.match(path)) and not path.startswith("file://")


def file_system(url: str) -> tuple[Any, str]:
    """This process's file system for an address, and the address within it.

    Raises:
        UserError: there is no such kind of storage, or its package is not installed.
    """
    for protocol in re.findall(r"([A-Za-z][A-Za-z0-9+.-]*)(?:://|::)", url):
        try:
            get_filesystem_class(protocol)
        except ImportError as error:
            package = known_implementations.get(protocol, {}).get("class", "").split(".")[0]
            raise UserError(missing_package(url, error, "" if package == "fsspec" else package)) from error
        except ValueError:
            raise UserError(
                f"{protocol} in {url} is not a kind of storage that fsspec knows: give an address such as s3://bucket/folder, "
                "gs://bucket/folder or https://host/file"
            ) from None
    system, path = fsspec.core.url_to_fs(url)
    _opened[id(system)] = system
    return system, path


@dataclass(frozen=True)
class RemoteFile(os.PathLike[str]):
    """A file on remote storage. As a path it is a local copy of all of it, made when it is first asked for.

    Args:
        origin: an address on the same storage.
        path: where it is on that.
        url: what to call it.
        size: in bytes.
        version: what changes with its content, as "name=value"; empty where the storage tells nothing.
        cache: where copies go.
    """

    origin: str
    path: str
    url: str
    size: int
    version: str
    cache: RemoteCache

    def __str__(self) -> str:
        return self.url

    def __fspath__(self) -> str:
        if (copy := self.cache.path(self._name, self.size)) is None:
            with self.cache.alone(self._name):
                copy = self.cache.path(self._name, self.size)
                if copy is None:
                    _LOG.info("copying %s (%.1f MB)", self, self.size / 1e6)
                    copy = self.cache.write(self._name, self._blocks())
        return str(copy)

    @property
    def _name(self) -> str:
        identity = repr((self.url, self.size, self.version)).encode(errors="surrogatepass")
        return hashlib.blake2b(identity, digest_size=16).hexdigest()

    def _blocks(self) -> Iterator[bytes]:
        for start in range(0, self.size, _BLOCK):
            yield self._asked_for(start, min(_BLOCK, self.size - start))
        if self.size > _BLOCK:
            answered(str(self), self._check, self._gone)

    def read(self, start: int = 0, length: int | None = None) -> bytes:
        """A part of it, from the copy of the whole file, if there is one, or from a copy of this part.

        Args:
            start: the first byte.
            length: how many; None for all that follow.

        Raises:
            UserError: it has changed or is gone, or the storage does not answer.
        """
        length = self.size - start if length is None else length
        data = self.cache.read(self._name, self.size, start, length)
        if data is not None:
            return data
        is_whole, part = self._part(start, length)
        data = None if is_whole else self.cache.read(part, length, 0, length)
        if data is None:
            data = self._asked_for(start, length)
            try:
                self.cache.write(part, [data])
            except UserError as error:  # what was asked for is here, which is what matters
                _LOG.warning("%s is not kept here: %s", self, error)
        return data

    def _part(self, start: int, length: int) -> tuple[bool, str]:
        """Whether it is all of the file, and the name of its copy."""
        is_whole = (start, length) == (0, self.size)
        return is_whole, self._name if is_whole else f"{self._name}-{start}-{length}"

    def is_here(self, start: int, length: int) -> bool:
        """Whether there is a copy of that part or of the whole."""
        names = {self._part(start, length)[1], self._name}
        return any((self.cache.folder / name).exists() for name in names)

    def _asked_for(self, start: int, length: int) -> bytes:
        is_whole = (start, length) == (0, self.size)

        def ask() -> bytes:
            system, _ = file_system(self.origin)
            if (
                not is_whole
                and time.monotonic() - _looked_at.get((self.url, self.version), -_TRUSTED_FOR) >= _TRUSTED_FOR
            ):
                self._check()
            data: bytes = system.cat_file(self.path, **({} if is_whole else {"start": start, "end": start + length}))
            if len(data) != length:
                self._check()
                if len(data) == self.size and not is_whole:
                    raise UserError(
                        f"{self} cannot be read in parts, for its server always sends the whole: copy it to this machine first"
                    )
                raise OSError(f"{len(data):,} bytes came instead of {length:,}")
            return data

        return answered(str(self), ask, self._gone)

    def _check(self) -> None:
        """Refuse a file that is not the one that was found when the data set was opened."""
        system, _ = file_system(self.origin)
        system.invalidate_cache()
        found = system.info(self.path)
        name, _, value = self.version.partition("=")
        if found.get("size") != self.size or (found.get(name) and _as_text(found[name]) != value):
            raise UserError(
                f"{self} has changed since the data set was opened: restore it, or start again with the new file"
            )
        _looked_at[self.url, self.version] = time.monotonic()

    @property
    def _gone(self) -> str:
        return f"{self} is not there any more: restore it, or start again without it"


Part = tuple[RemoteFile, int, int]
"""A file, the first byte, and how many."""


def fetch(parts: Iterable[Part]) -> None:
    """Bring parts of files into the cache, many at a time; who reads them says what cannot be read."""
    wanted = [part for part in parts if not part[0].is_here(*part[1:])]
    if sum(length for _, _, length in wanted) > _SHARE_AHEAD * bound():
        return  # one would drive the other out

    def copy(part: Part) -> None:
        with contextlib.suppress(UserError):
            part[0].read(*part[1:])

    at_once(copy, wanted)


def version_of(info: Mapping[str, Any]) -> str:
    """What changes when a file does, as "name=value"; empty where the storage tells nothing of the kind."""
    return next((f"{name}={_as_text(info[name])}" for name in _VERSIONS if info.get(name)), "")


def _as_text(value: Any) -> str:
    """Alike, whether it was told with all files of a folder or alone: times and quotes are written in several forms."""
    seconds = value.timestamp() if hasattr(value, "timestamp") else value
    return f"{seconds:.3f}" if isinstance(seconds, float) else str(value).removeprefix("W/").strip('"')


def at_once(ask: Callable[[S], T], questions: Iterable[S]) -> list[T]:
    """The answers, in the order of the questions, several of which are asked at a time."""
    asked: Sequence[S] = list(questions)
    if len(asked) < 2:
        return [ask(each) for each in asked]
    with ThreadPoolExecutor(min(_AT_ONCE, len(asked))) as pool:
        return list(pool.map(ask, asked))
