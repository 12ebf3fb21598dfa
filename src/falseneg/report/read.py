"""What a run's folder holds, read so that a missing, half-written or damaged file costs its own part of the report only."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from falseneg.foreign.text import read_json, read_yaml
from falseneg.train.names import ABOUT, CONFIG, METRICS

T = TypeVar("T")
LARGEST = 1e15
"""No figure of a run comes near it; sums and axes of larger numbers may overflow."""


@dataclass(frozen=True, eq=False)
class File(Generic[T]):
    """A file of a run's folder that some section needs.

    Attributes:
        name: in the folder.
        read: makes something of it, and may add to the run's notes; whatever it raises costs this file only.
        expected: whether a run without it is worth a note.
    """

    name: str
    read: Callable[[Path, RunRecord], T]
    expected: Callable[[RunRecord], bool] = lambda run: False


@dataclass(frozen=True, eq=False)
class Files(File[T]):
    """Several files: the name has a ``*``."""


@dataclass
class RunRecord:
    """All that is known of a run. What could not be read is empty or None, and said in ``notes``.

    The figures are read at once; all else when a section needs it, see `load`.

    Attributes:
        name: of its folder, or its variant and seed.
        folder: None for one that is made up.
        about: run.json.
        settings: config.yaml.
        settings_text: the same as it stands there.
        epochs: the epoch lines of metrics.jsonl; of an epoch that was repeated the last.
        start: the figures of the encoder before training; empty if they were not measured.
        steps: its step lines.
        final: its final line; None if the run has not finished.
        notes: what is missing or damaged, a sentence each.
    """

    name: str
    folder: Path | None = None
    about: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    settings_text: str = ""
    epochs: list[dict[str, Any]] = field(default_factory=list)
    start: dict[str, Any] = field(default_factory=dict)
    steps: list[dict[str, Any]] = field(default_factory=list)
    final: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)
    _held: dict[File[Any], Any] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        return self.final is not None

    @property
    def last(self) -> dict[str, Any]:
        """The figures of the last epoch; empty before the first is done."""
        return self.epochs[-1] if self.epochs else {}

    @property
    def labelled(self) -> bool:
        """Whether detection was measured by labels."""
        return any("chance" in line or "recall" in line for line in self.epochs)

    def load(self, files: Iterable[File[Any]]) -> None:
        """Read these files, each once."""
        for file in files:
            if file in self._held or self.folder is None:
                continue
            if isinstance(file, Files):
                paths = {path.name: path for path in sorted(self.folder.glob(file.name)) if path.is_file()}
                found = {name: self.part(path, file.read) for name, path in paths.items()}
                self._held[file] = {name: value for name, value in found.items() if value is not None}
            else:
                self._held[file] = self.part(self.folder / file.name, file.read, file.expected(self))

    def get(self, file: File[T]) -> T | None:
        """What was loaded of a file; None if it is missing or damaged."""
        return cast("T | None", None if isinstance(file, Files) else self._held.get(file))

    def get_all(self, files: Files[T]) -> dict[str, T]:
        """What was loaded of several files, by name."""
        return cast("dict[str, T]", self._held.get(files, {}))

    def part(self, path: Path, read: Callable[[Path, RunRecord], T], expected: bool = True) -> T | None:
        """Something made of a file; None, and a note, if it is missing or damaged."""
        name = path.relative_to(self.folder) if self.folder is not None else path
        if not path.is_file():
            if expected:
                self.notes.append(f"{self.name}: {name} is missing")
            return None
        try:
            return read(path, self)
        except Exception as error:  # whatever a damaged file makes its reader raise
            self.notes.append(f"{self.name}: {name} cannot be read ({type(error).__name__}), so its part is left out")
            return None


def is_run(folder: Path) -> bool:
    """Whether a folder looks like that of a run."""
    return any((folder / name).is_file() for name in (METRICS, ABOUT))


def read_run(folder: Path, name: str | None = None, notes: list[str] | None = None) -> RunRecord:
    """Read the figures of a run's folder.

    Args:
        folder: of the run.
        name: what to call it; None takes the folder's own name.
        notes: where to write what is missing or damaged; None makes a list of the run's own.
    """
    run = RunRecord(name or folder.resolve().name, folder, notes=[] if notes is None else notes)
    run.about = run.part(folder / ABOUT, _about) or {}
    run.settings_text = run.part(folder / CONFIG, lambda path, _: path.read_text("utf-8")) or ""
    run.settings = run.part(folder / CONFIG, _settings, expected=False) or {}
    cleaned = [figures(line, ("loss",)) for line in run.part(folder / METRICS, _lines) or []]
    if dropped := sum(number for _, number in cleaned):
        run.notes.append(f"{run.name}: unusable values in {METRICS} are left out ({dropped})")
    for line, _ in cleaned:
        _sort_in(run, line)
    run.epochs.sort(key=lambda line: float(line["epoch"]))
    diverged = [line["epoch"] for line in run.epochs if not math.isfinite(line.get("loss") or 0.0)]
    if diverged:
        run.notes.append(f"{run.name}: the loss is not a finite number from epoch {diverged[0]} on: training diverged")
    return run


def figures(line: dict[str, Any], undefined: tuple[str, ...] = ()) -> tuple[dict[str, Any], int]:
    """The figures of a line without those that are not numbers; and how many of these there are.

    Args:
        line: figures by name, and its "kind".
        undefined: of these a value that is not finite is kept, for it says something.
    """
    kept = {key: value for key, value in line.items() if key == "kind" or value is None or is_figure(value)}
    kept |= {key: value for key, value in line.items() if key in undefined and isinstance(value, float)}
    return kept, len(line) - len(kept)


def is_figure(value: Any) -> bool:
    """Whether a value is a number that can be drawn."""
    return isinstance(value, int | float) and -LARGEST <= value <= LARGEST


def _about(path: Path, _: RunRecord) -> dict[str, Any]:
    """What run.json says in words and numbers; anything else in it is left out."""
    content = read_json(path)
    git = content.get("git")
    about = {key: value for key, value in content.items() if isinstance(value, str) or is_figure(value)}
    if isinstance(git, dict) and isinstance(git.get("commit"), str):
        about["git"] = {"commit": git["commit"], "dirty": bool(git.get("dirty"))}
    return about


def _settings(path: Path, _: RunRecord) -> dict[str, Any]:
    content = read_yaml(path)
    return content if isinstance(content, dict) else {}


def _lines(path: Path, run: RunRecord) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl. The last may be half written if the run was killed; others should be whole."""
    lines, broken = [], 0
    texts = path.read_text("utf-8", errors="replace").split("\n")
    for number, text in enumerate(texts):
        try:
            line = json.loads(text) if text.strip() else None
        except (ValueError, RecursionError):
            line, broken = None, broken + (number < len(texts) - 1)
        if isinstance(line, dict):
            lines.append(line)
    if broken:
        run.notes.append(f"{run.name}: {broken} damaged lines of {METRICS} are left out")
    return lines


def _sort_in(run: RunRecord, line: dict[str, Any]) -> None:
    numbered = line.get("epoch") is not None
    if line.get("kind") in ("epoch", "step"):
        run.final = None  # a finished run that goes on with more epochs
    if line.get("kind") == "epoch" and numbered:
        if run.epochs and run.epochs[-1]["epoch"] >= line["epoch"]:
            run.epochs = [other for other in run.epochs if other["epoch"] != line["epoch"]]
        run.epochs.append(line)
    elif line.get("kind") == "step" and numbered:
        run.steps.append(line)
    elif line.get("kind") == "start" and numbered:
        run.start = line
    elif line.get("kind") == "final":
        run.final = line
