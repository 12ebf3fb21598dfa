"""A model that only helps to detect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import batch_to_device
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import PreTrainedTokenizerBase

from falseneg.errors import UserError
from falseneg.rules import at_least_float32
from falseneg.sentence_transformers.same_text import tokens_of


class Guide(nn.Module):
    """Embeds what another model is trained with; reads its tokens, or the texts that they stand for.

    Args:
        encoder: the guide.
        trained: the model whose tokens it is given.

    Raises:
        UserError: the two have different tokenizers, and the trained model's cannot turn tokens into texts.
    """

    def __init__(self, encoder: SentenceTransformer, trained: SentenceTransformer) -> None:
        super().__init__()
        self.encoder = encoder
        ours, theirs = encoder.tokenizer, trained.tokenizer
        known = all(isinstance(each, PreTrainedTokenizerBase) for each in (ours, theirs))
        same = known and ours.get_vocab() == theirs.get_vocab() and encoder.max_seq_length >= trained.max_seq_length
        if not known:
            raise UserError(
                "FalseNegativeRankingLoss: a guide works with models whose tokenizers are of transformers; those of the model "
                f"and of the guide are {type(theirs).__name__} and {type(ours).__name__}"
            )
        self._decode = None if same else theirs.batch_decode

    @torch.no_grad()
    def forward(self, features: Sequence[Mapping[str, Any]], size: int) -> list[Tensor]:
        """(B, E) unit rows of each column, without gradient.

        Args:
            features: of each column, as the trained model is given them; not changed.
            size: texts at a time; 0 for a column at once.

        Raises:
            UserError: other tokens than the guide's own are not padded.
        """
        self.encoder.eval()
        columns = []
        for column in features:
            rows = torch.cat([self._embed(piece) for piece in _pieces(column, size)])
            columns.append(normalize(at_least_float32(rows), dim=1))
        return columns

    def _embed(self, features: dict[str, Any]) -> Tensor:
        if self._decode is not None:
            if tokens_of(features) is None:
                raise UserError(
                    "FalseNegativeRankingLoss: the guide has another tokenizer than the model, and needs padded tokens to be "
                    "turned into texts again; give a guide with the model's tokenizer"
                )
            texts = self._decode(features["input_ids"], skip_special_tokens=True)
            features = batch_to_device(self.encoder.preprocess(texts), self.encoder.device)
        embeddings: Tensor = self.encoder(features)["sentence_embedding"]
        return embeddings


def _pieces(column: Mapping[str, Any], size: int) -> list[dict[str, Any]]:
    """Copies of a column's features, which a model fills in, in pieces of that size; 0 for the whole."""
    if not size or tokens_of(column) is None:
        return [dict(column)]
    rows = len(column["input_ids"])
    return [
        {
            name: each[start : start + size] if isinstance(each, Tensor) and each.ndim and len(each) == rows else each
            for name, each in column.items()
        }
        for start in range(0, rows, size)
    ]
