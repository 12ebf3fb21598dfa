"""The finished pieces of a long evaluation, kept on the disk so that it can be stopped and go on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from falseneg.errors import UserError
from falseneg.files import replacing, write_bytes
from falseneg.foreign.archives import load_tensors
from falseneg.foreign.text import read_json

_ABOUT = "about.json"


class Pieces:
    """Each piece is made once; if it is asked for again, in this process or a later one, it is read.

    Args:
        folder: where they are kept; None keeps nothing.
        about: everything that they depend on, as JSON holds it.

    Raises:
        UserError: the folder holds pieces of something else.
    """

    def __init__(self, folder: Path | None = None, about: Mapping[str, Any] | None = None) -> None:
        self.folder = folder
        if folder is None:
            return
        content = json.dumps(about or {}, sort_keys=True, indent=1)
        if folder.is_dir() and self.begun and _content(folder / _ABOUT) != json.loads(content):
            raise UserError(
                f"{folder} holds a part of another evaluation (other settings, encoder or data); remove it, or give another --out"
            )
        write_bytes(folder / _ABOUT, content.encode())

    @property
    def begun(self) -> bool:
        """Whether there is anything to go on with."""
        return self.folder is not None and any(each.name != _ABOUT for each in self.folder.iterdir())

    def figures(self, name: str, make: Callable[[], Any]) -> Any:
        """Something that JSON holds."""
        if self.folder is None:
            return make()
        path = self.folder / f"{name}.json"
        if path.is_file():
            try:
                return read_json(path)
            except ValueError as error:
                raise _damaged(path) from error
        made = make()
        write_bytes(path, json.dumps(made).encode())
        return made

    def tensors(self, name: str, make: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Tensors by name, on the CPU."""
        if (stored := self.state(name)) is not None:
            return stored
        made = dict(make())
        self.keep(name, made)
        return made

    def state(self, name: str) -> Any:
        """What `keep` stored last under that name; None if there is nothing."""
        if self.folder is None or not (path := self.folder / f"{name}.pt").is_file():
            return None
        try:
            return load_tensors(path)
        except UserError:
            raise
        except Exception as error:  # whatever a damaged file makes torch raise
            raise _damaged(path) from error

    def keep(self, name: str, state: Any) -> None:
        """Store tensors and plain values, in place of what was there under that name."""
        if self.folder is not None:
            with replacing(self.folder / f"{name}.pt") as file:
                torch.save(state, file)

    def drop(self, name: str) -> None:
        """Forget what `keep` stored: a larger piece holds it now."""
        if self.folder is not None:
            (self.folder / f"{name}.pt").unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove everything: the evaluation is complete, and its result written."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


def _content(path: Path) -> Any:
    try:
        return read_json(path)
    except (OSError, ValueError):
        return None


def _damaged(path: Path) -> UserError:
    return UserError(f"{path} is damaged; remove it, and that part is made again")
