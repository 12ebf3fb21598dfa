"""What a run will take, found before its first epoch by trying a few images."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from falseneg.batch import Batch
from falseneg.methods.base import Method
from falseneg.train.gradient_cache import frozen_statistics

PASSING = 1.25
"""The peak is about a quarter above what is kept: results and gradients that pass by (measured on two ResNets)."""


@dataclass(frozen=True)
class Estimate:
    """A rough forecast.

    Attributes:
        memory: bytes for weights, gradients, the optimiser, the views and what a backward pass keeps.
        seconds_per_image: to encode and back-propagate all views of one image.
    """

    memory: int
    seconds_per_image: float


def estimate(method: Method, batch: Batch, images: int, pieces: int) -> Estimate:
    """Encode a few images forward and backward, twice, and scale up. Leaves weights, statistics and draws as they were.

    Args:
        method: on its device.
        batch: a few images, on that device.
        images: in a step, on this device.
        pieces: of the gradient cache; only one piece's activations are kept.
    """
    kept = 0
    parameters = {p.data_ptr() for p in method.parameters()}
    seen: set[int] = set()

    def measure(tensor: Tensor) -> Tensor:
        nonlocal kept
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen and tensor.data_ptr() not in parameters:
            seen.add(storage.data_ptr())
            kept += storage.nbytes()
        return tensor

    devices = [batch.index.device] if batch.index.device.type == "cuda" else []
    with torch.random.fork_rng(devices), frozen_statistics(method):
        with saved_tensors_hooks(measure, lambda tensor: tensor):
            _encode_and_back(method, batch)
        started = time.perf_counter()
        _encode_and_back(method, batch)
        seconds = time.perf_counter() - started
    of_image = kept / len(batch)
    of_views = sum(stream.nbytes for stream in batch.streams.values()) / len(batch)
    # Weights, gradients, and two numbers for each weight in the optimiser; what is not trained is only there.
    weights = sum(p.nbytes * (4 if p.requires_grad else 1) for p in method.parameters())
    weights += sum(buffer.nbytes for buffer in method.buffers())
    memory = weights + images * of_views + PASSING * -(-images // pieces) * of_image
    return Estimate(int(memory), seconds / len(batch) * (4 / 3 if pieces > 1 else 1))


def _encode_and_back(method: Method, batch: Batch) -> None:
    embeddings = method.encode(batch)
    torch.stack([embeddings.rows[name].sum() for name in method.with_gradient]).sum().backward()
    for parameter in method.parameters():
        parameter.grad = None
    if batch.index.device.type == "cuda":
        torch.cuda.synchronize(batch.index.device)
