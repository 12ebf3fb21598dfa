"""What watches a training: figures, flagged pairs, accuracy, what is held of each image, and the map."""

from __future__ import annotations

from falseneg.train.observers.accuracy import Accuracy
from falseneg.train.observers.base import Figures, Observer
from falseneg.train.observers.embedding_map import EmbeddingMap
from falseneg.train.observers.flagged_pairs import FlaggedPairs
from falseneg.train.observers.per_sample import PerSample
from falseneg.train.observers.retrieval import RetrievalAccuracy
from falseneg.train.observers.step_figures import StepFigures
from falseneg.train.plan import labels_on
from falseneg.train.session import Session

__all__ = ["Figures", "Observer", "observers_of"]


def observers_of(session: Session) -> list[Observer]:
    """All that watch a run, in the order in which they do."""
    labels = labels_on(session.fabric.device, session.plan.train)
    return [
        StepFigures(labels),
        FlaggedPairs(session.folder, labels, session.plan.train, session.clock.steps_per_epoch, session.run.seed),
        Accuracy(),
        RetrievalAccuracy(),
        PerSample(),
        EmbeddingMap(),
    ]
