"""What frozen features are worth, during training and at its end."""

from __future__ import annotations

from falseneg.clock import due
from falseneg.evaluation import KNN, Evaluation, Linear, evaluate, evaluations_of
from falseneg.train.observers.base import Figures, Observer
from falseneg.train.session import Session


class Accuracy(Observer):
    """Where there are labels and a test set: kNN accuracy every ``evaluate_every``, and all figures at the end."""

    def end_epoch(self, session: Session, epoch: int) -> Figures:
        clock, run = session.clock, session.run
        if not due(run.evaluate_every, clock.step - clock.steps_per_epoch, clock) or session.metrics is None:
            return {}
        return _figures(session, [KNN(), Linear()] if run.evaluate_linear else [KNN()])

    def finish(self, session: Session) -> Figures:
        run, test = session.run, session.plan.test
        if test is None or test.labels is None:
            return {}
        evaluations = evaluations_of(run.few_labels, run.few_label_draws)
        session.progress.message(f"measuring the features: {', '.join(each.title for each in evaluations)}")
        return _figures(session, evaluations) | {"test_images": int((test.labels >= 0).sum())}


def _figures(session: Session, evaluations: list[Evaluation]) -> Figures:
    plan, encoder = session.plan, session.learner.method.towers["image"]
    assert plan.test is not None
    place = session.fabric.device, plan.workers
    return evaluate(encoder, plan.train, plan.test, plan.size, *place, session.run.seed, evaluations)
