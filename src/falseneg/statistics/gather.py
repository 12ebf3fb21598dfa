"""All ranks' rows with their gradients, and means over all ranks. Alone, each of these is the identity."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from falseneg.contrast import Contrast, Embedded

_apart = ContextVar("apart", default=False)
"""Whether this process goes by its own rows only."""


def world_size() -> int:
    """The number of processes that train together; 1 when alone."""
    together = dist.is_available() and dist.is_initialized() and not _apart.get()
    return dist.get_world_size() if together else 1


def rank() -> int:
    """The number of this process among those that train together, from 0; 0 when alone."""
    return dist.get_rank() if world_size() > 1 else 0


def formed(contrasts: Callable[[], list[Contrast]], across_devices: bool) -> list[Contrast]:
    """The contrasts that a function forms.

    Args:
        contrasts: forms those of this rank's anchors.
        across_devices: with the candidates of all ranks; otherwise with those of this rank only, as if it were alone.
    """
    if across_devices:
        return contrasts()
    with apart():
        return [replace(contrast, gathered=False) for contrast in contrasts()]


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """In it this process is alone for all that is asked of this file."""
    token = _apart.set(True)
    try:
        yield
    finally:
        _apart.reset(token)


def from_first_rank(tensor: Tensor) -> Tensor:
    """The first rank's tensor, on every rank; the others give one of its shape and type. Without gradient."""
    if world_size() == 1:
        return tensor
    gpu = dist.get_backend() == "nccl"  # which knows no tensors outside a GPU
    sent = tensor.detach().to("cuda" if gpu else "cpu").contiguous().clone()
    dist.broadcast(sent, src=0)
    return sent.to(tensor.device)


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The sum of all ranks' tensors of one shape, on every rank. Without gradient."""
    if world_size() == 1:
        return tensor
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total


def gather(embedded: Embedded) -> Embedded:
    """The rows of all ranks, rank after rank, with their gradients; ranks may hold different numbers of rows.

    The gradient of a row is the sum of what every rank's loss asks of it. Alone, the argument itself comes back, so
    that ``candidates is anchors`` still says that the matrix is symmetric.
    """
    if world_size() == 1:
        return embedded
    row = None if embedded.row is None else gather_rows(embedded.row)
    return Embedded(gather_rows(embedded.z), gather_rows(embedded.sample), row)


def gather_rows(rows: Tensor) -> Tensor:
    """(n, …) of this rank to (sum of n, …) of all ranks, with gradient."""
    if world_size() == 1:
        return rows
    gathered: Tensor = _GatherRows.apply(rows)
    return gathered


def order_of_one(rows: Tensor) -> Tensor:
    """(sum of n,) int64: puts what `gather_rows` brings together in the order in which one process would hold it.

    The ranks of a batch take its images in turn (`EpochSampler`): the first of each, then the second of each, …
    """
    return gather_rows(torch.arange(len(rows), device=rows.device)).argsort(stable=True)


def place_of_rank(rows: Tensor) -> slice:
    """Where this rank's (n, …) rows stand among those that `gather_rows` brings together."""
    if world_size() == 1:
        return slice(0, len(rows))
    counts = gather_rows(torch.tensor([len(rows)], device=rows.device)).tolist()
    first = sum(counts[: rank()])
    return slice(first, first + len(rows))


def global_mean(losses: Tensor) -> Tensor:
    """The mean over the anchors of all ranks, scaled for gradients that are averaged over the ranks.

    With uneven counts the mean of the ranks' means is not the mean. What comes back on one rank is
    world size · (its sum) / (count of all): its average over the ranks is the mean, in value and in gradient.

    Args:
        losses: (N,) of this rank.
    """
    if world_size() == 1:
        return losses.mean()
    count = torch.tensor(len(losses), device=losses.device)
    dist.all_reduce(count)
    return losses.sum() * world_size() / count


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        counts = [torch.empty(1, dtype=torch.int64, device=rows.device) for _ in range(world_size())]
        dist.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
        ctx.counts = [int(count) for count in counts]
        # all_gather wants equal shapes: pad to the longest, and cut again.
        padded = rows.new_zeros((max(ctx.counts), *rows.shape[1:]))
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in ctx.counts]
        dist.all_gather(parts, padded)
        if not rows.is_floating_point():
            ctx.set_materialize_grads(False)
        return torch.cat([part[:count] for part, count in zip(parts, ctx.counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, grad_all: Tensor | None) -> Tensor | None:
        return None if grad_all is None else _SumRows.apply(grad_all, ctx.counts)


def _reduce_scatter(rows: Tensor, counts: list[int]) -> Tensor:
    """(sum of counts, …) of each rank to this rank's (n, …) of their sum: a rank is sent its own rows and no others."""
    most = max(counts)
    padded = rows.new_zeros((len(counts) * most, *rows.shape[1:]))  # all shares have to be of one size
    for place, share in enumerate(rows.split(counts)):
        padded[place * most : place * most + len(share)] = share
    own = rows.new_empty((most, *rows.shape[1:]))
    dist.reduce_scatter_tensor(own, padded)
    return own[: counts[dist.get_rank()]]


class _SumRows(torch.autograd.Function):
    """What the gather undoes, as its own function, so that second derivatives cross the ranks as well."""

    @staticmethod
    def forward(ctx: Any, grad_all: Tensor, counts: list[int]) -> Tensor:
        if dist.get_backend() != "nccl":  # gloo's reduce-scatter is an all-reduce inside, and slower
            total = grad_all.clone(memory_format=torch.contiguous_format)  # autograd may use the gradient elsewhere
            dist.all_reduce(total)
            return total.split(counts)[dist.get_rank()]
        return _reduce_scatter(grad_all, counts)

    @staticmethod
    def backward(ctx: Any, grad_rows: Tensor) -> tuple[Tensor, None]:
        return _GatherRows.apply(grad_rows), None
