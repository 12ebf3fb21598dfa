"""Which files there are on remote storage."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from functools import partial

from falseneg.data.remote import Info, RemoteFile, at_once, file_system, version_of
from falseneg.data.remote_cache import RemoteCache
from falseneg.data.retries import answered
from falseneg.errors import UserError

_LISTING_PATIENCE = 900.0  # seconds: a listing of a million objects comes in a thousand answers


def remote_files(pattern: str, ending: str, cache: RemoteCache) -> list[RemoteFile]:
    """The files that an address means: a file, a folder's files of that ending, or a pattern with * and ?, sorted.

    Raises:
        UserError: there are none, or they cannot be reached.
    """
    absent = f"there is no file {pattern}: give a file, a folder, or a pattern such as 's3://bucket/folder/*{ending}'"
    system, path = file_system(pattern)
    if magic := re.search(r"\*" if pattern.startswith("http") else r"[*?\[]", path):
        base = path[: magic.start()].rpartition("/")[0]
        infos = _below(pattern, base, path[len(base) + 1 :].split("/"), absent)
    else:
        infos = [{"name": path, "type": "directory"}]
        if not pattern.endswith("/"):  # which is how a web server's folders are told from its files
            infos = [answered(pattern, lambda: file_system(pattern)[0].info(path), absent)]
        if infos[0]["type"] == "directory":
            infos = _below(pattern, path, [f"*{ending}"], absent)
    if not infos:
        raise UserError(absent)
    named = [(system.unstrip_protocol(info["name"]), info) for info in with_sizes(pattern, infos)]
    files = [RemoteFile(pattern, info["name"], url, info["size"], version_of(info), cache) for url, info in named]
    return sorted(files, key=str)


def remote_file(address: str, cache: RemoteCache) -> RemoteFile:
    """The file at an address; characters of patterns stand for themselves.

    Raises:
        UserError: there is none, it is a folder, or it cannot be reached.
    """
    system, path = file_system(address)
    absent = f"there is no file {address}: give the address of one"
    info = answered(address, lambda: file_system(address)[0].info(path), absent)
    if info["type"] == "directory":
        raise UserError(f"{address} is a folder, not a file: give the address of a file")
    (info,) = with_sizes(address, [info])
    return RemoteFile(
        address, info["name"], system.unstrip_protocol(info["name"]), info["size"], version_of(info), cache
    )


def infos_below(root: str, wanted: Callable[[str], bool], sized: bool) -> tuple[str, str, dict[str, Info]]:
    """What storage tells of the files below an address, however deep.

    Args:
        root: the address.
        wanted: whether a file is, by its name relative to that.
        sized: ask for the sizes that are not told, which takes a question a file.

    Returns:
        the path of the root and its address; and size, version and the like by relative name, sorted.

    Raises:
        UserError: it cannot be reached.
    """
    system, base = file_system(root)
    base = base.rstrip("/")
    absent = f"the folder {root} does not exist: give the folder that holds the images"
    infos = _below(root, base, None, absent)
    named = {info["name"].removeprefix(base).lstrip("/"): info for info in infos}
    names = sorted(filter(wanted, named))
    infos = [named[name] for name in names]
    infos = with_sizes(root, infos) if sized else infos
    return base, system.unstrip_protocol(base), dict(zip(names, infos, strict=True))


def _below(origin: str, base: str, parts: list[str] | None, absent: str) -> list[Info]:
    """The files below a folder: all, or those whose path matches patterns, one a level.

    fsspec's own `find` and `glob` pass over folders that fail to answer, and so may miss files.
    """
    found: list[Info] = []
    folders, seen, level = [base], {base}, 0
    while folders:
        infos = [info for listed in at_once(partial(_listed, origin, absent), folders) for info in listed]
        is_last = parts is not None and level == len(parts) - 1
        if parts is not None:
            infos = [info for info in infos if fnmatchcase(_last(info), parts[level])]
        found += [info for info in infos if info["type"] != "directory" and (parts is None or is_last)]
        names = [] if is_last else [info["name"].rstrip("/") for info in infos if info["type"] == "directory"]
        folders = [name for name in names if name not in seen and not seen.add(name)]  # type: ignore[func-returns-value]
        level += 1
    return found


def _last(info: Info) -> str:
    return str(info["name"].rstrip("/").rsplit("/", 1)[-1])


def _listed(origin: str, absent: str, folder: str) -> list[Info]:
    def ask() -> list[Info]:
        system, _ = file_system(origin)
        system.invalidate_cache()
        return list(system.ls(folder, detail=True))

    return answered(folder if folder != file_system(origin)[1] else origin, ask, absent, _LISTING_PATIENCE)


def with_sizes(origin: str, infos: Sequence[Info]) -> list[Info]:
    """What is known of files, with their sizes, for which a web server has to be asked for each."""

    def of(info: Info) -> Info:
        place = str(info["name"])
        if info.get("size") is None:
            info = answered(
                place, lambda: file_system(origin)[0].info(place), f"there is no file {place}: list it again"
            )
        if info.get("size") is None:
            raise UserError(f"the server of {place} does not say how large it is: copy it to this machine first")
        return info

    return at_once(of, infos)
