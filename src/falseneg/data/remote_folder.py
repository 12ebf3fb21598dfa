"""The files below an address on remote storage, listed once."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Sequence
from pathlib import Path

from falseneg.data.remote import RemoteFile, version_of
from falseneg.data.remote_listing import infos_below
from falseneg.data.storage import kept, remote_cache
from falseneg.errors import UserError

_LOG = logging.getLogger("falseneg")


class RemoteFolder:
    """Files below an address by row, in the order of their names.

    The listing is kept: to list a million objects takes minutes, and a resumed run must see the same rows.

    Args:
        root: the address.
        endings: what the files end in, in small letters. Hidden files are left out.
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
        self._base, self._url, self.names, self._sizes, self._versions = found

    def _write(self, target: Path) -> None:
        def wanted(name: str) -> bool:
            return name.lower().endswith(self._endings) and not re.search(r"(^|/)\.", name)

        _LOG.info("listing %s, once", self._origin)
        base, url, infos = infos_below(self._origin, wanted)
        if not infos:
            raise UserError(f"{self._origin} holds no images: they must end in {', '.join(self._endings)}")
        sizes = [int(info["size"]) for info in infos.values()]
        target.write_text(json.dumps([base, url, list(infos), sizes, [version_of(info) for info in infos.values()]]))

    def _read(self, path: Path) -> tuple[str, str, list[str], list[int], list[str]]:
        base, url, names, sizes, versions = json.loads(path.read_text())
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(path.stat().st_mtime))
        self.note = f"{self._origin} is read as it was listed on {when}: remove {path} to list it again"
        return base, url, names, sizes, versions

    def __len__(self) -> int:
        return len(self.names)

    def size(self, row: int) -> int:
        """Bytes of a file."""
        return self._sizes[row]

    def __getitem__(self, row: int) -> RemoteFile:
        name = self.names[row]
        path, url = f"{self._base}/{name}", f"{self._url}/{name}"
        return RemoteFile(self._origin, path, url, self._sizes[row], self._versions[row], self._cache)
