"""What was flagged while a loss trained: counted, and the most similar pairs kept for reading."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from operator import or_
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from falseneg.contrast import Contrast
from falseneg.errors import UserError
from falseneg.files import replacing
from falseneg.losses import Judged
from falseneg.rules import NoPairs, PairRule
from falseneg.statistics.measuring import most_similar_flagged

Text = tuple[int, ...]
"""The tokens of a text."""


class Skipped(NamedTuple):
    """How many negatives were flagged, and so skipped if the strategy eliminates them.

    Attributes:
        flagged: flagged negatives, of all anchors and steps.
        negatives: all negatives, flagged or not.
        emptied: anchors that had negatives, all of which were flagged: they learned nothing but their positive.
        anchors: all anchors.
    """

    flagged: int
    negatives: int
    emptied: int
    anchors: int

    @property
    def share(self) -> float:
        """The share of the negatives that was flagged, from 0 to 1."""
        return self.flagged / max(self.negatives, 1)

    def __str__(self) -> str:
        left = f"; {self.emptied:,} of {self.anchors:,} anchors had no negative left" if self.emptied else ""
        return f"skipped {self.flagged:,} of {self.negatives:,} negatives ({self.share:.2%}){left}"


class Pair(NamedTuple):
    """A suspected pair: the texts, where they came from, and how similar they are."""

    direction: str
    query: Text
    document: Text
    candidate: Text
    cosine: float
    positive_cosine: float
    guide_cosine: float | None
    guide_positive_cosine: float | None
    row: int
    candidate_row: int


class Suspects:
    """Counts what is flagged, and keeps the flagged pairs with the highest cosines, each once.

    Args:
        keep: how many pairs at most; 0 for none, which saves a sweep of the matrix in each step.
    """

    def __init__(self, keep: int) -> None:
        self.keep = keep
        self.clear()

    def clear(self) -> None:
        """Begin anew."""
        self._counts: Tensor | None = None
        self._pairs: dict[tuple[str, Text, Text, Text], Pair] = {}

    @property
    def skipped(self) -> Skipped:
        """The figures since the beginning. Waits for the device."""
        return Skipped(*(self._counts.tolist() if self._counts is not None else (0, 0, 0, 0)))

    @property
    def pairs(self) -> list[Pair]:
        """The pairs, the most similar first."""
        return sorted(self._pairs.values(), key=lambda pair: -pair.cosine)

    def count(self, judged: Sequence[Judged]) -> None:
        """Add the figures of a step, without waiting for the device."""
        for *_, stats in judged:
            emptied = ((stats.flagged == stats.count) & (stats.count > 0)).sum()
            anchors = torch.full_like(emptied, len(stats.count))
            counts = torch.stack([stats.flagged.sum(), stats.count.sum(), emptied, anchors])
            self._counts = counts if self._counts is None else self._counts + counts

    def collect(
        self,
        judged: Sequence[Judged],
        rows: Tensor,
        texts: Sequence[Tensor],
        kind: Callable[[Contrast, int], tuple[str, int, int] | None],
    ) -> None:
        """Take the most similar pairs of a step, of which both texts are on this rank.

        Args:
            judged: the contrasts of `contrast_texts`, and what was flagged in them.
            rows: (B,) int64 data-set rows of the pairs.
            texts: 2 + H times (B, L) tokens, 0 for padding.
            kind: the direction, text column and pair of a contrast's candidate; None for one of another rank.
        """
        if not self.keep:
            return
        full = len(self._pairs) >= self.keep
        lowest = min(pair.cosine for pair in self._pairs.values()) if full else -torch.inf
        on_host: list[Tensor] = []
        for contrast, rule in _one_rule_each(judged):
            anchor, column, cosine = most_similar_flagged(contrast, rule, self.keep)
            on_host = on_host or [column.cpu() for column in (rows, *texts)]
            numbers = _cosines(contrast, anchor, column, cosine)
            for i, j, values in zip(anchor.tolist(), column.tolist(), numbers, strict=True):
                if values[0] <= lowest or (found := kind(contrast, j)) is None:
                    continue
                direction, text, other = found
                row, query, document = (each[i] for each in on_host[:3])
                candidate_row, candidate = on_host[0][other], on_host[1 + text][other]
                words = _text(query), _text(document), _text(candidate)
                pair = Pair(direction, *words, *values, int(row), int(candidate_row))  # type: ignore[arg-type]
                self._pairs[pair[:4]] = pair
        self._pairs = {pair[:4]: pair for pair in self.pairs[: self.keep]}

    def write(self, path: Path, decode: Callable[[Sequence[Text]], list[str]]) -> None:
        """Write the pairs, a line each, the most similar first.

        Args:
            path: a file .csv or .parquet.
            decode: tokens to texts.

        Raises:
            UserError: it has another ending, or cannot be written.
        """
        import pyarrow as pa
        from pyarrow import csv, parquet

        if path.suffix not in (".csv", ".parquet"):
            raise UserError(f"the suspected pairs cannot be written to {path.name}; give a file .csv or .parquet")
        table: Mapping[str, list] = {name: [getattr(pair, name) for pair in self.pairs] for name in Pair._fields}
        words = {name: decode(table[name]) for name in ("query", "document", "candidate")}
        types = {"direction": pa.string(), **dict.fromkeys(words, pa.string())}
        types |= {name: pa.int64() if name.endswith("row") else pa.float64() for name in table if name not in types}
        content = pa.table({**table, **words}, schema=pa.schema(list(types.items())))
        with replacing(path) as file:
            (csv.write_csv if path.suffix == ".csv" else parquet.write_table)(content, file)


def _one_rule_each(judged: Sequence[Judged]) -> list[tuple[Contrast, PairRule]]:
    """The contrasts in which anything can be flagged, and what is flagged in any level."""
    rules: dict[Contrast, list[PairRule]] = {}
    for contrast, rule, _ in judged:
        if not isinstance(rule, NoPairs):
            rules.setdefault(contrast, []).append(rule)
    return [(contrast, reduce(or_, levels)) for contrast, levels in rules.items()]


def _cosines(
    contrast: Contrast, anchor: Tensor, column: Tensor, cosine: Tensor
) -> list[tuple[float, float, float | None, float | None]]:
    """Of each pair: its cosine, that of the anchor's positive, and both by the guide, if there is one."""
    positive = contrast.positives.detach()[anchor, 0]
    numbers: list[list[float] | list[None]] = [cosine.tolist(), positive.tolist()]
    guide = contrast.spaces.get("guide")
    if guide is None or guide.positives is None:
        numbers += [[None] * len(anchor)] * 2
    else:
        own = (guide.queries[anchor, 0] * guide.candidates[column]).sum(dim=1)
        numbers += [own.tolist(), guide.positives[anchor].tolist()]
    return list(zip(*numbers, strict=True))  # type: ignore[arg-type]


def _text(tokens: Tensor) -> Text:
    return tuple(token - 1 for token in tokens.tolist() if token)
