"""How a comparison goes: a table that is redrawn on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any, Protocol

from falseneg.compare.tables import Table
from falseneg.compare.tasks import Task
from falseneg.train.progress import duration

EVERY = 30.0
"""Seconds between two lines where there is no terminal."""


class Display(Protocol):
    """Shows how the runs go."""

    def __enter__(self) -> Display: ...

    def __exit__(self, *_: object) -> None: ...

    def update(self) -> None:
        """Show the present state of the tasks."""
        ...


def display(tasks: Sequence[Task], jobs: int) -> Display:
    """The display that suits the output."""
    return Board(tasks, jobs) if sys.stdout.isatty() else Lines(tasks, jobs)


class Lines:
    """A line whenever a run starts or ends, and every half a minute.

    Args:
        tasks: the runs.
        jobs: how many go at the same time.
    """

    def __init__(self, tasks: Sequence[Task], jobs: int) -> None:
        self.tasks, self.jobs = tasks, jobs
        self.seen: dict[int, str] = {}
        self.last = time.monotonic()

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def update(self) -> None:
        if not self.seen and (before := sum(task.state == "done" for task in self.tasks)):
            print(f"{before} of {len(self.tasks)} runs are finished already", flush=True)
        for index, task in enumerate(self.tasks):
            changed = self.seen.get(index, task.state) != task.state or (not self.seen and task.state == "running")
            if changed and task.state != "waiting":
                print(f"{task.variant}, seed {task.seed}: {describe(task)}", flush=True)
        self.seen = {index: task.state for index, task in enumerate(self.tasks)}
        if time.monotonic() - self.last >= EVERY:
            self.last = time.monotonic()
            running = [task for task in self.tasks if task.state == "running"]
            each = "; ".join(f"{task.variant}, seed {task.seed}: {describe(task)}" for task in running)
            print(f"{summary(self.tasks, self.jobs)} — {each}", flush=True)


class Board:
    """A table of variants and seeds that is redrawn in place; needs a terminal.

    Args:
        tasks: the runs.
        jobs: how many go at the same time.
    """

    def __init__(self, tasks: Sequence[Task], jobs: int) -> None:
        from rich.live import Live

        self.tasks, self.jobs = tasks, jobs
        self.live = Live(self._table(), refresh_per_second=2)

    def __enter__(self) -> Board:
        self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.update(self._table())
        self.live.stop()

    def update(self) -> None:
        self.live.update(self._table())

    def _table(self) -> Any:
        from rich.markup import escape
        from rich.table import Table

        seeds = sorted({task.seed for task in self.tasks})
        table = Table("variant", *(f"seed {seed}" for seed in seeds), caption=summary(self.tasks, self.jobs))
        for variant in dict.fromkeys(task.variant for task in self.tasks):
            of_seed = {task.seed: task for task in self.tasks if task.variant == variant}
            cells = [describe(of_seed[seed]) if seed in of_seed else "" for seed in seeds]
            table.add_row(escape(variant), *map(escape, cells))
        return table


def show_tables(tables: Sequence[Table]) -> None:
    """Print the tables that hold a figure; 80 columns are enough."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable

    console = Console(width=None if sys.stdout.isatty() else 100, highlight=False)
    for table in tables:
        if not table.some:
            continue
        shown = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, title=table.title, title_justify="left")
        for heading in table.columns:
            shown.add_column(heading, justify="left" if heading == table.columns[0] else "right")
        for row in table.rows:
            shown.add_row(*row)
        console.print(shown, f"[dim]{table.note}[/dim]", "")


def describe(task: Task) -> str:
    """Where a run stands, in a few words."""
    knn = "" if task.knn is None else f", kNN {task.knn:.1%}"
    words = {
        "waiting": "waiting",
        "running": f"{_part_of_the_run(task)}{knn}",
        "done": f"done{knn}",
        "failed": f"failed: {task.error}",
    }
    return words[task.state]


def _part_of_the_run(task: Task) -> str:
    if task.epoch == 0:
        return "starts"
    return f"epoch {task.epoch}/{task.epochs}" if task.epoch < task.epochs else "measuring"


def summary(tasks: Sequence[Task], jobs: int) -> str:
    """How many runs are done, and how long the rest will take."""
    done = sum(task.state == "done" for task in tasks)
    seconds = seconds_left(tasks, jobs)
    return f"{done} of {len(tasks)} runs done" + ("" if not seconds else f", {duration(seconds)} left")


def seconds_left(tasks: Sequence[Task], jobs: int) -> float | None:
    """A forecast from the seconds that an epoch of each variant took; None as long as nothing was measured."""
    measured: dict[str, float] = {task.variant: task.seconds for task in tasks if task.seconds is not None}
    if not measured:
        return None
    usual = sum(measured.values()) / len(measured)
    to_do = [task for task in tasks if task.state in ("waiting", "running")]
    work = [(task.epochs - task.epoch) * measured.get(task.variant, usual) for task in to_do]
    return max(sum(work) / jobs, max(work, default=0.0))
