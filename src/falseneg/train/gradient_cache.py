"""A large contrastive batch on a small device: the gradient cache (Gao et al. 2021, arXiv 2101.06983)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from falseneg.batch import Batch, Embeddings

if TYPE_CHECKING:
    from falseneg.train.step import Learner


class GradientCache:
    """Encodes a batch in pieces, so that only one piece's activations are ever kept.

    First all pieces are encoded without gradient. The loss sees their embeddings together, once, as it would see those
    of the whole batch, and leaves a gradient at each. `replay` then encodes each piece again, with the same random
    draws, and carries its embeddings' gradients into the encoder.

    The gradients are those of the batch encoded piece by piece; they equal those of the batch encoded at once except for
    BatchNorm, whose statistics are a piece's. Costs a second forward pass. BatchNorm's running statistics move once.

    Args:
        learner: encodes, and back-propagates.
        batch: B items.
        pieces: n, at most B; sizes differ by one item at most.

    Attributes:
        embeddings: of the whole batch; those that learn are leaves that want a gradient.
    """

    def __init__(self, learner: Learner, batch: Batch, pieces: int) -> None:
        self.learner, self.device = learner, batch.index.device
        self.pieces, self.draws, encoded = batch.pieces(pieces), [], []
        with torch.no_grad():
            for piece in self.pieces:
                self.draws.append(random_state(self.device))
                encoded.append(learner.encode(piece))
        self.embeddings = Embeddings.cat(encoded)
        for name in learner.method.with_gradient:
            self.embeddings.rows[name].requires_grad_()

    def replay(self) -> None:
        """Carry the gradients at the embeddings into the encoder. The ranks' gradients are averaged once, at the end.

        Those of sharded weights are averaged piece by piece: until then each rank would hold them in one piece.
        """
        learner, rows = self.learner, self.embeddings.rows
        gradients = {name: rows[name].grad for name in learner.method.with_gradient}
        # Fabric scales what it propagates in float16, and has scaled these already.
        scaler = getattr(learner.fabric.strategy.precision, "scaler", None)
        scale = 1.0 if scaler is None else scaler.get_scale()
        start, sharded = 0, learner.blank is not None
        for piece, draws in zip(self.pieces, self.draws, strict=True):
            items, start = slice(start, start + len(piece)), start + len(piece)
            with (
                learner.fabric.no_backward_sync(learner.encoding, enabled=not sharded and piece is not self.pieces[-1]),
                same_draws(draws, self.device),
                frozen_statistics(learner.method),
            ):
                again = learner.encode(piece, again=True).rows
                products = [(again[name] * grad[items]).sum() for name, grad in gradients.items() if grad is not None]
                learner.fabric.backward(sum(products[1:], start=products[0]) / scale)


def random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    """The state of the generators that a network draws from: the CPU's and the device's."""
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


@contextlib.contextmanager
def same_draws(state: tuple[Tensor, Tensor | None], device: torch.device) -> Iterator[None]:
    """Draw again what was drawn after `random_state`; afterwards the generators stand where they stood."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.set_rng_state(state[0])
        if state[1] is not None:
            torch.cuda.set_rng_state(state[1], device)
        yield


@contextlib.contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """BatchNorm normalises by the batch, as in training, but its running statistics stay as they are."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    try:
        for norm in norms:
            norm.track_running_stats = False
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
