"""A training on its way: what the loop, the observers and the checkpoint read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from falseneg.clock import Clock
from falseneg.data import ViewLoader
from falseneg.data.loader import EpochSampler
from falseneg.flagged import Judged
from falseneg.train.metrics import Metrics
from falseneg.train.plan import Plan
from falseneg.train.processes import LongWait
from falseneg.train.progress import Progress
from falseneg.train.run import Run
from falseneg.train.step import Learner

if TYPE_CHECKING:
    from lightning_fabric import Fabric


@dataclass(eq=False)
class Session:
    """Everything in place for the next step. Only the loop and a loaded checkpoint change the clock and what follows it.

    Attributes:
        run: the options.
        plan: the data, and the settings that were left open.
        folder: where the run is written.
        learner: what is trained.
        loader: batches of this process.
        sampler: says which epoch the loader goes through, and from where.
        metrics: the file, on the first rank only.
        progress: what a person sees.
        settings: what the checkpoint is checked against when the run is continued.
        peak_rate: the learning rate after warm-up.
        wait_for_first: where all ranks wait for the first.
        clock: the next step.
        skipped: steps that were passed over, because they were not finite.
        seconds: spent on training so far, without measuring and recording.
        first_step, first_seconds: both as they were when this process began.
    """

    run: Run
    plan: Plan
    folder: Path
    learner: Learner
    loader: ViewLoader
    sampler: EpochSampler
    metrics: Metrics | None
    progress: Progress
    settings: dict[str, str]
    peak_rate: float
    wait_for_first: LongWait
    clock: Clock
    skipped: int = 0
    seconds: float = 0.0
    first_step: int = 0
    first_seconds: float = 0.0

    @property
    def fabric(self) -> Fabric:
        return self.learner.fabric

    @property
    def labels(self) -> Tensor | None:
        """(rows,) int64 of the training images, on the CPU; they only measure."""
        return self.plan.train.labels


@dataclass(frozen=True, eq=False)
class Stepped:
    """A step that was taken.

    Attributes:
        clock: as it stood in the step.
        rate: the learning rate.
        loss: over all ranks, in nats.
        judged: what was flagged, on this rank.
    """

    clock: Clock
    rate: float
    loss: float
    judged: list[Judged]
