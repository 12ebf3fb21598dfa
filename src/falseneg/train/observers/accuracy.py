"""What frozen features are worth: before training, on the way, and at its end."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from falseneg.clock import due
from falseneg.evaluation import KNN, Evaluation, Linear, Split, evaluate_features, evaluations_of
from falseneg.evaluation.parts import labelled
from falseneg.train.embeddings import shared_features
from falseneg.train.names import START
from falseneg.train.observers.base import Figures, Observer
from falseneg.train.session import Session, Stepped


class Accuracy(Observer):
    """Where there are labels and a test set: all figures of the starting encoder and of the trained one, and kNN accuracy
    every ``evaluate_every``. All ranks extract features; the first measures them, and the others wait.
    """

    def __init__(self) -> None:
        self.start: Figures = {}
        self.last: Split | None = None  # the features of the last epoch: nothing changes between it and the end

    def start_epoch(self, session: Session) -> None:
        if session.clock.step or session.plan.test is None or (split := _split(session)) is None:
            return
        evaluations = _at_the_end(session)
        self.start = _figures(session, split, evaluations)
        named = [(each.title, self.start[each.key]) for each in evaluations]
        measured = [f"{title} {accuracy:.1%}" for title, accuracy in named if accuracy is not None]
        session.progress.message(f"before training: {', '.join(measured)}")

    def after_step(self, session: Session, stepped: Stepped) -> None:
        if stepped.clock.step == 0 and self.start and session.metrics is not None:  # a run without a step left nothing
            session.metrics.write("start", {"step": 0, "epoch": 0, **self.start})

    def end_epoch(self, session: Session, epoch: int) -> Figures:
        clock, every = session.clock, session.plan.evaluate_every
        wanted = session.plan.test is not None and due(every, clock.step - clock.steps_per_epoch, clock)
        if not wanted or (split := _split(session)) is None:
            return {}
        if clock.step == clock.total_steps:
            self.last = split
        return _figures(session, split, [KNN(), Linear()] if session.run.evaluate_linear else [KNN()])

    def finish(self, session: Session) -> Figures:
        test = session.plan.test
        if test is None or test.labels is None:
            return {}
        evaluations = _at_the_end(session)
        session.progress.message(f"measuring the features: {', '.join(each.title for each in evaluations)}")
        before = {f"{START}{each.key}": self.start.get(each.key) for each in evaluations}
        split = self.last or _split(session, alone=True)
        assert split is not None
        figures = _figures(session, split, evaluations)
        return figures | before | {"test_images": int((test.labels >= 0).sum())}

    def state(self, session: Session) -> dict[str, Any]:
        return {"start": self.start}

    def load_state(self, session: Session, state: Mapping[str, Any]) -> None:
        self.start = dict(state["start"])


def _at_the_end(session: Session) -> list[Evaluation]:
    return evaluations_of(session.run.few_labels, session.run.few_label_draws)


def _split(session: Session, alone: bool = False) -> Split | None:
    """The features of the labelled images, as the encoder is now; on the first rank only.

    Args:
        session: every rank has to ask.
        alone: the first rank asks by itself.
    """
    encoder, test = session.learner.method.towers["image"], session.plan.test
    assert test is not None
    parts = [labelled("train", session.plan.train), labelled("test", test)]
    train_features, test_features = (shared_features(session, encoder, part.images, alone) for part in parts)
    if train_features is None or test_features is None:
        return None
    return Split(train_features, parts[0].targets, test_features, parts[1].targets)


def _figures(session: Session, split: Split, evaluations: Sequence[Evaluation]) -> Figures:
    """On the training's device, or, where its memory does not suffice, on the host."""
    seed, device = session.run.seed, session.fabric.device
    if device.type == "cuda" and not session.run.deterministic:  # what is summed there is not summed in one order
        with contextlib.suppress(torch.OutOfMemoryError):
            return evaluate_features(Split(*(part.to(device) for part in split)), seed, evaluations)
    return evaluate_features(split, seed, evaluations)
