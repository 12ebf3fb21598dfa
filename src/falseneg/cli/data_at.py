"""Which of the data sets reads what lies at a path or an address."""

from __future__ import annotations

from pathlib import Path

from falseneg.data.remote import is_remote

ENDINGS = {".parquet": "Parquet", ".tar": "Shards", ".csv": "FileList", ".tsv": "FileList", ".txt": "FileList"}
"""Of a file, and the class that reads it; it may also be an address, or a pattern of several files."""


def data_at(place: str) -> tuple[str, str] | None:
    """The class that reads a place, and its option that takes it; None if nothing is there. Remote storage is not asked.

    A file of any other ending is taken for a list of files, which says itself if it is none.
    """
    path = Path(place).expanduser()
    if path.is_dir():
        return "Folder", "root"
    if kind := ENDINGS.get(path.suffix.lower()):
        return kind, "path"
    if is_remote(place):
        return "Folder", "root"
    return ("FileList", "path") if path.is_file() else None
