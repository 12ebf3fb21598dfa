"""Checkpoints: everything a run needs to go on as if nothing had happened, in a file that runs no code."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from falseneg.clock import Duration
from falseneg.errors import UserError
from falseneg.files import replacing
from falseneg.foreign.archives import load_tensors
from falseneg.models.encoder import first_difference
from falseneg.row_step import RowStep
from falseneg.schedule import Schedule

FORMAT = 2
LAST, PREVIOUS = "last.pt", "previous.pt"
_BETWEEN = ".previous.pt.tmp"


def save_checkpoint(folder: Path, state: Mapping[str, Any], names: Sequence[str] = (LAST,)) -> None:
    """Write files of these names one after the other, each whole or not at all. What was ``last.pt`` becomes ``previous.pt``.

    Raises:
        UserError: the disk is full or refuses; the checkpoint before stays as it was.
    """
    for name in names:
        with replacing(folder / name) as file:
            torch.save({"falseneg_checkpoint": FORMAT, **state}, file)
            if name == LAST:
                _keep_previous(folder)


def _keep_previous(folder: Path) -> None:
    """Give the last checkpoint its second name, so that there is a whole one at every moment."""
    with contextlib.suppress(OSError):  # where a file system knows no second names, or there is none yet
        (folder / _BETWEEN).unlink(missing_ok=True)
        os.link(folder / LAST, folder / _BETWEEN)
        os.replace(folder / _BETWEEN, folder / PREVIOUS)


def newest_checkpoint(folder: Path, say: Callable[[str], None]) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint that is whole, and what is in it; None where there is none at all.

    Args:
        folder: of the checkpoints.
        say: is told of those that are damaged.

    Raises:
        UserError: all of them are damaged, or of another version.
    """
    kept = sorted(folder.glob("step-*.pt"), reverse=True)
    there = [path for path in (folder / LAST, folder / PREVIOUS, *kept) if path.is_file()]
    problem, found = None, None
    for path in there:
        # The one before the last may be older than one that stays.
        if found is not None and not (path in kept and path.name > f"step-{found[1]['step']:08d}.pt"):
            break
        try:
            found = path, load_checkpoint(path)
        except UserError as error:
            problem = problem or error
            continue
        if path.name != PREVIOUS:
            break
    if found is None and problem is not None:
        raise problem
    if found is not None and problem is not None:
        say(f"warning: {there[0]} is damaged; continuing from {found[0].name}, which is of step {found[1]['step']}")
    return found


def make_last(path: Path) -> None:
    """Make a checkpoint ``last.pt``, so that a damaged one is never kept as the one before the next.

    Raises:
        UserError: it cannot be written.
    """
    if path.name != LAST:
        with replacing(path.with_name(LAST)) as file, open(path, "rb") as there:
            shutil.copyfileobj(there, file)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """What `save_checkpoint` wrote; tensors on the CPU. Runs no code from the file.

    Raises:
        UserError: the file is damaged, or unpacks to far more than it is, or is not a checkpoint of falseneg, or of another
            version.
    """
    try:
        state = load_tensors(path)
        # torch does not look at the checksums that it writes: a flipped bit would go on as a weight.
        with zipfile.ZipFile(path) as parts:
            if (broken := parts.testzip()) is not None:
                raise zipfile.BadZipFile(broken)
    except UserError:
        raise
    except Exception as error:
        raise _damaged(path) from error
    version = state.get("falseneg_checkpoint") if isinstance(state, dict) else None
    if version != FORMAT:
        given = "not a checkpoint of falseneg" if version is None else f"a checkpoint of format {version}, not {FORMAT}"
        raise UserError(f"{path} is {given}; give the checkpoint of a run of this version")
    return dict(state)


def _damaged(path: Path, what: str = "") -> UserError:
    return UserError(
        f"the checkpoint {path} is damaged or not a checkpoint of falseneg{what}; "
        "to resume from an older one, copy it over this one; otherwise start again in another folder"
    )


