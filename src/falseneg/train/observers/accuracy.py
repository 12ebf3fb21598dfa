"""What frozen features are worth: before training, on the way, and at its end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from falseneg.clock import due
from falseneg.evaluation import KNN, Evaluation, Linear, Split, evaluate_features, evaluations_of, features_of
from falseneg.train.names import START
from falseneg.train.observers.base import Figures, Observer
from falseneg.train.session import Session, Stepped


class Accuracy(Observer):
    """Where there are labels and a test set: all figures of the starting encoder and of the trained one, and kNN accuracy
    every ``evaluate_every``. The first rank measures, and the others wait.
    """

    def __init__(self) -> None:
        self.start: Figures = {}
        self.last: Split | None = None  # the features of the last epoch: nothing changes between it and the end

    def start_epoch(self, session: Session) -> None:
        if session.clock.step or session.plan.test is None or session.metrics is None:
            return
        evaluations = _at_the_end(session)
        self.start = evaluate_features(_split(session), session.run.seed, evaluations)
        named = [(each.title, self.start[each.key]) for each in evaluations]
        measured = [f"{title} {accuracy:.1%}" for title, accuracy in named if accuracy is not None]
        session.progress.message(f"before training: {', '.join(measured)}")

    def after_step(self, session: Session, stepped: Stepped) -> None:
        if stepped.clock.step == 0 and self.start and session.metrics is not None:  # a run without a step left nothing
            session.metrics.write("start", {"step": 0, "epoch": 0, **self.start})

    def end_epoch(self, session: Session, epoch: int) -> Figures:
        clock, every = session.clock, session.plan.evaluate_every
        wanted = session.plan.test is not None and session.metrics is not None
        if not (wanted and due(every, clock.step - clock.steps_per_epoch, clock)):
            return {}
        split = _split(session)
        if clock.step == clock.total_steps:
            self.last = split
        return evaluate_features(split, session.run.seed, [KNN(), Linear()] if session.run.evaluate_linear else [KNN()])

    def finish(self, session: Session) -> Figures:
        test = session.plan.test
        if test is None or test.labels is None:
            return {}
        evaluations = _at_the_end(session)
        session.progress.message(f"measuring the features: {', '.join(each.title for each in evaluations)}")
        before = {f"{START}{each.key}": self.start.get(each.key) for each in evaluations}
        figures = evaluate_features(self.last or _split(session), session.run.seed, evaluations)
        return figures | before | {"test_images": int((test.labels >= 0).sum())}

    def state(self, session: Session) -> dict[str, Any]:
        return {"start": self.start}

    def load_state(self, session: Session, state: Mapping[str, Any]) -> None:
        self.start = dict(state["start"])


def _at_the_end(session: Session) -> list[Evaluation]:
    return evaluations_of(session.run.few_labels, session.run.few_label_draws)


def _split(session: Session) -> Split:
    """The features of the labelled images, as the encoder is now."""
    plan, encoder = session.plan, session.learner.method.towers["image"]
    assert plan.test is not None
    return features_of(encoder, plan.train, plan.test, plan.size, session.fabric.device, plan.workers)
