"""How well images and texts find each other: before training, on the way, and at its end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from falseneg.clock import due
from falseneg.data import ImageSet
from falseneg.evaluation.pairs import PAIR_EVALUATIONS, PairSplit, pair_figures, pair_split
from falseneg.files import replacing
from falseneg.methods.two_towers import TwoTowers
from falseneg.train.embeddings import EmbedImages, shared_features
from falseneg.train.names import RETRIEVAL, START
from falseneg.train.observers.base import Figures, Observer
from falseneg.train.pairs import MOST_LETTERS
from falseneg.train.session import Session, Stepped
from falseneg.train.thumbnails import ENLARGED, thumbnail_arrays

EXAMPLES, FOUND = 8, 6
"""Of each direction in the report: queries, and what each finds first."""


class RetrievalAccuracy(Observer):
    """Where there are two towers and captioned images to measure on: recall and zero-shot accuracy, of the starting towers,
    every ``evaluate_every``, and of the trained ones. All ranks embed images; the first measures, and the others wait.
    """

    def __init__(self) -> None:
        self.start: Figures = {}
        self.last: PairSplit | None = None  # nothing changes between the last epoch and the end

    def start_epoch(self, session: Session) -> None:
        if session.clock.step == 0:
            self.start = measured(embedded(session))
            if self.start:
                session.progress.message(f"before training: {said(self.start)}")

    def after_step(self, session: Session, stepped: Stepped) -> None:
        if stepped.clock.step == 0 and self.start and session.metrics is not None:
            session.metrics.write("start", {"step": 0, "epoch": 0, **self.start})

    def end_epoch(self, session: Session, epoch: int) -> Figures:
        clock, every = session.clock, session.plan.evaluate_every
        if not due(every, clock.step - clock.steps_per_epoch, clock):
            return {}
        pairs = embedded(session)
        if clock.step == clock.total_steps:
            self.last = pairs
        return measured(pairs)

    def finish(self, session: Session) -> Figures:
        pairs = self.last or embedded(session, alone=True)
        figures = measured(pairs)
        if pairs is not None and session.plan.test_pairs is not None:
            session.progress.message(f"retrieval: {said(figures)}")
            with replacing(session.folder / RETRIEVAL) as file:
                np.savez_compressed(file, **examples(pairs, session.plan.test_pairs))
        return figures | {f"{START}{key}": value for key, value in self.start.items()}

    def state(self, session: Session) -> dict[str, Any]:
        return {"start": self.start}

    def load_state(self, session: Session, state: Mapping[str, Any]) -> None:
        self.start = dict(state["start"])


def said(figures: Figures) -> str:
    """The figures of the evaluations, in a line."""
    found = [(each.title, figures.get(each.key)) for each in PAIR_EVALUATIONS]
    return ", ".join(f"{title} {value:.1%}" for title, value in found if value is not None)


def embedded(session: Session, alone: bool = False) -> PairSplit | None:
    """The images and captions to measure on, as the towers are; None where there are no two towers, or no captions.

    On the first rank only, but every rank has to ask, unless the first does so alone.
    """
    method, images = session.learner.method, session.plan.test_pairs
    if images is None or not isinstance(method, TwoTowers):
        return None
    rows = shared_features(session, EmbedImages(method), images, alone)
    if rows is None:
        return None
    return pair_split(rows, images, method, session.run.prompts, session.fabric.device)


def measured(pairs: PairSplit | None) -> Figures:
    """All figures of the embeddings; none where there are none."""
    return {} if pairs is None else pair_figures(pairs)


def examples(pairs: PairSplit, images: ImageSet) -> dict[str, Any]:
    """Some images with the texts that they find first, and some texts with their images: arrays for the report.

    They are evenly spread over the images, not chosen by how well retrieval works. ``found`` (2, E, K) are the numbers of
    texts, and of images, that the E queries find first, ``cosine`` their cosines; ``asked`` (2, E) are the queries'.
    """
    chosen = torch.linspace(0, len(pairs.images) - 1, min(EXAMPLES, len(pairs.images))).long()
    texts = torch.stack([(pairs.image_of == row).nonzero()[0, 0] for row in chosen])
    most = min(FOUND, len(pairs.images), len(pairs.texts))
    sides = (pairs.images[chosen] @ pairs.texts.T, pairs.texts[texts] @ pairs.images.T)
    best = [similar.topk(most, dim=1) for similar in sides]
    rows = torch.cat([chosen, best[1].indices.flatten()]).unique()
    numbers = torch.cat([texts, best[0].indices.flatten()]).unique()
    captions: dict[int, str] = {}
    for row in pairs.image_of[numbers].unique().tolist():
        first = int((pairs.image_of == row).nonzero()[0, 0])
        captions |= {first + place: text[:MOST_LETTERS] for place, text in enumerate(images.captions(row))}
    words = (text.encode("utf-8", "replace").decode() for text in (captions[int(number)] for number in numbers))
    return {
        **thumbnail_arrays(images, rows.tolist(), ENLARGED),
        "texts": numbers.numpy(),
        "words": np.array(list(words), dtype=str),
        "image_of": pairs.image_of[numbers].numpy(),
        "group": pairs.text[numbers].numpy(),
        "asked": torch.stack([chosen, texts]).numpy(),
        "found": torch.stack([each.indices for each in best]).numpy(),
        "cosine": torch.stack([each.values for each in best]).numpy(),
    }
