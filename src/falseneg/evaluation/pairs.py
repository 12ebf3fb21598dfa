"""How well images and texts find each other: retrieval, and classification by the names of the classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from falseneg.errors import UserError
from falseneg.evaluation.base import Measure
from falseneg.evaluation.features import evaluation_mode
from falseneg.statistics.scan import ranges

if TYPE_CHECKING:
    from falseneg.data.image_set import ImageSet
    from falseneg.methods.two_towers import TwoTowers

_TILE = 2**24
DEPTHS = (1, 5, 10)
PROMPTS = ("a photo of a {}.",)
"""The texts that stand for a class where no others are given."""


@dataclass(frozen=True, eq=False)
class PairSplit:
    """Embeddings of n images and of their m captions, and what is known of them.

    Attributes:
        images: (n, D) unit rows.
        texts: (m, D) unit rows of all captions.
        image_of: (m,) int64, which image each caption is of.
        text: (m,) int64: equal captions have equal numbers.
        labels: (n,) int64, −1 where unknown; None where there are none.
        classes: (C, D) unit rows, one for each class's name; None likewise.
    """

    images: Tensor
    texts: Tensor
    image_of: Tensor
    text: Tensor
    labels: Tensor | None = None
    classes: Tensor | None = None


class PairEvaluation(Measure):
    """One figure of two towers, on images and captions that were not trained on."""

    def figures(self, pairs: PairSplit) -> dict[str, float | None]:
        """The figures by the names in `keys`; None where these data do not allow one."""
        raise NotImplementedError


@dataclass(frozen=True)
class Retrieval(PairEvaluation):
    """Recall at 1, 5 and 10, from images to texts and back.

    An image is found by a text, and a text by an image, if they belong together and at most k − 1 others are more similar;
    of equally similar ones the earlier comes first. An image with several captions counts as right with any of them. The
    figures that begin with "shared" count a caption as every image's that has the same words: where captions are shared by
    images, the plain ones punish an answer that is right.
    """

    key: ClassVar[str] = "retrieval"
    short: ClassVar[str] = "retrieval"
    note: ClassVar[str] = "Test images and captions that find each other first, the mean of both directions."

    @property
    def title(self) -> str:
        return "retrieval recall at 1"

    @property
    def keys(self) -> tuple[str, ...]:
        kinds = [f"{shared}{way}" for shared in ("", "shared_") for way in ("image_to_text", "text_to_image")]
        return (self.key, *(f"{kind}_{k}" for kind in kinds for k in DEPTHS))

    def figures(self, pairs: PairSplit) -> dict[str, float | None]:
        figures: dict[str, float | None] = {}
        own = torch.stack([pairs.image_of, torch.arange(len(pairs.texts))], dim=1)
        for shared, belonging in (("", own), ("shared_", _with_equal_captions(own, pairs.text))):
            for way, queries, candidates, order in (
                ("image_to_text", pairs.images, pairs.texts, [0, 1]),
                ("text_to_image", pairs.texts, pairs.images, [1, 0]),
            ):
                rank = ranks(queries, candidates, belonging[:, order])
                rank = rank[rank >= 0]
                figures |= {f"{shared}{way}_{k}": float((rank < k).double().mean()) for k in DEPTHS}
        first = [figures[f"{way}_1"] or 0.0 for way in ("image_to_text", "text_to_image")]
        return {self.key: sum(first) / 2, **figures}


@dataclass(frozen=True)
class ZeroShot(PairEvaluation):
    """Images classified by the class whose name, put into prompts, is the most similar (CLIP, Radford et al. 2021)."""

    key: ClassVar[str] = "zero_shot"
    short: ClassVar[str] = "zero-shot"
    note: ClassVar[str] = "Test images that are most similar to the name of their class."

    @property
    def title(self) -> str:
        return "zero-shot classification"

    def figures(self, pairs: PairSplit) -> dict[str, float | None]:
        if pairs.labels is None or pairs.classes is None or not bool((pairs.labels >= 0).any()):
            return {self.key: None}
        known = pairs.labels >= 0
        right = (pairs.images[known] @ pairs.classes.T).argmax(dim=1) == pairs.labels[known]
        return {self.key: float(right.double().mean())}


PAIR_EVALUATIONS: tuple[PairEvaluation, ...] = (Retrieval(), ZeroShot())
"""What is measured of two towers. A further one is its class and its place here."""


def pair_figures(pairs: PairSplit) -> dict[str, float | None]:
    """All figures of `PAIR_EVALUATIONS`."""
    figures: dict[str, float | None] = {}
    for each in PAIR_EVALUATIONS:
        figures |= each.figures(pairs)
    return figures


def pair_split(
    images: Tensor, image_set: ImageSet, towers: TwoTowers, prompts: Sequence[str], device: torch.device | str
) -> PairSplit:
    """What two towers make of captioned images whose embeddings are known.

    Args:
        images: (n, D) unit rows of the images, on the CPU.
        image_set: the n images, with captions.
        towers: on ``device`` already.
        prompts: texts that stand for a class, with {} where its name goes.
        device: where the towers lie.

    Raises:
        UserError: there is no caption, or one cannot be read.
    """

    def embed(texts: Sequence[str]) -> Tensor:
        return towers.embed_texts(towers.tokenize(texts).to(device))

    with evaluation_mode(towers):
        texts = embed_captions(image_set, embed)
        known = image_set.labels is not None and image_set.class_names is not None
        classes = embed_classes(image_set.class_names or (), prompts, embed) if known else None
    return PairSplit(images, *texts, image_set.labels, classes)


def ranks(queries: Tensor, candidates: Tensor, belonging: Tensor) -> Tensor:
    """(q,) int64: how many candidates come before the first that belongs to each query; −1 where none does.

    Args:
        queries: (q, D) unit rows.
        candidates: (c, D) unit rows.
        belonging: (K, 2) int64 pairs (query, candidate), each once.
    """
    belonging = belonging[belonging[:, 0].argsort(stable=True)]
    number = torch.bincount(belonging[:, 0], minlength=len(queries))
    first = number.cumsum(0) - number
    found = []
    for rows in torch.arange(len(queries)).split(max(1, _TILE // max(1, len(candidates)))):
        similar = queries[rows] @ candidates.T
        entry, place = ranges(first[rows], number[rows])
        column = belonging[place, 1]
        own = torch.zeros_like(similar, dtype=torch.bool).index_put_((entry, column), torch.tensor(True))
        best, at = similar.masked_fill(~own, -torch.inf).max(dim=1)
        earlier = torch.arange(len(candidates)) < at[:, None]
        before = (similar > best[:, None]) | ((similar == best[:, None]) & earlier)
        found.append(torch.where(own.any(dim=1), before.sum(dim=1), -1))
    return torch.cat(found)


def _with_equal_captions(own: Tensor, text: Tensor) -> Tensor:
    """(K, 2) pairs (image, caption), with every caption of the same words as one of the image's own."""
    number, order = torch.bincount(text), text.argsort(stable=True)
    first = number.cumsum(0) - number
    of_own = text[own[:, 1]]
    entry, place = ranges(first[of_own], number[of_own])
    return torch.stack([own[entry, 0], order[place]], dim=1).unique(dim=0)


