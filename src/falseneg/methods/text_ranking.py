"""Queries and documents: which texts of a batch each pair is compared with, in the terms of sentence-transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from falseneg.contrast import NOBODY, Contrast, Embedded, Space
from falseneg.methods.base import told_apart
from falseneg.statistics.gather import gather_rows

Direction = Literal["query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc", "positive_to_positive"]
JOINT = "joint"
"""The name of a contrast of more than one direction."""
# The side of the anchor, 0 for its query and 1 for its positive, and which columns are its candidates.
_BLOCKS = {
    "query_to_doc": (0, slice(1, None)),
    "query_to_query": (0, slice(0, 1)),
    "doc_to_query": (1, slice(0, 1)),
    "doc_to_doc": (1, slice(1, None)),
    "positive_to_positive": (1, slice(1, 2)),
}
DIRECTIONS = tuple(_BLOCKS)


@dataclass(frozen=True, eq=False)
class TextBatch:
    """B pairs with H hard negatives each, column by column: queries, positives, first hard negatives and so on.

    Attributes:
        columns: 2 + H times (B, D) unit rows.
        sample: (B,) int64, the data-set rows of the pairs; −1 for a pair that repeats no other.
        guide: 2 + H times (B, E) unit rows by another model, for the space "guide"; none without.
        same: 2 + H times (B, F) unit rows that are equal where the texts are, and far apart elsewhere, for the space
            "same text"; none without.
    """

    columns: Sequence[Tensor]
    sample: Tensor
    guide: Sequence[Tensor] = ()
    same: Sequence[Tensor] = ()


def contrast_names(directions: Sequence[Direction], jointly: bool) -> tuple[str, ...]:
    """The names of the contrasts that `contrast_texts` forms."""
    return ((JOINT,) if len(directions) > 1 else tuple(directions)) if jointly else tuple(directions)


def contrast_texts(batch: TextBatch, directions: Sequence[Direction], jointly: bool = True) -> list[Contrast]:
    """The comparisons of a batch: anchor b is pair b, the candidates are texts of all ranks' pairs.

    Several directions that share one denominator are one contrast. Where anchors are both queries and documents, rows
    hold the two side by side, and candidates are zero on the side that they are not compared with: exact, at twice the
    products. A pair's own texts are never its negatives, but for its own hard negatives as candidates of the query.

    Each contrast offers the spaces "query" and "document" (what is compared is the pair's query, or its document, with
    that of the candidate; a hard negative has no query, and scores 0), "guide" and "same text" (the score is 1 where
    the candidate is the anchor's own text, or its pair has the same query or document), and the parts "batch" and
    "hard" of the documents that queries are compared with.

    Args:
        batch: the texts of this rank.
        directions: from the anchors to their candidates, as `MultipleNegativesRankingLoss` names them. The anchors of
            "doc_to_doc" are the positives, its candidates the hard negatives, too; those of "positive_to_positive", as
            `GISTEmbedLoss` has it, are only the positives.
        jointly: one denominator for all directions, or a contrast for each, which share the loss in equal parts.
    """
    groups = [tuple(directions)] if jointly else [(each,) for each in directions]
    names = contrast_names(directions, jointly)
    everyone = _gathered(batch)
    return [_contrast(name, group, batch, everyone, 1 / len(groups)) for name, group in zip(names, groups, strict=True)]


def _gathered(batch: TextBatch) -> TextBatch:
    """The same of all ranks."""
    columns, guide, same = ([gather_rows(each) for each in some] for some in (batch.columns, batch.guide, batch.same))
    return TextBatch(columns, gather_rows(told_apart(batch.sample)), guide, same)


def _contrast(
    name: str, directions: Sequence[Direction], batch: TextBatch, everyone: TextBatch, weight: float
) -> Contrast:
    blocks = _blocks(directions, len(batch.columns))
    sample = told_apart(batch.sample)
    # A hard negative is nobody to a query, but belongs to its own pair where documents are told apart.
    nobody = torch.full_like(everyone.sample, NOBODY)
    shown = torch.cat([nobody if side == 0 and column > 1 else everyone.sample for side, column in blocks])
    own = (batch.columns[0] * batch.columns[1]).sum(dim=1)
    # Where documents are anchors, too, the own pair is in the denominator once for each side.
    paired = [own for each in directions if each in ("query_to_doc", "doc_to_query")]
    return Contrast(
        name,
        Embedded(_anchors(batch.columns, blocks), sample),
        Embedded(_candidates(everyone.columns, blocks), shown),
        torch.stack(paired, dim=1),
        _spaces(batch, everyone, blocks),
        _parts(directions, blocks, len(everyone.sample)),
        weight,
    )


def candidate_kinds(contrast: Contrast, directions: Sequence[Direction], columns: int) -> list[tuple[Direction, int]]:
    """What the candidates of a contrast of `contrast_texts` are: the direction and the text column, block after block.

    Each block has one candidate for each pair of all ranks, rank after rank.
    """
    group = directions if contrast.name == JOINT else [each for each in directions if each == contrast.name]
    return [(each, column) for each in group for column in range(columns)[_BLOCKS[each][1]]]


def _blocks(directions: Sequence[Direction], columns: int) -> list[tuple[int, int]]:
    """The side of the anchors and the column of the candidates, block after block."""
    return [(_BLOCKS[each][0], column) for each in directions for column in range(columns)[_BLOCKS[each][1]]]


def _anchors(columns: Sequence[Tensor], blocks: Sequence[tuple[int, int]]) -> Tensor:
    """(B, D) of the one side, or (B, 2 D) of both."""
    return torch.cat([columns[side] for side in sorted({side for side, _ in blocks})], dim=1)


def _candidates(columns: Sequence[Tensor], blocks: Sequence[tuple[int, int]]) -> Tensor:
    """(M, D), or (M, 2 D) where the anchors have both sides."""
    if len({side for side, _ in blocks}) == 1:
        return torch.cat([columns[column] for _, column in blocks])
    zeros = torch.zeros_like(columns[0])
    rows = [(columns[column], zeros) if side == 0 else (zeros, columns[column]) for side, column in blocks]
    return torch.cat([torch.cat(row, dim=1) for row in rows])


def _spaces(batch: TextBatch, everyone: TextBatch, blocks: Sequence[tuple[int, int]]) -> Mapping[str, Space]:
    each = torch.arange(len(batch.sample), device=batch.sample.device)

    def of(texts: TextBatch) -> tuple[list[Tensor], list[Tensor]]:
        """The query and the document of each candidate's pair; the second is the candidate itself if it is one."""
        columns = [column.detach() for column in texts.columns]
        queries = [columns[0] if column < 2 else torch.zeros_like(columns[0]) for _, column in blocks]
        return queries, [columns[max(column, 1)] for _, column in blocks]

    sides = zip(("query", "document"), (0, 1), of(everyone), strict=True)
    spaces = {name: Space(batch.columns[side].detach()[:, None], each, torch.cat(rows)) for name, side, rows in sides}
    if batch.guide:
        positives = (batch.guide[0] * batch.guide[1]).sum(dim=1)
        queries = _anchors(batch.guide, blocks)[:, None]
        spaces["guide"] = Space(queries, each, _candidates(everyone.guide, blocks), positives)
    if batch.same:
        query, document = batch.same[0], batch.same[1]
        none = torch.zeros_like(query)
        queries = torch.stack([torch.cat([document, none], dim=1), torch.cat([none, query], dim=1)], dim=1)
        of_pairs = [
            torch.cat([everyone.same[max(column, 1)], everyone.same[0] * (column < 2)], dim=1) for _, column in blocks
        ]
        spaces["same text"] = Space(queries, each, torch.cat(of_pairs))
    return spaces


def _parts(directions: Sequence[Direction], blocks: Sequence[tuple[int, int]], pairs: int) -> dict[str, slice]:
    """Ranges of candidates: the positives and the hard negatives of those that queries are compared with."""
    places = [place for place, (side, column) in enumerate(blocks) if side == 0 and column > 0]
    if "query_to_doc" not in directions:
        return {}
    return {
        "batch": slice(places[0] * pairs, (places[0] + 1) * pairs),
        "hard": slice((places[0] + 1) * pairs, (places[-1] + 1) * pairs),
    }
