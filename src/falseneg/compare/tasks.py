"""The runs of a comparison: each in its own process, so that memory is measured honestly and a crash ends one run only."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Literal

from falseneg.errors import UserError
from falseneg.files import alone
from falseneg.train.checkpoint import LAST
from falseneg.train.folder import final_figures
from falseneg.train.names import CHECKPOINTS, METRICS

LOG = "log.txt"
"""What a run would have shown on the terminal, in its folder."""

PATIENCE = 60.0
"""Seconds that a run gets to write its checkpoint and stop."""

Train = Callable[[Mapping[str, Any], Path, bool], object]
"""Trains a configuration in a folder, from the start or (True) from its last checkpoint. Importable by name."""


@dataclass
class Task:
    """One run: a variant and a seed.

    Attributes:
        variant: its name.
        seed: of everything random.
        configuration: resolved, with the seed in it.
        folder: of the run.
        state: where it stands.
        epoch: epochs done.
        seconds: of an epoch, as last measured.
        knn: the latest nearest-neighbour accuracy, in [0, 1].
        error: why it failed, in one sentence.
        after: folders of the runs that it needs, which end before it starts.
    """

    variant: str
    seed: int
    configuration: Mapping[str, Any]
    folder: Path
    state: Literal["waiting", "running", "done", "failed"] = "waiting"
    epoch: int = 0
    seconds: float | None = None
    knn: float | None = None
    error: str | None = None
    after: tuple[Path, ...] = ()

    @property
    def epochs(self) -> int:
        return int(self.configuration["epochs"])

    def refresh(self) -> None:
        """See in the run's metrics how far it is."""
        for line in _tail(self.folder / METRICS):
            if line.get("kind") == "epoch":
                self.epoch, self.seconds, self.knn = line["epoch"], line["seconds"], line.get("knn", self.knn)


def warm_up(threads: int, modules: Sequence[str]) -> None:
    """Start importing what all processes need, once for all and in the background, where the system can.

    Args:
        threads: processor threads of each process.
        modules: to import.
    """
    if _method() == "forkserver":
        from multiprocessing import forkserver

        multiprocessing.get_context("forkserver").set_forkserver_preload(list(modules))
        with _threads_in_environment(threads):
            forkserver.ensure_running()


def run_tasks(tasks: Sequence[Task], train: Train, jobs: int, threads: int, show: Callable[[], None]) -> None:
    """Do what is left to do: finished runs stay, interrupted ones continue from their last checkpoint.

    Args:
        tasks: the runs; their states are kept up to date.
        train: what each process calls.
        jobs: processes at the same time.
        threads: processor threads of each.
        show: called about once a second, and when a run starts or ends.

    Raises:
        KeyboardInterrupt: on SIGINT or SIGTERM, after the runs have written their checkpoints and stopped.
    """
    for task in tasks:
        task.refresh()
        task.state = "done" if final_figures(task.folder) else "waiting"
    start = _starter(train, threads)
    running: list[tuple[Task, Any, Connection]] = []
    with _terminating_is_interrupting():
        try:
            while running or any(task.state == "waiting" for task in tasks):
                for task in _startable(tasks)[: jobs - len(running)]:
                    task.state = "running"
                    running.append((task, *start(task)))
                show()
                wait([process.sentinel for _, process, _ in running], timeout=1.0)
                for task, process, answer in running:
                    task.refresh()
                    if process.exitcode is not None:
                        _conclude(task, process, answer)
                running = [entry for entry in running if entry[0].state == "running"]
            show()
        except BaseException:
            _stop([process for _, process, _ in running])
            raise


def _startable(tasks: Sequence[Task]) -> list[Task]:
    """Those that wait for no other run; what waits for one that failed, fails."""
    state = {task.folder: task.state for task in tasks}
    waiting = [task for task in tasks if task.state == "waiting"]
    for task in waiting:
        if failed := next((folder for folder in task.after if state[folder] == "failed"), None):
            task.state, task.error = "failed", f"it needs the run in {failed}, which failed"
    return [task for task in waiting if all(state[folder] == "done" for folder in task.after)]


def _method() -> str:
    """How processes start: forked from one that has imported everything and done nothing, where the system can."""
    return "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