def embed_captions(
    image_set: ImageSet, embed: Callable[[Sequence[str]], Tensor], batch_size: int = 256
) -> tuple[Tensor, Tensor, Tensor]:
    """All captions of a set, image by image.

    Args:
        image_set: with captions.
        embed: texts to (n, D) unit rows, on any device.
        batch_size: captions at a time.

    Returns:
        ``texts``, ``image_of`` and ``text`` of a `PairSplit`, on the CPU.

    Raises:
        UserError: there is no caption, or one cannot be read.
    """
    image_of: list[int] = []
    numbers: dict[str, int] = {}
    text: list[int] = []
    rows: list[Tensor] = []
    for batch in _batches(image_set, batch_size):
        image_of += [row for row, _ in batch]
        text += [numbers.setdefault(caption.strip(), len(numbers)) for _, caption in batch]
        rows.append(embed([caption for _, caption in batch]).float().cpu())
    if not rows:
        raise UserError("the images to measure retrieval on have no captions; give a captioned data set")
    return torch.cat(rows), torch.tensor(image_of), torch.tensor(text)


def _batches(image_set: ImageSet, batch_size: int) -> Iterator[list[tuple[int, str]]]:
    batch: list[tuple[int, str]] = []
    for row in range(len(image_set)):
        for caption in image_set.captions(row):
            batch.append((row, caption))
            if len(batch) == batch_size:
                yield batch
                batch = []
    if batch:
        yield batch


def embed_classes(names: Sequence[str], prompts: Sequence[str], embed: Callable[[Sequence[str]], Tensor]) -> Tensor:
    """(C, D) unit rows: the mean of the embeddings of each name in all prompts.

    Args:
        names: of the C classes.
        prompts: texts with {} where the name stands.
        embed: texts to (n, D) unit rows.
    """
    of_prompts = [
        torch.cat([embed([prompt.replace("{}", name) for name in part]).float().cpu() for part in _parts(names, 256)])
        for prompt in prompts
    ]
    return normalize(torch.stack(of_prompts).mean(dim=0), dim=1)


def _parts(names: Sequence[str], length: int) -> Iterator[Sequence[str]]:
    return (names[start : start + length] for start in range(0, len(names), length))
