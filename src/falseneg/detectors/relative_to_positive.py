"""A threshold relative to the positive: what is as similar as the positive is not a negative."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from falseneg.clock import Clock
from falseneg.contrast import Contrast, Space
from falseneg.detectors.base import Detector
from falseneg.detectors.guide import TABLES, check_one_for_each, read_embeddings
from falseneg.errors import UserError
from falseneg.facts import Facts
from falseneg.rules import AboveThreshold, PairRule, SameGroup


class RelativeToPositive(Detector):
    """Flags negatives that are about as similar to the anchor as its positive is, or more.

    Flagged is a negative whose cosine is strictly above s⁺ − ``absolute_margin``, or above s⁺ − ``relative_margin`` · |s⁺|;
    s⁺ is the mean cosine with the known positives. The names are those of sentence-transformers; NV-Retriever (Moreira
    et al. 2024, arXiv 2407.15831) calls the two TopK-MarginPos and TopK-PercPos, and finds a relative margin of 0.05
    (95%) best, for text. GISTEmbed (Solatorio 2024, arXiv 2402.16829) has a margin of 0 and takes the similarity of a
    guide model.

    In a ``space`` both similarities are those of the space. Two towers offer "image" and "text", where a pair's own image
    or text has a similarity of 1, and `PairLoss` a "guide". A negative margin flags only what is more similar than the
    positive by so much: Qwen3-Embedding (2025, arXiv 2506.05176) drops what scores above it by .1.

    With a guide, similarities are those of its embeddings, one for each row of the data set: of its image, or with two towers
    of its image or its text, in both directions. An image's similarity
    with its own positive is then 1, so that a margin of 0 flags nothing: give one. Costs no sweep of the matrix; with a
    guide, its embeddings are held in memory, and each pair takes one more product.

    Args:
        absolute_margin: how much less similar than the positive a flagged negative may be, from −2 to 2; if neither
            margin is given, 0.
        relative_margin: the same as a share of the positive's similarity, from 0 to below 1.
        guide: a file with the embeddings of the images to learn from, or of their texts, by another model: (rows, E)
            floating point, line i for row i of the data set, of any length, in a NumPy file (.npy) or a .safetensors file
            of one tensor; None compares with the encoder's own.
        space: the similarity to compare in, by name; None for the loss's own.

    Raises:
        UserError: both margins are given, or a guide and a space; one is outside its range; or the file is missing or holds no embeddings.
    """

    embeddings: Tensor | None

    def __init__(
        self,
        absolute_margin: float | None = None,
        relative_margin: float | None = None,
        guide: str | Path | None = None,
        space: str | None = None,
    ) -> None:
        super().__init__()
        if absolute_margin is not None and relative_margin is not None:
            raise UserError(
                f"RelativeToPositive: absolute_margin ({absolute_margin}) and relative_margin ({relative_margin}) "
                "both say where the threshold lies; give one"
            )
        if absolute_margin is not None and not -2 <= absolute_margin <= 2:
            raise UserError(
                f"RelativeToPositive: absolute_margin is {absolute_margin}; it is a difference of cosines, so give a "
                "number from -2 to 2"
            )
        if relative_margin is not None and not 0 <= relative_margin < 1:
            raise UserError(f"RelativeToPositive: relative_margin is {relative_margin}; give a share from 0 to below 1")
        if guide is not None and space is not None:
            raise UserError(
                f"RelativeToPositive: guide and space ({space!r}) both say what to compare; give one of them"
            )
        if guide is not None and not ((absolute_margin or 0) > 0 or relative_margin):
            raise UserError(
                "RelativeToPositive: under a guide an image is exactly as similar to its positive as to itself, so nothing "
                "is above a margin of 0; give absolute_margin or relative_margin above 0"
            )
        self.absolute_margin, self.relative_margin, self.guide = absolute_margin, relative_margin, guide
        self.space = space
        # Not in the checkpoint: they belong to the file.
        self.register_buffer("embeddings", None if guide is None else _read(Path(guide)), persistent=False)

    def prepare(self, facts: Facts) -> None:
        if self.embeddings is not None:
            check_one_for_each(self.embeddings, facts.rows, self.guide, "RelativeToPositive")

    @torch.no_grad()
    def flag(self, contrast: Contrast, clock: Clock) -> PairRule:
        if (space := contrast.space(self.space)) is not None:
            own = space.candidates.new_ones(()) if space.positives is None else space.positives
            return AboveThreshold(self._below(own), space)
        if self.embeddings is None:
            return AboveThreshold(self._below(contrast.positives.detach().mean(dim=1)))
        images, image_of = contrast.anchors.sample.unique(return_inverse=True)
        space = Space(self._of(images)[:, None], image_of, self._of(contrast.candidates.sample))
        return AboveThreshold(self._below(self.embeddings.new_ones(())), space) & _known(contrast)

    def _below(self, positive: Tensor) -> Tensor:
        """The threshold that belongs to a positive's similarity."""
        if self.relative_margin is not None:
            return positive - self.relative_margin * positive.abs()
        return positive - (self.absolute_margin or 0.0)

    def _of(self, sample: Tensor) -> Tensor:
        """(n, E) the guide's embeddings of samples; anything for nobody."""
        assert self.embeddings is not None
        return self.embeddings[sample.clamp(min=0)]


def _known(contrast: Contrast) -> SameGroup:
    """The rule that is true between samples that are somebody: the guide knows only those."""
    groups = (torch.where(each.sample < 0, -1, 0)[:, None] for each in (contrast.anchors, contrast.candidates))
    return SameGroup(*groups)


def _read(path: Path) -> Tensor:
    """(rows, E) unit embeddings of a file."""
    if not path.is_file() or path.suffix not in TABLES:
        raise UserError(
            f"RelativeToPositive: there is no file {path} of embeddings; give a .npy or .safetensors file as the guide"
        )
    embeddings = read_embeddings(path, "RelativeToPositive")
    return normalize(embeddings.float() if embeddings.element_size() < 4 else embeddings, dim=1)