def _starter(train: Train, threads: int) -> Callable[[Task], tuple[Any, Connection]]:
    """What starts the process of a task."""
    context: Any = multiprocessing.get_context(_method())

    def start(task: Task) -> tuple[Any, Connection]:
        busy = (
            f"the run in {task.folder} is still being written by a process of an earlier comparison; wait for its end"
        )
        with alone(task.folder, busy, PATIENCE):  # of a comparison that was killed, its runs may yet be saving
            pass
        resume = (task.folder / CHECKPOINTS / LAST).is_file()
        if not resume and task.folder.exists():
            shutil.rmtree(task.folder)  # killed before its first checkpoint
        task.folder.mkdir(parents=True, exist_ok=True)
        ours, theirs = context.Pipe(duplex=False)
        arguments = (train, dict(task.configuration), task.folder, resume, threads, theirs)
        process: Any = context.Process(target=_process, args=arguments, name=f"{task.variant}, seed {task.seed}")
        with _threads_in_environment(threads):
            process.start()
        theirs.close()
        return process, ours

    return start


def _process(
    train: Train, configuration: Mapping[str, Any], folder: Path, resume: bool, threads: int, answer: Connection
) -> None:
    """What a process does: train, and answer None or what went wrong."""
    # Out of the terminal's group: Ctrl-C reaches the comparison only, which then ends its runs.
    os.setpgrp() if hasattr(os, "setpgrp") else None
    _end_with_parent()
    with open(folder / LOG, "a", buffering=1, encoding="utf-8") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        try:
            import torch

            torch.set_num_threads(threads)
            train(configuration, folder, resume)
            answer.send(None)
        except UserError as error:
            print(error, file=sys.stderr)
            answer.send(" ".join(str(error).split()))
            sys.exit(1)
        except SystemExit as error:
            answer.send(f"it was stopped from outside (status {error.code}) and is saved")
            raise
        except BaseException as error:
            traceback.print_exc()
            about = (str(error).strip() or type(error).__name__).splitlines()[0]
            answer.send(f"{type(error).__name__}: {about} (its traceback is in {folder / LOG})")
            sys.exit(1)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()


def _end_with_parent() -> None:
    """Let this process checkpoint and stop when the comparison is gone, however it went."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    sentinel = parent.sentinel

    def watch() -> None:
        wait([sentinel])
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _conclude(task: Task, process: Any, answer: Connection) -> None:
    """Note how a process ended."""
    process.join()
    message = None
    with contextlib.suppress(EOFError, OSError):
        message = answer.recv() if answer.poll() else None
    answer.close()
    if process.exitcode == 0 and final_figures(task.folder):
        task.state = "done"
        return
    task.state = "failed"
    if process.exitcode < 0:
        name = signal.Signals(-process.exitcode).name
        message = f"its process was killed by {name}" + (
            "; it may have run out of memory: lower --jobs" if name == "SIGKILL" else ""
        )
    task.error = message or f"it ended with status {process.exitcode} and without a result (see {task.folder / LOG})"


def _stop(processes: Sequence[Any], patience: float = PATIENCE) -> None:
    """Ask the processes to write a checkpoint and stop; end those that take longer than ``patience`` seconds."""
    with contextlib.suppress(KeyboardInterrupt):  # a second Ctrl-C ends the patience
        for process in processes:
            process.terminate()
        until = time.monotonic() + patience
        for process in processes:
            process.join(max(0.0, until - time.monotonic()))
    for process in processes:
        if process.is_alive():
            process.kill()


@contextlib.contextmanager
def _terminating_is_interrupting() -> Iterator[None]:
    """SIGTERM ends the comparison as cleanly as Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _threads_in_environment(threads: int) -> Iterator[None]:
    """What is started inside gives its numerical libraries this many threads."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, str(threads)))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _tail(path: Path, size: int = 65536) -> list[dict[str, Any]]:
    """The last whole lines of a JSONL file that another process is writing."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        start = max(0, file.seek(0, os.SEEK_END) - size)
        file.seek(start)
        lines = file.read().split(b"\n")[1 if start else 0 : -1]
        return [json.loads(line) for line in lines]
    return []
