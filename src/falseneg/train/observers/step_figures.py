"""Loss, speed and detection: pooled over the steps between two logged lines, and over each epoch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from falseneg.flagged import Judged
from falseneg.train.metrics import Meter
from falseneg.train.observers.base import Figures, Observer
from falseneg.train.session import Session, Stepped


class StepFigures(Observer):
    """Writes a "step" line every ``log_every`` steps; gives the same figures of an epoch.

    Args:
        labels: (rows,) int64 on the device, to measure detection by; or None.
    """

    def __init__(self, labels: Tensor | None) -> None:
        self.labels = labels
        self.window, self.of_epoch = Meter(), Meter()
        self.window_since = self.epoch_since = 0.0

    def after_step(self, session: Session, stepped: Stepped) -> None:
        meter = Meter.of_step(stepped.loss, stepped.judged, self.labels)
        self.window, self.of_epoch = self.window + meter, self.of_epoch + meter
        clock = session.clock
        if clock.step == 1 or clock.step % session.run.log_every == 0:
            self._log(session, stepped)
        else:
            session.progress.advance(clock)

    def _log(self, session: Session, stepped: Stepped) -> None:
        """A line over the steps since the line before."""
        clock, pooled = session.clock, self.window.pooled(session.fabric)
        figures = {"step": clock.step, "epoch": clock.step / clock.steps_per_epoch, **pooled.figures()}
        figures |= {"learning_rate": stepped.rate, "temperature": _temperature(session, stepped.judged)}
        seconds = max(session.seconds - self.window_since, 1e-9)
        figures["images_per_second"] = pooled.steps * session.plan.batch_size / seconds
        if session.metrics is not None:
            session.metrics.write("step", figures)
        per_step = (session.seconds - session.first_seconds) / (clock.step - session.first_step)
        session.progress.step(clock, figures, per_step * (clock.total_steps - clock.step))
        self.window, self.window_since = Meter(), session.seconds

    def end_epoch(self, session: Session, epoch: int) -> Figures:
        figures = {"seconds": session.seconds - self.epoch_since, **self.of_epoch.pooled(session.fabric).figures()}
        self.of_epoch, self.epoch_since = Meter(), session.seconds
        return figures

    def state(self, session: Session) -> dict[str, Any]:
        return {
            "window": self.window.pooled(session.fabric).state(),
            "epoch": self.of_epoch.pooled(session.fabric).state(),
            "since": [self.window_since, self.epoch_since],
        }

    def load_state(self, session: Session, state: Mapping[str, Any]) -> None:
        first = session.fabric.is_global_zero
        self.window, self.of_epoch = Meter.of_state(state["window"], first), Meter.of_state(state["epoch"], first)
        self.window_since, self.epoch_since = state["since"]


@torch.no_grad()
def _temperature(session: Session, judged: list[Judged]) -> float:
    """The mean over the contrasts."""
    temperature = session.learner.criterion.temperature
    return float(torch.stack([temperature(contrast).mean() for contrast, *_ in judged]).mean())
