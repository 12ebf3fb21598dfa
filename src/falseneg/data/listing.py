"""A list or a table of files, and where the files are: here or on remote storage."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from falseneg.data.remote import is_remote
from falseneg.data.remote_folder import RemoteFolder
from falseneg.data.remote_listing import remote_file
from falseneg.data.storage import expanded, remote_cache


@dataclass(frozen=True)
class Listing:
    """A list of files.

    Args:
        path: of the list, or its address.
        given_root: the folder that its paths start at, or an address; None for the folder of the list.
        cache: the folder for copies of remote files; None for the user's cache folder.
    """

    path: str
    given_root: str | None
    cache: str | None

    def __str__(self) -> str:
        return str(self.path)

    @cached_property
    def file(self) -> Path:
        """The list, or a local copy of it.

        Raises:
            UserError: remote storage cannot be reached, or has no such file.
        """
        if is_remote(self.path):
            return Path(remote_file(self.path, remote_cache(self.cache)))
        return expanded(self.path)

    @cached_property
    def root(self) -> Path | str:
        """The folder that the paths start at: here, or an address."""
        if self.given_root is not None:
            root = self.given_root
        elif is_remote(self.path):
            root = self._place[: self._place.rindex("/") + 1]
        else:
            return self.file.parent
        return re.sub(r"(?<![:/])/+$", "", root) if is_remote(root) else expanded(root)

    @cached_property
    def remote(self) -> RemoteFolder | None:
        """What there is below the root, where that is an address; it takes minutes to list a million files.

        Raises:
            UserError: remote storage cannot be reached, or there is nothing.
        """
        return RemoteFolder(self.root, ("",), self.cache) if isinstance(self.root, str) else None

    @property
    def ending(self) -> str:
        """Of its name, in small letters, such as ".csv"."""
        return PurePosixPath(self._place).suffix.lower()

    @property
    def _place(self) -> str:
        """The path without what a web server is asked beside it, such as a signature."""
        path = str(self.path)
        return re.split(r"[?#]", path)[0] if path.startswith("http") and is_remote(path) else path

    def holds(self, name: str) -> bool:
        """Whether there is a file of that name, relative to the root or with it."""
        return os.path.isfile(self.place(name)) if self.remote is None else self.remote.holds(name)

    def place(self, name: str) -> str:
        """What to call a file of that name."""
        return name if is_remote(name) else os.path.join(self.root, name)
