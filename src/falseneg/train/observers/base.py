"""What watches a training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from falseneg.train.session import Session, Stepped

Figures = dict[str, float | None]


class Observer:
    """Watches a training and never changes it: without its observers a run ends with the same weights, bit for bit.

    There are four events, and every rank has to go through all of them except `finish`.
    """

    def start_epoch(self, session: Session) -> None:
        """Before the first step of an epoch, and before the detector looks at the data set; not within a resumed one."""

    def after_step(self, session: Session, stepped: Stepped) -> None:
        """After each optimiser step. ``session.clock`` is at the next step."""

    def end_epoch(self, session: Session, epoch: int) -> Figures:
        """After the last step of an epoch (counted from 1): its figures, for the line of the epoch."""
        return {}

    def finish(self, session: Session) -> Figures:
        """After the last epoch, on the first rank only: the figures of the run, and what the report shows."""
        return {}

    def state(self, session: Session) -> dict[str, Any]:
        """What a resumed run has to know, for the checkpoint: plain values and tensors."""
        return {}

    def load_state(self, session: Session, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
