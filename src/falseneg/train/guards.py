"""What surrounds training: signals, determinism, and errors of the machine in one sentence."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import torch
from torch.utils.data import DataLoader

from falseneg.errors import UserError
from falseneg.files import disk_error
from falseneg.train.processes import lost_process

_DISK_IS_FULL = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}
_DISK_FAILS = {errno.EIO, errno.EROFS, errno.ESTALE}
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequests:
    """Turns the first SIGINT or SIGTERM into a wish that the loop grants after the step; a second one ends at once.

    Attributes:
        wanted: the number of the signal that came, 0 if none.
    """

    def __init__(self) -> None:
        self.wanted = 0
        self._at_once = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequests:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """For what may take long and changes nothing before its end: meanwhile the first signal breaks it off.

        Raises:
            Stopped: a signal came.
        """
        self._at_once = True
        try:
            if self.wanted:
                raise Stopped
            yield
        finally:
            self._at_once = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.wanted = number
        for other in _SIGNALS:
            signal.signal(other, signal.SIG_DFL)
        if self._at_once:
            raise Stopped


class Stopped(BaseException):
    """A signal broke off what can be started again. No `Exception`, so that nobody on the way takes it for an error."""


def outlast_signals(worker: int) -> None:
    """In a loader's process: pass over the first signal.

    It reached the training process too, which needs its loaders until the end of the step, and then ends them.
    """
    for number in _SIGNALS:
        signal.signal(number, lambda number, frame: signal.signal(number, signal.SIG_DFL))


def end_workers(loader: DataLoader) -> None:
    """End a loader's processes in good order: what Python does at exit is to send a signal, and to wait."""
    iterator = getattr(loader, "_iterator", None)
    if iterator is not None:
        iterator._shutdown_workers()


@contextlib.contextmanager
def determinism(wanted: bool, threads: int | None) -> Iterator[None]:
    """Only deterministic algorithms, and as many threads as the run began with, if wanted; all is put back afterwards."""
    if not wanted:
        yield
        return
    algorithms, benchmark = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    threads_before = torch.get_num_threads()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    try:
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
        torch.set_num_threads(threads or threads_before)
        yield
    finally:
        torch.use_deterministic_algorithms(algorithms)
        torch.backends.cudnn.benchmark = benchmark
        torch.set_num_threads(threads_before)


@contextlib.contextmanager
def in_one_sentence() -> Iterator[None]:
    """Running out of memory or disk space, or a lost process, becomes a `UserError` that says what to do.

    Raises:
        UserError: memory or the disk is full, or another process of the training is gone.
    """
    try:
        yield
    except UserError:
        raise
    except (RuntimeError, MemoryError, OSError) as error:
        if lost_loader(error):
            raise UserError(
                "a data-loading process was killed, most likely because memory ran out; use fewer workers (--workers)"
            ) from error
        if out_of_memory(error):
            raise UserError(
                "memory ran out; lower the batch size, encode it in more pieces (accumulate; the same gradients), or make "
                "the views (augmentation.size) or the encoder smaller"
            ) from error
        if lost_process(error):
            raise UserError(
                "another process of this training has ended, or does not answer any more; what it said stands above, or in its own "
                "output; --resume continues from the last checkpoint"
            ) from error
        disk = disk_error(error)
        if disk is not None and disk.errno in _DISK_IS_FULL:
            raise UserError(
                f"the disk cannot take more ({disk.strerror}); free some space, then continue from the last checkpoint with --resume"
            ) from error
        if disk is not None and disk.errno in _DISK_FAILS:
            raise UserError(
                f"the disk does not answer as it should ({disk.strerror}); once it does, continue from the last checkpoint with "
                "--resume"
            ) from error
        raise


def lost_loader(error: BaseException) -> bool:
    """Whether an error says that a loading process is gone."""
    words = ("DataLoader worker", "data-loading process")
    return isinstance(error, RuntimeError | UserError) and any(word in str(error) for word in words)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is full, on a GPU or in the machine."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    words = ("can't allocate memory", "not enough memory", "CUDA out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)
