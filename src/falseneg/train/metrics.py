"""Figures of training: pooled over steps, written as one JSON object a line, and handed to TensorBoard or W&B if asked."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import Tensor

from falseneg.contrast import Contrast
from falseneg.errors import UserError
from falseneg.evaluation.false_negatives import DetectionCounts
from falseneg.flagged import Judged
from falseneg.statistics import confusion
from falseneg.statistics.scan import same_sample
from falseneg.train.names import METRICS

if TYPE_CHECKING:
    from lightning_fabric import Fabric

LOGGERS = {"tensorboard": "tensorboard", "wandb": "wandb"}
"""The further loggers, and the package that each needs."""


@dataclass
class Meter:
    """What happened over some steps: mean loss, and the detection's counts pooled over every pair of every step.

    Measured at every step, because it is cheap: against the labels one more sweep of the matrix, without gradient.
    """

    loss: float = 0.0
    steps: int = 0
    detection: DetectionCounts = field(default_factory=DetectionCounts)

    @staticmethod
    def of_step(loss: float, judged: Sequence[Judged], labels: Tensor | None) -> Meter:
        """One step.

        Args:
            loss: of all ranks.
            judged: what was flagged, on this rank.
            labels: (rows,) int64 on the device, to measure detection by; or None.
        """
        counts = DetectionCounts()
        for contrast, rule, stats in judged:
            if labels is not None:
                counts.add(confusion(contrast, rule, labels))
            elif contrast.denominator is None:
                counts.add_unlabelled(stats)
            else:
                counts.add_unlabelled(stats, _pairs_of_two(contrast))
        return Meter(loss, 1, counts)

    def __add__(self, other: Meter) -> Meter:
        counts = (_sum(mine, theirs) for mine, theirs in zip(self._counts(), other._counts(), strict=True))
        return Meter(self.loss + other.loss, self.steps + other.steps, DetectionCounts(*counts))  # type: ignore[arg-type]

    def _counts(self) -> tuple[Tensor | int | None, ...]:
        return tuple(vars(self.detection).values())

    def pooled(self, fabric: Fabric) -> Meter:
        """The same with the counts of all ranks; every rank has to ask."""
        counts = self._counts()
        # Together, to wait for the device once.
        local = torch.stack([_on(fabric.device, 0 if count is None else count) for count in counts])
        total = over_ranks(fabric, local, "sum").tolist()
        kept = (None if count is None else pooled for count, pooled in zip(counts, total, strict=True))
        return Meter(self.loss, self.steps, DetectionCounts(*kept))  # type: ignore[arg-type]

    def figures(self) -> dict[str, float | None]:
        """Mean loss and the figures of detection."""
        return {"loss": self.loss / self.steps if self.steps else None, **self.detection.figures()}

    def state(self) -> dict[str, float | int | None]:
        """Plain numbers, for the checkpoint; of a pooled meter."""
        return {"loss": self.loss, "steps": self.steps, **vars(self.detection)}

    @staticmethod
    def of_state(state: Mapping[str, Any], first_rank: bool) -> Meter:
        """The meter of that state. The counts, which are of all ranks, go to the first."""
        loss, steps, *counts = (state[key] for key in ("loss", "steps", *vars(DetectionCounts())))
        kept = counts if first_rank else [None if count is None else 0 for count in counts]
        return Meter(loss, steps, DetectionCounts(*kept))


def _sum(mine: Tensor | int | None, theirs: Tensor | int | None) -> Tensor | int | None:
    """The sum of what is known."""
    return theirs if mine is None else mine if theirs is None else mine + theirs


def _pairs_of_two(contrast: Contrast) -> Tensor:
    """() int64 the negatives among all pairs, in the denominator or not: counted by who they show, without a sweep."""
    columns, _, equals = same_sample(contrast, contrast.columns(None))
    return (len(columns) - equals).sum()


def _on(device: torch.device, count: Tensor | int) -> Tensor:
    """() int64 on that device."""
    return count if isinstance(count, Tensor) else torch.full((), count, device=device)


def over_ranks(fabric: Fabric, value: Tensor, how: Literal["sum", "mean", "max"]) -> Tensor:
    """The sum, mean or maximum of a tensor over all ranks; itself when alone."""
    reduced = fabric.all_reduce(value, reduce_op=how)
    assert isinstance(reduced, Tensor)
    return reduced


class Logger(Protocol):
    """Takes the lines of metrics.jsonl and shows them elsewhere."""

    def write(self, line: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


class Metrics:
    """The file metrics.jsonl, and the loggers that get the same lines.

    Args:
        folder: the run's folder.
        length: bytes of the file to keep, for a resumed run: what was written after the checkpoint is written again.
        loggers: further loggers.
    """

    def __init__(self, folder: Path, length: int = 0, loggers: Sequence[Logger] = ()) -> None:
        self.path, self.loggers = folder / METRICS, loggers
        self.path.touch()
        os.truncate(self.path, min(length, self.path.stat().st_size))
        self.file = open(self.path, "ab")  # noqa: SIM115 (close() closes it)

    def write(self, kind: str, figures: Mapping[str, Any]) -> None:
        """Write one line; figures that are None are left out."""
        line = {"kind": kind, **{key: value for key, value in figures.items() if value is not None}}
        self.file.write((json.dumps(line) + "\n").encode())
        self.file.flush()
        for logger in self.loggers:
            logger.write(line)

    def position(self) -> int:
        """The length of the file in bytes, all of which are on the disk."""
        os.fsync(self.file.fileno())
        return self.file.tell()

    def close(self) -> None:
        self.file.close()
        for logger in self.loggers:
            logger.close()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The whole lines of a run's metrics.jsonl; a last line that was being written when the run was killed is left out."""
    path = folder / METRICS
    if not path.is_file():
        return []
    try:
        lines = [json.loads(line) for line in path.read_text("utf-8").split("\n")[:-1]]
        if not all(isinstance(line, dict) and isinstance(line.get("kind"), str) for line in lines):
            raise ValueError("a line without its kind")
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}); restore an undamaged copy") from error
    return lines


def further_loggers(names: Sequence[str], folder: Path, run_id: str, settings: Mapping[str, Any]) -> list[Logger]:
    """The loggers of these names."""
    return [
        TensorBoard(folder) if name == "tensorboard" else WeightsAndBiases(folder, run_id, settings) for name in names
    ]


class TensorBoard:
    """Writes event files into the run's folder, below ``tensorboard``."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(str(folder / "tensorboard"))

    def write(self, line: Mapping[str, Any]) -> None:
        for name, value in _figures(line).items():
            self.writer.add_scalar(f"{line['kind']}/{name}", value, line.get("step"))

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    """Sends the figures to Weights & Biases, or keeps them on the disk if the environment says WANDB_MODE=offline."""

    def __init__(self, folder: Path, run_id: str, settings: Mapping[str, Any]) -> None:
        import wandb

        about = {"name": folder.name, "id": run_id, "resume": "allow", "config": dict(settings)}
        self.run: Any = wandb.init(project="falseneg", dir=str(folder), **about)

    def write(self, line: Mapping[str, Any]) -> None:
        figures = {f"{line['kind']}/{name}": value for name, value in _figures(line).items()}
        self.run.log(figures, step=line.get("step"))

    def close(self) -> None:
        self.run.finish()


def _figures(line: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in line.items() if name not in ("kind", "step")}
