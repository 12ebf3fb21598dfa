"""Processes that load images: how they are started, and what is said when they die, hang or run out of memory."""

from __future__ import annotations

import contextlib
import logging
import re
import sys
from collections.abc import Iterable, Iterator
from multiprocessing.sharedctypes import RawArray
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from falseneg.data.retries import asked_again
from falseneg.errors import UserError

T = TypeVar("T")
_LOG = logging.getLogger("falseneg")
IDLE = -1
"""The row of a process that has none in hand."""
LOOK = 5.0
"""Seconds after which who waits for a batch looks whether the processes that make it are still at work."""
SILENCE = 600.0
"""Seconds without a new image from any of them, after which they count as hung. An image may take longer than a batch
usually does: the bound is far above what storage is given to answer."""
_SIGNS = 3  # numbers that each process shows: images begun, the row in hand, answers of storage that had to be asked for again
_told = [0]
"""How many such answers this process has shown."""
_LATE = "DataLoader timed out"
_DEAD_WORKER = re.compile(r"DataLoader worker .*(killed|exited unexpectedly)", re.DOTALL)
_FULL = (
    "shared memory (/dev/shm), through which data-loading processes pass their batches, is full: enlarge it "
    "(docker run --shm-size 8g), or use fewer workers (--workers), smaller views or a smaller batch"
)


def worker_options(data: Dataset, workers: int) -> dict[str, Any]:
    """Arguments of a `DataLoader` that loads with this many processes.

    On Linux they are forked, in a process of a fork server too: there they would otherwise each import everything
    anew. A generator of its own keeps the loader from moving the global one.

    Args:
        data: what they load from; it says where they are by `at_row`.
        workers: how many; 0 for this process.
    """
    if workers and len(getattr(data, "signs", ())) < _SIGNS * workers:
        data.signs = RawArray("q", [0, IDLE, 0] * workers)  # type: ignore[attr-defined]
    forked = workers and sys.platform == "linux"
    return {
        "num_workers": workers,
        "multiprocessing_context": "fork" if forked else None,
        "generator": torch.Generator(),
        "timeout": LOOK if workers else 0,
    }


def at_row(row: int) -> None:
    """In a loading process: which row it has in hand from now on, or `IDLE`."""
    worker = get_worker_info()
    if worker is not None and (signs := getattr(worker.dataset, "signs", None)) is not None:
        place, late = _SIGNS * worker.id, asked_again()
        signs[place : place + _SIGNS] = [signs[place] + 1, row, signs[place + 2] + late - _told[0]]
        _told[0] = late


def handed_over(batch: T, *tensors: Tensor) -> T | UserError:
    """The batch; in a worker its tensors go into shared memory, and where that is full it is an error instead.

    Left to torch it would be one in the thread that sends batches, and who waits for them would wait for ever.
    """
    if get_worker_info() is None:
        return batch
    try:
        for tensor in tensors:
            tensor.share_memory_()
    except (RuntimeError, OSError):
        return UserError(_FULL)
    return batch


def batches_of(loaded: Iterable[T | UserError]) -> Iterator[T]:
    """What a `DataLoader` gives, with the errors of its workers in one sentence.

    Args:
        loaded: batches; instead of one that could not be made, the error, for torch would bury it in a traceback.

    Raises:
        UserError: a batch could not be made, a worker was killed, or all have been silent for ten minutes.
    """
    batches = iter(loaded)
    watch = _Watch(batches)
    try:
        while True:
            try:
                batch = next(batches)
            except RuntimeError as error:
                if _LATE not in str(error):
                    raise
                watch.look()
                continue
            if isinstance(batch, UserError):
                raise batch
            yield batch
    except StopIteration:
        watch.report()
    except UserError:
        _end(batches)
        raise
    except RuntimeError as error:
        if not _DEAD_WORKER.search(str(error)):
            raise
        hint = " (shared memory is full)" if "shared memory" in str(error) else ""
        raise UserError(
            f"a data-loading process was killed{hint}, most likely because memory ran out: use fewer workers, smaller "
            f"views or a smaller batch"
        ) from error


class _Watch:
    """Whether a loader's processes are still at work, and how often their storage had to be asked again.

    Args:
        batches: the iterator of a `DataLoader` that was made with `worker_options`.
    """

    def __init__(self, batches: Any) -> None:
        self._data = getattr(batches, "_dataset", None)
        self._seen, self._before = self._signs(), asked_again()
        self._quiet = 0.0

    def _signs(self) -> list[int]:
        return list(getattr(self._data, "signs", ()))

    def look(self) -> None:
        """A batch was waited for in vain. Waits are counted, not the clock, which goes on while a machine sleeps.

        Raises:
            UserError: nothing has moved for `SILENCE`.
        """
        signs = self._signs()
        self._quiet = self._quiet + LOOK if signs == self._seen else 0.0
        self._seen = signs
        if self._quiet < SILENCE:
            return
        images = getattr(self._data, "image_set", None)
        rows = [row for row in signs[1::_SIGNS] if row != IDLE]
        places = ", ".join(str(row) if images is None else images.place(row) for row in rows[:3])
        raise UserError(
            f"the data-loading processes have made nothing for {SILENCE / 60:.3g} minutes, since they came to {places}"
            f"{f' and {len(rows) - 3} more' if len(rows) > 3 else ''}: see whether the storage answers and the image can be "
            "read, then start again, with --resume for a run"
        )

    def report(self) -> None:
        """Say how often storage had to be asked again, if it had."""
        shown = sum(self._signs()[2::_SIGNS])
        late = asked_again() - self._before + shown - getattr(self._data, "told", 0)
        if self._data is not None:
            self._data.told = shown  # lasting processes begin the next pass before it is asked for
        if late > 0:
            _LOG.warning(
                "storage failed or did not answer in time %s times in a pass over the data, and was asked again",
                f"{late:,}",
            )


def _end(batches: Any) -> None:
    """End a loader's processes, also those that no longer listen."""
    with contextlib.suppress(AttributeError):  # without processes
        batches._shutdown_workers()
        for worker in batches._workers:
            if worker.is_alive():
                worker.kill()
