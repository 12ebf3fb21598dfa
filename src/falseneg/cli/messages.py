"""Every error that a user can cause, in one sentence. What has no sentence here is a bug and keeps its traceback."""

from __future__ import annotations

import argparse
import difflib
import errno
import re
from collections.abc import Iterable
from typing import NoReturn

from falseneg.errors import UserError


def sentence(error: BaseException) -> str | None:
    """What to tell the user about an error, in one line; None for a bug."""
    if isinstance(error, UserError):
        return " ".join(str(error).split())
    if _is_out_of_memory(error):
        return (
            "out of memory; lower --batch-size, or keep it and encode it in pieces with --accumulate 4, "
            "or lower --method.encoder.image-size"
        )
    if isinstance(error, OSError):
        where = f" at {error.filename}" if error.filename else ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return f"the disk is full{where}; free some space, then continue with --resume"
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return f"no permission to write or read{where}; choose another folder, or change its permissions"
        if error.filename is not None and error.errno != errno.ENOENT:  # what is missing is looked for before: a bug
            return f"{error.filename} cannot be used ({error.strerror}); correct the path or choose another"
    return None


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """`` (did you mean X?)``, or nothing where no known name is near."""
    known = list(known)
    lowered = {name.lower(): name for name in known}
    near = difflib.get_close_matches(given.lower(), lowered, n=1, cutoff=0.5)
    return f" (did you mean {lowered[near[0]]}?)" if near else ""


class SmallParser(argparse.ArgumentParser):
    """A parser for commands without parts of a run: errors of one sentence, nothing heavy imported."""

    def error(self, message: str) -> NoReturn:
        options = [name for action in self._actions for name in action.option_strings]
        if match := re.match(r"unrecognized arguments: (\S+)", message):
            message = f"there is no option {match[1]}{did_you_mean(match[1], options)}"
        raise UserError(f"{message}; see {self.prog} --help")


def _is_out_of_memory(error: BaseException) -> bool:
    # By name and text, so that the message needs no torch: a GPU's error is torch.OutOfMemoryError, a CPU's a
    # RuntimeError of the default allocator.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
