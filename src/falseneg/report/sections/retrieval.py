"""Test images with the texts that they find first, and texts with their images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from falseneg.foreign.archives import load_arrays
from falseneg.report.arrays import are, check
from falseneg.report.comparison import ComparisonRecord
from falseneg.report.pictures import Picture, PictureMaker, Thumbnails, read_thumbnails
from falseneg.report.read import File, RunRecord
from falseneg.report.section import Section
from falseneg.train import names


@dataclass(frozen=True, eq=False)
class Examples:
    """Queries of both directions and what they find.

    Attributes:
        pictures: of all images that are shown.
        texts: (t,) the numbers of the captions that are shown, rising.
        words: the captions.
        image_of: (t,) which image each is of.
        group: (t,) equal for captions of the same words.
        asked: (2, E) images, and captions, that are queries.
        found: (2, E, K) captions, and images, the most similar first.
        cosine: (2, E, K) of these with the query.
    """

    pictures: Thumbnails
    texts: np.ndarray
    words: list[str]
    image_of: np.ndarray
    group: np.ndarray
    asked: np.ndarray
    found: np.ndarray
    cosine: np.ndarray


def _read(path: Path, _: RunRecord) -> Examples:
    arrays = load_arrays(path)
    texts, words, image_of, group = (arrays[name] for name in ("texts", "words", "image_of", "group"))
    asked, found, cosine = (arrays[name] for name in ("asked", "found", "cosine"))
    check(are(texts, "iu") and are(words, "U", len(texts)))
    check(are(image_of, "iu", len(texts)) and are(group, "iu", len(texts)))
    check(are(asked, "iu", 2, 2) and are(found, "iu", 2, 3) and are(cosine, "f", 2, 3) and cosine.shape == found.shape)
    check(asked.shape == found.shape[:2])
    pictures = read_thumbnails(path)
    for side, known in ((0, pictures.rows), (1, texts)):
        check(bool(np.isin(asked[side], known).all() and np.isin(found[1 - side], known).all()))
    return Examples(pictures, texts, [str(text) for text in words], image_of, group, asked, found, cosine)


RETRIEVAL = File(names.RETRIEVAL, _read)


@dataclass(frozen=True)
class Words:
    """A caption that was found, and whether it is the image's, or has the same words as one that is."""

    text: str
    right: bool
    score: float


@dataclass(frozen=True)
class Retrieved:
    """Both directions: each query with what it finds."""

    of_images: list[tuple[Picture, list[Words]]]
    of_texts: list[tuple[str, list[Picture]]]


def _of_run(run: RunRecord) -> Retrieved | None:
    held = run.get(RETRIEVAL)
    if held is None:
        return None
    maker, place = PictureMaker(held.pictures), {int(number): at for at, number in enumerate(held.texts)}
    groups: dict[int, set[int]] = {}
    for image, group in zip(held.image_of.tolist(), held.group.tolist(), strict=True):
        groups.setdefault(image, set()).add(group)
    of_images, of_texts = [], []
    for image, texts, scores in zip(
        held.asked[0].tolist(), held.found[0].tolist(), held.cosine[0].tolist(), strict=True
    ):
        own = groups.get(image, set())
        found = [
            Words(held.words[place[text]], int(held.group[place[text]]) in own, score)
            for text, score in zip(texts, scores, strict=True)
        ]
        of_images.append((maker.picture(image, "anchor"), found))
    for text, images, scores in zip(
        held.asked[1].tolist(), held.found[1].tolist(), held.cosine[1].tolist(), strict=True
    ):
        group = int(held.group[place[text]])
        verdicts = ["right" if group in groups.get(image, set()) else "wrong" for image in images]
        pictures = [maker.picture(*each) for each in zip(images, verdicts, scores, strict=True)]
        of_texts.append((held.words[place[text]], pictures))
    return Retrieved(of_images, of_texts)


def _of_comparison(record: ComparisonRecord) -> None:
    """Each run has its own page."""


SECTION = Section(65, "retrieval", "What finds what", "Retrieval", _of_run, _of_comparison, (RETRIEVAL,))
