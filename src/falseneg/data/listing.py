"""A list or a table of files, and where the files are: here or on remote storage."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from falseneg.data.remote import is_remote
from falseneg.data.remote_folder import RemoteFolder
from falseneg.data.remote_listing import remote_files
from falseneg.data.storage import expanded, remote_cache
from falseneg.errors import UserError


@dataclass(frozen=True)
class Listing:
    """A list of files.

    Attributes:
        path: of the list, as it was given.
        file: the list, or a local copy of it.
        ending: of its name, in small letters, such as ".csv".
        root: the folder that the paths in it start at: here, or an address.
        remote: what there is below the root, where that is an address.
    """

    path: str
    file: Path
    ending: str
    root: Path | str
    remote: RemoteFolder | None

    @classmethod
    def at(cls, path: str, root: str | None, cache: str | None) -> Listing:
        """The list at a path of this machine or at an address.

        Args:
            path: of the list.
            root: the folder that its paths start at, or an address; None for the folder of the list.
            cache: the folder for copies of remote files; None for the user's cache folder.

        Raises:
            UserError: remote storage cannot be reached, or has no such file.
        """
        if is_remote(path):
            found = remote_files(path, "", remote_cache(cache))
            if len(found) > 1:
                raise UserError(f"{path} is not one file: give the address of a list or table of image paths")
            file, folder = Path(found[0]), path.rpartition("/")[0]
        else:
            file = expanded(path)
            folder = str(file.parent)
        folder = folder if root is None else root
        ending = PurePosixPath(str(path)).suffix.lower()
        if is_remote(folder):
            return cls(str(path), file, ending, folder.rstrip("/"), RemoteFolder(folder, ("",), cache))
        return cls(str(path), file, ending, expanded(folder), None)

    def __str__(self) -> str:
        return self.path

    def holds(self, name: str) -> bool:
        """Whether there is a file of that name, relative to the root or absolute."""
        return os.path.isfile(os.path.join(self.root, name)) if self.remote is None else self.remote.holds(name)
