"""The folder of a run: whose it is, and how the run was made."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from falseneg.errors import UserError
from falseneg.files import alone, replacing, write_bytes
from falseneg.foreign.text import read_json
from falseneg.train.metrics import read_metrics
from falseneg.train.names import ABOUT, CHECKPOINTS, CONFIG, ENCODER, EXPORTED, METRICS

_OF_A_RUN = (ABOUT, CONFIG, METRICS, CHECKPOINTS, ENCODER)
_WORTH_KEEPING = (METRICS, f"{CHECKPOINTS}/last.pt", ENCODER)


@contextlib.contextmanager
def claimed(folder: Path, resume: bool) -> Iterator[None]:
    """Hold a folder that is free for a new run, or that holds the one to continue. A start that fails leaves no trace.

    Raises:
        UserError: it holds another run, or none, or another process writes it, or it cannot be made or written.
    """
    _check(folder, resume)
    with alone(
        folder, f"another process is writing the run in {folder}; wait for it, or choose another folder with --out"
    ):
        _check(folder, resume)  # as the other process has left it
        for half_written in [*folder.glob(".*.tmp"), *(folder / CHECKPOINTS).glob(".*.tmp")]:
            half_written.unlink(missing_ok=True)
        yield


def _check(folder: Path, resume: bool) -> None:
    """Make sure that the folder is free for a new run, or holds the one to continue, and can be written."""
    if resume and not any((folder / name).exists() for name in _OF_A_RUN):
        raise UserError(
            f"{folder} holds no run to resume; leave --resume out to start one there, or name another folder"
        )
    # A run that ended before its first step, because memory ran out for instance, does not block the folder.
    kept = [name for name in _WORTH_KEEPING if (folder / name).is_file() and (folder / name).stat().st_size]
    if kept and not resume:
        raise UserError(
            f"{folder} holds a run already ({kept[0]}); add --resume to continue it, or choose another folder with --out"
        )
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise UserError(f"the folder {folder} cannot be made, for {nearest} is a file; choose another with --out")
    if not os.access(nearest, os.W_OK):
        raise UserError(f"the folder {folder} cannot be written; choose another with --out")


def final_figures(folder: Path, epochs: int | None = None) -> dict[str, Any] | None:
    """The last figures of a run that is finished; None if it is not.

    Args:
        folder: of the run.
        epochs: it is finished only with that many; None takes what it was given.
    """
    lines = read_metrics(folder)
    if not lines or lines[-1]["kind"] != "final" or not (folder / ENCODER).is_file():
        return None
    done = max((line.get("epoch", 0) for line in lines if line["kind"] == "epoch"), default=0)
    if epochs is not None and done < epochs:
        return None
    return {key: value for key, value in lines[-1].items() if key != "kind"}


def go_on_after(folder: Path, epochs: int, position: int) -> int:
    """Let a run go on beyond its epochs: what it has exported is also kept as epochs-NNNNN, and its last figures stay.

    Args:
        folder: of the run.
        epochs: that it had.
        position: bytes of its metrics at its last checkpoint.

    Returns:
        The bytes of the metrics to keep: with the final line, if the run was finished.

    Raises:
        UserError: the disk refuses.
    """
    kept = folder / f"epochs-{epochs:05d}"
    for path in [folder / name for name in EXPORTED if (folder / name).exists() and not (kept / name).exists()]:
        for file in [path] if path.is_file() else sorted(path.iterdir()):
            with replacing(kept / file.relative_to(folder)) as copy, open(file, "rb") as there:
                shutil.copyfileobj(there, copy)
    with open(folder / METRICS, "rb") as metrics:
        metrics.seek(position)
        line = metrics.readline()
    final = line.startswith(b'{"kind": "final"') and line.endswith(b"\n")
    return position + (len(line) if final else 0)


def about(folder: Path) -> dict[str, Any]:
    """What `write_about` wrote; empty if there is nothing whole."""
    try:
        return dict(read_json(folder / ABOUT))
    except (OSError, ValueError, TypeError):
        return {}


def write_about(folder: Path, seed: int, facts: Mapping[str, Any], resume: bool = False) -> dict[str, Any]:
    """Write run.json: versions, the seed, the git state, and further facts.

    Of a run that is resumed the git state stays as it was: git may run what a repository's settings name, and the current
    directory may have come with the run.
    """
    import torch

    import falseneg

    content = {
        "id": uuid.uuid4().hex,
        "falseneg": falseneg.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "seed": seed,
        "git": about(folder).get("git") if resume else git_state(),
        "command": shlex.join(sys.argv),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **facts,
    }
    write_bytes(folder / ABOUT, (json.dumps(content, indent=2) + "\n").encode())
    return content


def git_state() -> dict[str, Any] | None:
    """Commit and cleanliness of the working directory's repository; None outside one."""

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None
