"""How well images and texts find each other: before training, on the way, and at its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from falseneg.clock import due
from falseneg.evaluation import extract_features
from falseneg.evaluation.features import evaluation_mode
from falseneg.evaluation.pairs import PAIR_EVALUATIONS, PairSplit, embed_captions, embed_classes
from falseneg.methods.two_towers import TwoTowers
from falseneg.train.embeddings import EmbedImages
from falseneg.train.names import START
from falseneg.train.observers.base import Figures, Observer
from falseneg.train.session import Session, Stepped


class RetrievalAccuracy(Observer):
    """Where there are two towers and captioned images to measure on: recall and zero-shot accuracy, of the starting towers,
    every ``evaluate_every``, and of the trained ones. The first rank measures, and the others wait.
    """

    def __init__(self) -> None:
        self.start: Figures = {}
        self.last: Figures = {}

    def start_epoch(self, session: Session) -> None:
        if session.clock.step == 0 and session.metrics is not None:
            self.start = measured(session)
            if self.start:
                session.progress.message(f"before training: {said(self.start)}")

    def after_step(self, session: Session, stepped: Stepped) -> None:
        if stepped.clock.step == 0 and self.start and session.metrics is not None:
            session.metrics.write("start", {"step": 0, "epoch": 0, **self.start})

    def end_epoch(self, session: Session, epoch: int) -> Figures:
        clock, every = session.clock, session.plan.evaluate_every
        if not due(every, clock.step - clock.steps_per_epoch, clock) or session.metrics is None:
            return {}
        self.last = measured(session)
        return self.last

    def finish(self, session: Session) -> Figures:
        figures = self.last or measured(session)
        if figures:
            session.progress.message(f"retrieval: {said(figures)}")
        return figures | {f"{START}{key}": value for key, value in self.start.items()}

    def state(self, session: Session) -> dict[str, Any]:
        return {"start": self.start}

    def load_state(self, session: Session, state: Mapping[str, Any]) -> None:
        self.start = dict(state["start"])


def said(figures: Figures) -> str:
    """The figures of the evaluations, in a line."""
    found = [(each.title, figures.get(each.key)) for each in PAIR_EVALUATIONS]
    return ", ".join(f"{title} {value:.1%}" for title, value in found if value is not None)


def measured(session: Session) -> Figures:
    """The figures of the towers as they are; none where there are no two towers, or no captions to measure on."""
    method, images = session.learner.method, session.plan.test_pairs
    if images is None or not isinstance(method, TwoTowers):
        return {}
    device = session.fabric.device

    def embed(texts: Sequence[str]) -> Tensor:
        return method.embed_texts(method.tokenize(texts).to(device))

    rows = extract_features(EmbedImages(method), images, session.plan.size, device=device, workers=session.plan.workers)
    with evaluation_mode(method):
        texts = embed_captions(images, embed)
        known = images.labels is not None and images.class_names is not None
        classes = embed_classes(images.class_names or (), session.run.prompts, embed) if known else None
    pairs = PairSplit(rows, *texts, images.labels, classes)
    figures: Figures = {}
    for each in PAIR_EVALUATIONS:
        figures |= each.figures(pairs)
    return figures
