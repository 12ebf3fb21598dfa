"""The embeddings of all training images, for detectors that look at the whole data set."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import torch
from torch import Tensor, nn

from falseneg.data import Subset
from falseneg.evaluation.features import feature_batches
from falseneg.files import replacing
from falseneg.methods.base import Method
from falseneg.statistics.gather import gather_rows
from falseneg.train.guards import outlast_signals
from falseneg.train.session import Session

MOST_IN_MEMORY = 2**30
"""Bytes that the embeddings of a data set may take as float32; more of them go to a file, as float16."""
AT_ONCE = 256
"""Images that each rank embeds at a time."""
FILE = "embeddings.f16"


def all_embeddings(session: Session, after_batch: Callable[[], None]) -> Tensor:
    """(rows, D) unit embeddings of all training images, as `Method.embed` sees them, without augmentation.

    Each rank embeds its share, and all receive the whole; every rank has to ask. On the CPU, in float32; or, where that
    would take more than 1 GiB, in float16, mapped from a file in the run's folder: `remove_embeddings` when they are no
    longer needed. No global random state is touched.

    Args:
        session: the run.
        after_batch: called after each batch, equally often on each rank; what it raises ends the pass.
    """
    fabric, images = session.fabric, session.plan.train
    own = torch.arange(fabric.global_rank, len(images), fabric.world_size)
    batches = feature_batches(
        EmbedImages(session.learner.method),
        Subset(images, own),
        session.plan.size,
        AT_ONCE,
        fabric.device,
        session.plan.workers,
        outlast_signals,
    )
    rounds = -(-len(images) // (AT_ONCE * fabric.world_size))
    batch = torch.empty(0)
    with closing(batches), _Kept(len(images), session.folder / FILE, fabric.is_global_zero) as kept:
        for start in range(0, rounds * AT_ONCE, AT_ONCE):
            batch = next(batches, batch[:0])  # a rank may have no image left in the last round
            kept.add(_of_all_ranks(own[start : start + AT_ONCE], batch, fabric.device))
            session.progress.aside("embedding all images", kept.rows_done, len(images))
            after_batch()
    fabric.barrier()  # what the first rank wrote is complete
    return kept.embeddings()


def remove_embeddings(session: Session) -> None:
    """Remove the file, if there is one; not before all ranks have done with it."""
    if session.fabric.is_global_zero:
        (session.folder / FILE).unlink(missing_ok=True)


def _of_all_ranks(rows: Tensor, batch: Tensor, device: torch.device) -> Tensor:
    """(b, D) the embeddings of all ranks' batches by row; exchanged on the device."""
    everyone = gather_rows(rows.to(device)).cpu()
    return gather_rows(batch.to(device)).cpu()[everyone.argsort()]


class _Kept:
    """Embeddings that come one after the other: in memory, or in a file that one rank writes and all read."""

    def __init__(self, rows: int, path: Path, writes: bool) -> None:
        self.rows, self.path, self.writes = rows, path, writes
        self.rows_done, self.columns = 0, 0
        self.in_memory: Tensor | None = None
        self.file: BinaryIO | None = None
        self.opened = ExitStack()

    def __enter__(self) -> _Kept:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.opened.__exit__(kind, error, trace)

    def add(self, batch: Tensor) -> None:
        """The next (b, D) float32."""
        if self.rows_done == 0:
            self.columns = batch.shape[1]
            if 4 * self.rows * self.columns <= MOST_IN_MEMORY:
                self.in_memory = torch.empty(self.rows, self.columns)
            elif self.writes:
                self.file = self.opened.enter_context(replacing(self.path))
        if self.in_memory is not None:
            self.in_memory[self.rows_done : self.rows_done + len(batch)] = batch
        elif self.file is not None:
            self.file.write(batch.half().numpy().tobytes())
        self.rows_done += len(batch)

    def embeddings(self) -> Tensor:
        """(rows, D) all of them."""
        if self.in_memory is not None:
            return self.in_memory
        numbers = torch.from_file(str(self.path), size=self.rows * self.columns, dtype=torch.float16)
        return numbers.view(self.rows, self.columns)


class EmbedImages(nn.Module):
    """Images to the embedding that the method compares."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self, images: Tensor) -> Tensor:
        return self.method.embed(images)
