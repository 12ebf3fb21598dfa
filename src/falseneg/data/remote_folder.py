"""The files below an address on remote storage, listed once."""

from __future__ import annotations

import copy
import json
import logging
import posixpath
import re
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from urllib.parse import quote

from falseneg.data.remote import RemoteFile, version_of
from falseneg.data.remote_listing import infos_below, with_sizes
from falseneg.data.storage import kept, remote_cache
from falseneg.errors import UserError

_LOG = logging.getLogger("falseneg")


class RemoteFolder:
    """Files below an address by row, in the order of their names.

    The listing is kept: to list a million objects takes minutes, and a resumed run must see the same rows.

    Args:
        root: the address.
        endings: what the files end in, in small letters; hidden ones are left out. "" for all files, of which some are `chosen`.
        cache: the folder for the listing and for copies of files; None for the user's cache folder.

    Attributes:
        names: of the files, relative to the address.
        note: when they were listed, and what to remove to have it done again.

    Raises:
        UserError: there are none, or the storage cannot be reached.
    """

    def __init__(self, root: str, endings: Sequence[str], cache: str | None = None) -> None:
        self._origin, self._endings, self._cache = root, tuple(endings), remote_cache(cache)
        self.note = ""
        address = root.rstrip("/").replace("|", "%7C")
        found = kept(f"listing|{address}|{' '.join(endings)}|.json", [], cache, self._write, self._read)
        self._base, self._url, self.names, self._sizes = found[:4]
        self._versions: list[str | None] = list(found[4])

    def _write(self, target: Path) -> None:
        every = "" in self._endings

        def wanted(name: str) -> bool:
            return every or (name.lower().endswith(self._endings) and not re.search(r"(^|/)\.", name))

        _LOG.info("listing %s, once", self._origin)
        base, url, infos = infos_below(self._origin, wanted, sized=not every)
        if not infos and every:
            raise UserError(f"{self._origin} holds no files: give the address that the paths of the images start at")
        if not infos:
            raise UserError(f"{self._origin} holds no images: they must end in {', '.join(self._endings)}")
        sizes = [info.get("size") for info in infos.values()]
        target.write_text(json.dumps([base, url, list(infos), sizes, [version_of(info) for info in infos.values()]]))

    def _read(self, path: Path) -> tuple[str, str, list[str], list[int | None], list[str]]:
        base, url, names, sizes, versions = json.loads(path.read_text())
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(path.stat().st_mtime))
        self.note = f"{self._origin} is read as it was listed on {when}: remove {path} to list it again"
        return base, url, names, sizes, versions

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self.names)}

    def _relative(self, name: str) -> str:
        return name.removeprefix(f"{self._origin.rstrip('/')}/")

    def _row(self, name: str) -> int | None:
        """Of a file that is named as a person writes it: relative to the address, or with it."""
        exact = self._relative(name)
        if (row := self._rows.get(exact)) is not None:
            return row
        usual = posixpath.normpath(exact)
        return self._rows.get(usual, self._rows.get(quote(usual)))  # the latter as a web server lists it

    def holds(self, name: str) -> bool:
        """Whether there is a file of that name, relative to the address or with it."""
        return self._row(name) is not None

    def chosen(self, names: Sequence[str]) -> RemoteFolder:
        """The same with these files, in this order; those that there are not are refused when they are asked for."""
        found, rows = copy.copy(self), [self._row(name) for name in names]
        found.__dict__.pop("_rows", None)
        found.names = [
            self._relative(name) if row is None else self.names[row] for name, row in zip(names, rows, strict=True)
        ]
        found._sizes = [None if row is None else self._sizes[row] for row in rows]
        found._versions = [None if row is None else self._versions[row] for row in rows]
        unknown = [row for row in range(len(names)) if found.has(row) and found._sizes[row] is None]
        infos = with_sizes(self._origin, [{"name": f"{self._base}/{found.names[row]}"} for row in unknown])
        for row, info in zip(unknown, infos, strict=True):
            found._sizes[row], found._versions[row] = info["size"], version_of(info)
        return found

    def has(self, row: int) -> bool:
        """Whether there is such a file."""
        return self._versions[row] is not None

    def size(self, row: int) -> int:
        """Bytes of a file.

        Raises:
            UserError: there is none.
        """
        if not self.has(row):
            raise UserError(f"there is no file {self._url}/{self.names[row]} ({self.note})")
        size = self._sizes[row]
        assert size is not None
        return size

    def __getitem__(self, row: int) -> RemoteFile:
        name, size = self.names[row], self.size(row)
        path, url = f"{self._base}/{name}", f"{self._url}/{name}"
        return RemoteFile(self._origin, path, url, size, self._versions[row] or "", self._cache)
