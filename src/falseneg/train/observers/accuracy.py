"""What frozen features are worth, during training and at its end."""

from __future__ import annotations

from torch import Tensor

from falseneg.clock import due
from falseneg.data import ImageSet, Subset
from falseneg.evaluation import evaluate, extract_features, knn_accuracy, linear_accuracy
from falseneg.train.observers.base import Figures, Observer
from falseneg.train.session import Session


class Accuracy(Observer):
    """Where there are labels and a test set: kNN accuracy every ``evaluate_every``, and all figures at the end."""

    def end_epoch(self, session: Session, epoch: int) -> Figures:
        clock, run = session.clock, session.run
        if not due(run.evaluate_every, clock.step - clock.steps_per_epoch, clock) or session.metrics is None:
            return {}
        assert session.plan.test is not None
        features = *_features(session, session.plan.train), *_features(session, session.plan.test)
        figures: Figures = {"knn": knn_accuracy(*features)}
        if run.evaluate_linear:
            figures["linear"] = linear_accuracy(*features)
        return figures

    def finish(self, session: Session) -> Figures:
        run, plan = session.run, session.plan
        if plan.test is None:
            return {}
        session.progress.message("measuring the features: nearest neighbours, linear probe, few labels")
        figures = evaluate(
            session.learner.method.towers["image"],
            plan.train,
            plan.test,
            plan.size,
            device=session.fabric.device,
            workers=plan.workers,
            seed=run.seed,
            few_labels=run.few_labels,
            few_label_draws=run.few_label_draws,
        )
        labels = plan.test.labels
        return figures | {"test_images": 0 if labels is None else int((labels >= 0).sum())}


def _features(session: Session, images: ImageSet) -> tuple[Tensor, Tensor]:
    """Features and labels of the images that have a label."""
    assert images.labels is not None
    kept = Subset(images, (images.labels >= 0).nonzero().flatten())
    encoder, plan = session.learner.method.towers["image"], session.plan
    features = extract_features(encoder, kept, plan.size, device=session.fabric.device, workers=plan.workers)
    return features, images.labels[kept.rows]
