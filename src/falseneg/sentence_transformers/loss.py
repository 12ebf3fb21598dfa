"""A loss for sentence-transformers that skips false negatives."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.losses.gradcache import CachedLossMixin
from sentence_transformers.base.losses.merged_forward import embed_columns
from torch import Tensor
from torch.nn.functional import normalize
from transformers import PreTrainedTokenizerBase

from falseneg.clock import Clock
from falseneg.contrast import NOBODY, Contrast
from falseneg.detectors import Detector
from falseneg.errors import UserError
from falseneg.losses import Criterion, DropInLoss
from falseneg.methods.text_ranking import (
    DIRECTIONS,
    Direction,
    TextBatch,
    candidate_kinds,
    contrast_names,
    contrast_texts,
)
from falseneg.objectives import Objective
from falseneg.rules import at_least_float32
from falseneg.sentence_transformers.guide import Guide
from falseneg.sentence_transformers.hardness import Hardness
from falseneg.sentence_transformers.same_text import signs_of, tokens_of
from falseneg.sentence_transformers.suspects import Skipped, Suspects, Text
from falseneg.statistics.gather import formed, place_of_rank
from falseneg.strategy import ELIMINATE, Strategy, StrategyName

Features = list[dict[str, Any]]
ALL_NEGATIVES, IN_BATCH = "all_negatives", "in_batch_negatives"
"""The modes of hardness that the sum over all negatives allows."""


@dataclass(frozen=True, eq=False)
class _Call:
    """What a call knows beside the embeddings.

    Attributes:
        labels: (B,) int64 data-set rows of the pairs, where something is kept for each of them.
        tokens: (B, L) of each column, 0 for padding; none where the texts are not padded tokens.
        guide: (B, E) unit rows of each column, without gradient; none without a guide.
    """

    labels: Tensor | None
    tokens: Sequence[Tensor]
    guide: Sequence[Tensor]


class FalseNegativeRankingLoss(CachedLossMixin, DropInLoss):  # type: ignore[misc]
    """In-batch negatives without the false ones: instead of `MultipleNegativesRankingLoss` and `GISTEmbedLoss`.

    For a `SentenceTransformerTrainer`; columns are anchor, positive, and any number of hard negatives. Without a detector it is
    `MultipleNegativesRankingLoss` with its cosines, in value and gradient. With

    - ``RelativeToPositive(absolute_margin, space="guide")`` or ``relative_margin``, a guide, and the directions
      "query_to_doc", "query_to_query" and "positive_to_positive" it is `GISTEmbedLoss`; leave the second out for its
      ``contrast_anchors=False``, the third for ``contrast_positives=False``. Two things differ. `GISTEmbedLoss` keeps a text as a
      negative of *itself* where the guide's similarity of the pair is not below 1 + margin, which a negative margin
      makes likely; here it never is one. And on several devices it compares queries with those of its own device only.
    - ``RelativeToPositive(absolute_margin=-0.1)`` it has the mask of Qwen3-Embedding (2025, arXiv 2506.05176);
    - ``SameText()`` equal texts never are negatives.

    Any number of hard negatives is taken, in all of these. The matrix of all pairs is never stored. Texts of all
    devices are compared, with their gradients, unless told otherwise. In evaluation nothing is learned
    or counted, and where something is kept for each pair, whose rows are those of the training data, nothing is flagged.

    Args:
        model: the model that is trained.
        detector: which negatives are suspected to be false; None for none. It may compare in the spaces "query", "document",
            "guide" and "same text" of `contrast_texts`, and in the parts "batch" and "hard".
        strategy: what happens to them: a strategy or its name, such as "eliminate" or "attract".
        objective: what is minimised; None for `InfoNCE`.
        scale: what cosines are multiplied by, 1 / temperature.
        guide: a model that only helps to detect.
        directions: which texts are compared, as in `MultipleNegativesRankingLoss`, and "positive_to_positive".
        partition_mode: "joint" for one denominator, "per_direction" for one each.
        hardness_mode: as in `MultipleNegativesRankingLoss`, in the direction "query_to_doc": "all_negatives" or, where there are no
            hard negatives, "in_batch_negatives"; None for none. One more sweep of the matrix.
        hardness_strength: how much more hard negatives weigh there: each e^{strength · cosine}.
        mini_batch_size: texts that are embedded at a time, with a gradient cache; None embeds a column at once.
        pairs: how many pairs the data set has, for what keeps something for each; their rows are its column "label".
        gather_across_devices: compare with the texts of all devices; otherwise with those of the own device only, which is the default
            of `MultipleNegativesRankingLoss`.
        suspects: how many of the most similar flagged pairs to keep, for `write_suspects`; 0 for none, which saves a
            sweep of the matrix in each step.

    Raises:
        UserError: an argument is outside its range, a part needs to know how many pairs there are, or the guide's and the
            model's tokenizers do not go together.
    """

    item = "pair"
    rows_by = 'a column "label" with their rows in it, from 0'

    def __init__(
        self,
        model: SentenceTransformer,
        detector: Detector | None = None,
        strategy: Strategy | StrategyName = ELIMINATE,
        objective: Objective | None = None,
        scale: float = 20.0,
        *,
        guide: SentenceTransformer | None = None,
        directions: Sequence[Direction] = ("query_to_doc",),
        partition_mode: str = "joint",
        hardness_mode: str | None = None,
        hardness_strength: float = 0.0,
        mini_batch_size: int | None = None,
        pairs: int | None = None,
        gather_across_devices: bool = True,
        suspects: int = 1000,
    ) -> None:
        if not scale > 0:
            raise UserError(f"FalseNegativeRankingLoss: scale is {scale}; give a number above 0")
        _check_directions(directions, partition_mode)
        for name, number, least in (("mini_batch_size", mini_batch_size, 1), ("suspects", suspects, 0)):
            if number is not None and number < least:
                raise UserError(f"FalseNegativeRankingLoss: {name} is {number}; give {least} or more")
        _check_hardness(hardness_mode, hardness_strength, objective, directions, partition_mode)
        if hardness_mode is not None and hardness_strength > 0:
            objective = Hardness(hardness_strength, 1 / scale)
        criterion = Criterion(detector, strategy, objective, 1 / scale)
        names = contrast_names(directions, partition_mode == "joint")
        super().__init__(criterion, pairs, None, names, pairs or 0)
        self.model, self.scale = model, scale
        self.guide = None if guide is None else Guide(guide, model)
        self.directions, self.partition_mode = tuple(directions), partition_mode
        self.hardness_mode, self.hardness_strength = hardness_mode, hardness_strength
        self.gather_across_devices = gather_across_devices
        self.uses_gradient_cache, self.mini_batch_size = mini_batch_size is not None, mini_batch_size or 0
        # Kept, because in training on several devices the model is wrapped.
        self._tokenizer = model.tokenizer if isinstance(model.tokenizer, PreTrainedTokenizerBase) else None
        self.clock = Clock(0, 1, 1)
        self.suspects = Suspects(suspects)

    def forward(self, sentence_features: Iterable[dict[str, Any]], labels: Tensor | None = None) -> Tensor:
        """The loss, averaged over the pairs of all devices.

        Args:
            sentence_features: of each column: queries, positives, first negatives, …
            labels: (B,) int64, the rows of the pairs, where ``pairs`` was given; ignored elsewhere.

        Raises:
            UserError: fewer than two columns; no labels where they are needed, or one beyond the data set; or the detector
                looks at what there is not.
        """
        features = list(sentence_features)
        if len(features) < 2:
            raise UserError(
                f"FalseNegativeRankingLoss: the data set has {len(features)} text columns; give at least two, anchors and "
                "positives, and hard negatives after them"
            )
        if self.hardness_mode == IN_BATCH and len(features) > 2:
            raise UserError(
                f"FalseNegativeRankingLoss: hardness_mode={IN_BATCH!r} leaves hard negatives out, which the sum over all negatives does "
                f"not tell apart, and the data set has {len(features) - 2} columns of them; give {ALL_NEGATIVES!r}"
            )
        # Before the model is run, which may change its features.
        known = [tokens for each in features if (tokens := tokens_of(each)) is not None]
        guide = [] if self.guide is None else self.guide(features, self.mini_batch_size)
        call = _Call(labels, known if len(known) == len(features) else [], guide)
        if self.uses_gradient_cache:
            # What is handed through as labels is ours alone to read.
            cached: Tensor = super().forward_cached(features, call)  # type: ignore[arg-type,operator]
            return cached
        return self.calculate_loss([[column] for column in embed_columns(self.model, features)], call)

    def calculate_loss(self, reps: list[list[Tensor]], labels: Any = None, *, with_backward: bool = False) -> Tensor:
        """The loss of embeddings, which come in pieces; called by the gradient cache of sentence-transformers."""
        call: _Call = labels
        columns = [normalize(at_least_float32(torch.cat(pieces)), dim=1) for pieces in reps]
        learning = torch.is_grad_enabled()
        # The rows of an evaluation are others than those that something is kept for.
        plain = not learning and self.rows is not None
        sample = torch.full((len(columns[0]),), NOBODY, device=columns[0].device)
        if self.rows is not None and learning:
            sample = self._samples(call.labels, columns[0])
        same = [signs_of(tokens).to(columns[0].dtype) for tokens in call.tokens]
        batch = TextBatch(columns, sample, call.guide, same)
        contrasts = formed(
            lambda: contrast_texts(batch, self.directions, self.jointly), across_devices=self.gather_across_devices
        )
        criterion = self.criterion
        if plain:
            objective = criterion.objective if isinstance(criterion.objective, Hardness) else None
            criterion = Criterion(objective=objective, temperature=1 / self.scale).to(sample.device)
        loss, judged = criterion.train(learning)(contrasts, self.clock)
        if learning:
            self.suspects.count(judged)
            if call.tokens:
                self.suspects.collect(judged, sample, call.tokens, self._kind_of_candidate(columns))
        if with_backward:
            loss.backward()
            loss = loss.detach()
        return loss

    def skipped(self) -> Skipped:
        """How many negatives were flagged on this device since training began or `FollowTraining` began an epoch.

        As a text: "skipped 120 of 4,032 negatives (2.98%)".
        """
        return self.suspects.skipped

    def write_suspects(self, path: str | Path) -> None:
        """Write the most similar of the flagged pairs, since the same moment, as a CSV or Parquet file.

        Columns: the direction; query and document of a pair, and the text that was flagged, as the tokenizer gives them
        back; the cosines of the flagged pair and of the positive, by the model and by the guide; and the rows of both
        pairs, −1 where they are unknown. On several devices: pairs of which both texts were on this one.

        Raises:
            UserError: the name ends neither in .csv nor in .parquet; the file cannot be written; or the texts are not tokens.
        """
        tokenizer = self._tokenizer
        if tokenizer is None:
            raise UserError(
                "FalseNegativeRankingLoss: the model's tokenizer cannot turn tokens into texts, so no pairs were kept"
            )

        def decode(texts: Sequence[Text]) -> list[str]:
            decoded: list[str] = tokenizer.batch_decode([list(text) for text in texts], skip_special_tokens=True)
            return decoded

        self.suspects.write(Path(path), decode)

    def get_config_dict(self) -> dict[str, Any]:
        """The arguments, for the model card."""
        return {
            "detector": type(self.criterion.detector).__name__,
            "strategy": str(self.criterion.strategy),
            "objective": type(self.criterion.objective).__name__,
            "scale": self.scale,
            "guide": None if self.guide is None else self.guide.encoder,
            "directions": self.directions,
            "partition_mode": self.partition_mode,
            "hardness_mode": self.hardness_mode,
            "hardness_strength": self.hardness_strength,
            "mini_batch_size": self.mini_batch_size or None,
            "gather_across_devices": self.gather_across_devices,
        }

    @property
    def jointly(self) -> bool:
        """Whether all directions share one denominator."""
        return self.partition_mode == "joint"

    def _kind_of_candidate(self, columns: Sequence[Tensor]) -> Callable[[Contrast, int], tuple[str, int, int] | None]:
        """What tells the direction, the text column and the pair of a candidate; None for one of another rank."""
        own = place_of_rank(columns[0]) if self.gather_across_devices else slice(0, len(columns[0]))

        def kind(contrast: Contrast, candidate: int) -> tuple[str, int, int] | None:
            kinds = candidate_kinds(contrast, self.directions, len(columns))
            block, pair = divmod(candidate, len(contrast.candidates) // len(kinds))
            direction, column = kinds[block]
            return (direction, column, pair - own.start) if own.start <= pair < own.stop else None

        return kind


def _check_directions(directions: Sequence[str], partition_mode: str) -> None:
    """Refuse what `MultipleNegativesRankingLoss` refuses.

    Raises:
        UserError: an unknown or a missing direction, or a denominator without a positive.
    """
    if isinstance(directions, str) or (unknown := set(directions) - set(DIRECTIONS)):
        given = directions if isinstance(directions, str) else ", ".join(sorted(unknown))
        raise UserError(
            f"FalseNegativeRankingLoss: directions holds {given!r}; give a tuple of some of {', '.join(DIRECTIONS)}"
        )
    if "query_to_doc" not in directions or len(set(directions)) < len(directions):
        raise UserError(
            f"FalseNegativeRankingLoss: directions are {tuple(directions)}; give each once, and 'query_to_doc' among them"
        )
    if partition_mode not in ("joint", "per_direction"):
        raise UserError(
            f"FalseNegativeRankingLoss: partition_mode is {partition_mode!r}; give 'joint' or 'per_direction'"
        )
    alone = set(directions) - {"query_to_doc", "doc_to_query"}
    if partition_mode == "per_direction" and alone:
        raise UserError(
            f"FalseNegativeRankingLoss: {', '.join(sorted(alone))} has no positive, and so no loss by itself; give "
            "partition_mode='joint'"
        )


def _check_hardness(
    mode: str | None, strength: float, objective: Objective | None, directions: Sequence[str], partition_mode: str
) -> None:
    """Refuse a hardness that is none, or that the sum over all negatives does not allow.

    Raises:
        UserError: an unknown mode, a strength outside its range or without a mode, another objective, or one denominator for several
            directions.
    """
    owner = "FalseNegativeRankingLoss"
    if mode not in (None, ALL_NEGATIVES, IN_BATCH):
        raise UserError(
            f"{owner}: hardness_mode is {mode!r}; give {ALL_NEGATIVES!r} or, where there are no hard negatives, {IN_BATCH!r}"
        )
    if not (math.isfinite(strength) and strength >= 0):
        raise UserError(f"{owner}: hardness_strength is {strength}; give a number of at least 0")
    if mode is None and strength > 0:
        raise UserError(
            f"{owner}: hardness_strength is {strength}, but there is no hardness_mode; give {ALL_NEGATIVES!r}"
        )
    if mode is not None and objective is not None:
        raise UserError(
            f"{owner}: hardness_mode is InfoNCE's, and the objective is {objective}; leave one of the two out"
        )
    if mode is not None and partition_mode == "joint" and len(directions) > 1:
        raise UserError(
            f"{owner}: hardness_mode is of the direction 'query_to_doc', which does not stand alone in a joint denominator; give that "
            "direction only, or partition_mode='per_direction'"
        )
