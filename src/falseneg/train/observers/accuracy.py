"""What frozen features are worth: before training, on the way, and at its end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from falseneg.clock import due
from falseneg.evaluation import KNN, Evaluation, Linear, evaluate, evaluations_of
from falseneg.train.names import START
from falseneg.train.observers.base import Figures, Observer
from falseneg.train.session import Session, Stepped


class Accuracy(Observer):
    """Where there are labels and a test set: all figures of the starting encoder and of the trained one, and kNN accuracy
    every ``evaluate_every``. The first rank measures, and the others wait.
    """

    def __init__(self) -> None:
        self.start: Figures = {}

    def start_epoch(self, session: Session) -> None:
        if session.clock.step or session.plan.test is None or session.metrics is None:
            return
        self.start = _figures(session, _at_the_end(session))
        named = [(each.title, self.start[each.key]) for each in _at_the_end(session)]
        measured = [f"{title} {accuracy:.1%}" for title, accuracy in named if accuracy is not None]
        session.progress.message(f"before training: {', '.join(measured)}")

    def after_step(self, session: Session, stepped: Stepped) -> None:
        if stepped.clock.step == 0 and self.start and session.metrics is not None:  # a run without a step left nothing
            session.metrics.write("start", {"step": 0, "epoch": 0, **self.start})

    def end_epoch(self, session: Session, epoch: int) -> Figures:
        clock, every = session.clock, session.plan.evaluate_every
        if not due(every, clock.step - clock.steps_per_epoch, clock) or session.metrics is None:
            return {}
        return _figures(session, [KNN(), Linear()] if session.run.evaluate_linear else [KNN()])

    def finish(self, session: Session) -> Figures:
        test = session.plan.test
        if test is None or test.labels is None:
            return {}
        evaluations = _at_the_end(session)
        session.progress.message(f"measuring the features: {', '.join(each.title for each in evaluations)}")
        before = {f"{START}{each.key}": self.start.get(each.key) for each in evaluations}
        return _figures(session, evaluations) | before | {"test_images": int((test.labels >= 0).sum())}

    def state(self, session: Session) -> dict[str, Any]:
        return {"start": self.start}

    def load_state(self, session: Session, state: Mapping[str, Any]) -> None:
        self.start = dict(state["start"])


def _at_the_end(session: Session) -> list[Evaluation]:
    return evaluations_of(session.run.few_labels, session.run.few_label_draws)


def _figures(session: Session, evaluations: list[Evaluation]) -> Figures:
    plan, encoder = session.plan, session.learner.method.towers["image"]
    assert plan.test is not None
    place = session.fabric.device, plan.workers
    return evaluate(encoder, plan.train, plan.test, plan.size, *place, session.run.seed, evaluations)
