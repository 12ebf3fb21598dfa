"""A large contrastive batch on a small device: the gradient cache (Gao et al. 2021, arXiv 2101.06983)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from falseneg.methods.base import Embeddings, Views

if TYPE_CHECKING:
    from falseneg.train.step import Learner


class GradientCache:
    """Encodes a batch in pieces, so that only one piece's activations are ever kept.

    First all pieces are encoded without gradient. The loss sees their embeddings together, once, as it would see those
    of the whole batch, and leaves a gradient at each. `replay` then encodes each piece again, with the same random
    draws, and carries its embeddings' gradients into the encoder.

    The gradients are those of the batch encoded piece by piece; they equal those of the batch encoded at once but for
    BatchNorm, whose statistics are a piece's. Costs a second forward pass. BatchNorm's running statistics move once.

    Args:
        learner: encodes, and back-propagates.
        views: B images.
        pieces: n, at most B; sizes differ by one image at most.

    Attributes:
        embeddings: of the whole batch; its tensors are leaves that want a gradient.
    """

    def __init__(self, learner: Learner, views: Views, pieces: int) -> None:
        self.learner = learner
        cuts = [len(views) * piece // pieces for piece in range(pieces + 1)]
        self.slices = [slice(*ends) for ends in pairwise(cuts)]
        self.views, self.draws, encoded = views, [], []
        with torch.no_grad():
            for images in self.slices:
                self.draws.append(random_state(views.main.device))
                encoded.append(learner.encode(views[images]))
        whole = Embeddings.cat(encoded)
        support = None if whole.support is None else whole.support.requires_grad_()
        self.embeddings = replace(whole, main=whole.main.requires_grad_(), support=support)

    def replay(self) -> None:
        """Carry the gradients at the embeddings into the encoder. The ranks' gradients are averaged once, at the end."""
        learner, embeddings = self.learner, self.embeddings
        of_main, of_support = embeddings.main.grad, embeddings.support.grad if embeddings.support is not None else None
        assert of_main is not None
        # Support views that only detect get no gradient, and need not be encoded again.
        views = self.views if of_support is not None else Views(self.views.main, (), self.views.sample)
        # Fabric scales what it propagates in float16, and has scaled these already.
        scaler = getattr(learner.fabric.strategy.precision, "scaler", None)
        scale = 1.0 if scaler is None else scaler.get_scale()
        for images, draws in zip(self.slices, self.draws, strict=True):
            more_to_come = images is not self.slices[-1]
            with (
                learner.fabric.no_backward_sync(learner.encoding, enabled=more_to_come),
                same_draws(draws, views.main.device),
                frozen_statistics(learner.method),
            ):
                piece = learner.encode(views[images], again=True)
                total = (piece.main * of_main[images]).sum()
                if piece.support is not None and of_support is not None:
                    total = total + (piece.support * of_support[images]).sum()
                learner.fabric.backward(total / scale)


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