@contextlib.contextmanager
def damage_said(path: Path) -> Iterator[None]:
    """While a run takes over what a checkpoint holds: it has the right form, but anybody may have put anything into it.

    Raises:
        UserError: something is missing there, or is of another kind.
    """
    try:
        yield
    except UserError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise _damaged(path, f" ({type(error).__name__}: {reason})") from error


def load_module(module: nn.Module, state: Mapping[str, Any], what: str) -> None:
    """Load a state of exactly these names and shapes.

    Raises:
        UserError: names or shapes differ; nothing has been loaded then.
    """
    if (difference := first_difference(module, state)) is not None:
        raise UserError(
            f"the checkpoint is of another configuration: {what}.{difference}; "
            "give the same options, or start a new run with --init-from"
        )
    module.load_state_dict(state)


def epochs_to_extend(own: Mapping[str, str], stored: dict[str, str]) -> int | None:
    """The epochs of a run that is to have more of them: from there on it is, in every schedule, a run of so many.

    Args:
        own: settings of now.
        stored: settings of the checkpoint, which become those of a run with these epochs.

    Returns:
        The epochs that it had; None if it is to have the same, or fewer.
    """
    before = int(stored["epochs"])
    if int(own["epochs"]) <= before:
        return None
    stored["epochs"] = own["epochs"]
    return before


def check_settings(own: Mapping[str, Any], stored: Mapping[str, Any]) -> None:
    """Refuse to continue a run under other settings.

    Raises:
        UserError: a setting differs.
    """
    for key in sorted({*own, *stored}, key=lambda key: ("." in key, key)):  # options before what they become
        if own.get(key) != stored.get(key):
            there, here = stored.get(key, "absent"), own.get(key, "absent")
            raise UserError(
                f"the checkpoint is of another configuration: {key} is {there!r} there and {here!r} here; give the same "
                "options to continue it, or start a new run from its weights with --init-from and another --out"
            )


def seed_all(seed: int) -> None:
    """Start every generator that training draws from."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def random_states() -> dict[str, Any]:
    """The state of every generator that training draws from, as plain numbers and tensors."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "torch": torch.get_rng_state(),
        "cuda": cuda,
        "python": random.getstate(),
        "numpy": (
            str(name),
            torch.from_numpy(np.array(keys, dtype=np.int64)),
            int(position),
            int(has_gauss),
            float(gauss),
        ),
    }


def restore_random_states(states: Mapping[str, Any]) -> None:
    """Put every generator back to where `random_states` found it."""
    torch.set_rng_state(states["torch"])
    if states["cuda"] and torch.cuda.device_count() == len(states["cuda"]):
        torch.cuda.set_rng_state_all(states["cuda"])
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))


def settings_of(part: object, name: str, deep: bool = True) -> dict[str, str]:
    """What a part was built with, as far as plain values say it: {"detector": "SupportSet", "detector.top_k": "8", …}."""
    plain = str | int | float | bool | tuple | list | dict | Duration | None
    if isinstance(part, plain):
        return {name: str(part)}
    settings = {name: type(part).__name__}
    for key, value in vars(part).items():
        if isinstance(value, plain) and not key.startswith("_") and key != "training":
            settings[f"{name}.{key}"] = str(value)
        elif isinstance(value, RowStep | Schedule):
            settings |= settings_of(value, f"{name}.{key}")
    if deep and isinstance(part, nn.Module):
        for key, child in part.named_children():
            settings |= settings_of(child, f"{name}.{key}")
    return settings


def fingerprint(images: Any, rows: int = 16) -> str:
    """A short name of a data set's content: its length, its labels and a few of its images, evenly spread."""
    content = hashlib.sha256(str(len(images)).encode())
    if images.labels is not None:
        content.update(np.asarray(images.labels).tobytes())
    for row in torch.linspace(0, len(images) - 1, min(rows, len(images))).long().tolist():
        stored = images.encoded(row)
        content.update(stored if stored is not None else images.image(row).numpy().tobytes())
    return content.hexdigest()[:16]
