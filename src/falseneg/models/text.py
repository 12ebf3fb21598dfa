"""Texts: the text transformer and the tokenizer of open_clip, and what is missing where open_clip is not installed."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from falseneg.errors import UserError

Tokenizer = Callable[[Sequence[str]], Tensor]
"""n texts to (n, L) int64 numbers of tokens; what is longer than L is cut."""


def open_clip(part: str = "") -> Any:
    """The open_clip package, or a part of it: loaded when first used, for it takes seconds.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(f"open_clip{part}")
    except ImportError as error:
        raise UserError(
            f"open_clip is needed, and cannot be imported ({error}); pip install 'falseneg[image-text]'"
        ) from error


class TextEncoder(nn.Module):
    """A transformer of CLIP's form (Radford et al. 2021), small enough for small machines. Built by open_clip.

    Args:
        width: F, of the features, a multiple of ``heads``.
        layers: of the transformer, at least 1.
        heads: of its attention.
        context_length: L, the most tokens of a text, its start and its end included; further ones are cut off.

    Attributes:
        feature_dim: F.

    Raises:
        UserError: a number is outside its range, or open_clip is not installed.
    """

    def __init__(self, width: int = 256, layers: int = 4, heads: int = 4, context_length: int = 32) -> None:
        super().__init__()
        for name, value, least in (("layers", layers, 1), ("heads", heads, 1), ("context_length", context_length, 3)):
            if value < least:
                raise UserError(f"TextEncoder: {name} is {value}; give at least {least}")
        if width < 1 or width % heads:
            raise UserError(f"TextEncoder: width is {width}; give a multiple of heads ({heads})")
        self.feature_dim, self.context_length = width, context_length
        self.tokenize = CutTokenizer(open_clip(".tokenizer").SimpleTokenizer(context_length=context_length))
        self.sizes = {"width": width, "heads": heads, "layers": layers, "context_length": context_length}
        vocabulary = self.tokenize.tokenizer.vocab_size
        self.transformer = open_clip(".transformer").TextTransformer(
            **self.sizes, vocab_size=vocabulary, output_dim=width, proj_type="none"
        )

    def about(self) -> dict[str, int]:
        """The constructor arguments that build it again."""
        return dict(self.sizes)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, L) int64 tokens to (B, F) features."""
        features: Tensor = self.transformer(tokens)
        return features


class CutTokenizer:
    """A tokenizer of open_clip's that reads no more of a text than can matter.

    Args:
        tokenizer: texts to (n, L) numbers.
    """

    CHARACTERS = 64
    """Characters of a text that are read for each token: no usual word is longer, and a text of megabytes costs nothing."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """N texts to (n, L) int64."""
        most = self.CHARACTERS * int(self.tokenizer.context_length)
        tokens: Tensor = self.tokenizer([text[:most] for text in texts])
        return tokens.to(torch.int64)
