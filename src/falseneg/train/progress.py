"""What a person sees while training runs: a bar on a terminal, one line every so many steps elsewhere."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Protocol

from falseneg.clock import Clock
from falseneg.evaluation import MEASURES

ASIDE_EVERY = 10.0
"""Seconds from one line to the next about something between two steps."""


class Progress(Protocol):
    """Shows how training goes. Entered before the first step and left after the last."""

    def __enter__(self) -> Progress: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def message(self, text: str) -> None:
        """A line that stays."""
        ...

    def advance(self, clock: Clock) -> None:
        """A step without figures."""
        ...

    def step(self, clock: Clock, figures: Mapping[str, Any], seconds_left: float) -> None:
        """How far training is, with the latest figures (those of a "step" line of metrics.jsonl)."""
        ...

    def aside(self, what: str, done: int, total: int) -> None:
        """How far something between two steps is, such as a pass over all images."""
        ...

    def epoch(self, clock: Clock, figures: Mapping[str, Any]) -> None:
        """An epoch is done; its figures are those of an "epoch" line."""
        ...


class Lines:
    """One line at a time, for logs and pipes; not more than one a second."""

    def __init__(self) -> None:
        self.last = -math.inf
        self.aside_since: float | None = None

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def message(self, text: str) -> None:
        print(text, flush=True)

    def advance(self, clock: Clock) -> None:
        return None

    def step(self, clock: Clock, figures: Mapping[str, Any], seconds_left: float) -> None:
        if time.monotonic() - self.last >= 1 or clock.step == clock.total_steps:
            self.last = time.monotonic()
            self.message(f"step {clock.step}/{clock.total_steps}  {_where(clock)}  {describe(figures, seconds_left)}")

    def aside(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if self.aside_since is None:
            self.aside_since = now
        if now - max(self.aside_since, self.last) >= ASIDE_EVERY:  # what is over before needs no line
            self.last = now
            left = (now - self.aside_since) * (total - done) / done
            self.message(f"{what}: {done:,} of {total:,}  {duration(left)} left")
        if done == total:
            self.aside_since = None

    def epoch(self, clock: Clock, figures: Mapping[str, Any]) -> None:
        if any(each.key in figures for each in MEASURES):
            self.message(f"epoch {figures['epoch']}/{clock.epochs}  {describe(figures)}")


class Bar:
    """A bar that is redrawn in place; needs a terminal."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as RichProgress

        self.console = Console(highlight=False)
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=None), TextColumn("{task.fields[figures]}"))
        self.bar = RichProgress(*columns, console=self.console, expand=True)
        self.task: Any = None
        self.aside_task: Any = None

    def __enter__(self) -> Bar:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def message(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=True)

    def advance(self, clock: Clock) -> None:
        self._show(clock)

    def step(self, clock: Clock, figures: Mapping[str, Any], seconds_left: float) -> None:
        self._show(clock, figures=describe(figures, seconds_left))

    def aside(self, what: str, done: int, total: int) -> None:
        if self.aside_task is None:
            self.aside_task = self.bar.add_task(what, total=total, figures="")
        self.bar.update(self.aside_task, completed=done, figures=f"{done:,} of {total:,} images")
        if done == total:
            self.bar.remove_task(self.aside_task)
            self.aside_task = None

    def epoch(self, clock: Clock, figures: Mapping[str, Any]) -> None:
        if any(each.key in figures for each in MEASURES):
            self.message(f"epoch {figures['epoch']}/{clock.epochs}  {describe(figures)}")

    def _show(self, clock: Clock, **fields: Any) -> None:
        if self.task is None:
            self.task = self.bar.add_task("", total=clock.total_steps, figures="")
        self.bar.update(self.task, completed=clock.step, description=_where(clock), **fields)


class Silent(Lines):
    """Shows nothing: for all ranks but the first."""

    def message(self, text: str) -> None:
        return None


def default_progress() -> Progress:
    """A bar if the output is a terminal, else lines."""
    return Bar() if sys.stdout.isatty() else Lines()


def describe(figures: Mapping[str, Any], seconds_left: float | None = None) -> str:
    """The figures of a step or an epoch in a few words."""
    words = []
    if figures.get("loss") is not None:
        words.append(f"loss {figures['loss']:.4f}")
    words += [f"{each.short} {figures[each.key]:.1%}" for each in MEASURES if figures.get(each.key) is not None]
    if figures.get("share_flagged"):
        words.append(f"flagged {figures['share_flagged']:.1%}")
    if figures.get("precision") is not None:
        words.append(f"precision {figures['precision']:.1%} (chance {figures['chance']:.1%})")
    if figures.get("graph agreement") is not None:
        words.append(f"graph agreement {figures['graph agreement']:.0%}")
    if figures.get("images_per_second") is not None:
        words.append(f"{figures['images_per_second']:,.0f} images/s")
    if seconds_left is not None:
        words.append(f"{duration(seconds_left)} left")
    return "  ".join(words)


def duration(seconds: float) -> str:
    """Seconds for a reader: "under 1 s", "45 s", "3 min 20 s", "5 h 10 min", "2 d 3 h"."""
    whole = max(0, round(seconds))
    for size, unit, smaller_size, smaller in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // smaller_size} {smaller}"
    return f"{whole} s" if whole else "under 1 s"


def _where(clock: Clock) -> str:
    return f"epoch {min(clock.epoch + 1, clock.epochs)}/{clock.epochs}"
