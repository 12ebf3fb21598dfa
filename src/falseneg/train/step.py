"""One optimiser step, readable from top to bottom."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from falseneg.batch import Batch, Embeddings
from falseneg.clock import Clock
from falseneg.flagged import Judged
from falseneg.losses import Criterion
from falseneg.methods.base import Method
from falseneg.methods.memory_bank import MemoryBank
from falseneg.statistics.gather import formed, gather_rows
from falseneg.train.gradient_cache import GradientCache
from falseneg.train.metrics import over_ranks
from falseneg.train.sharding import full

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class EncodeBatch(nn.Module):
    """What Fabric wraps for precision and for averaging gradients over ranks: tensors in, tensors out."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method
        # All ranks write the same into a memory bank: it need not be sent around at every step.
        banks = [(name, part) for name, part in self.named_modules() if isinstance(part, MemoryBank)]
        ignored = [f"{name}.{buffer}" for name, bank in banks for buffer, _ in bank.named_buffers()]
        self._ddp_params_and_buffers_to_ignore = ignored

    def forward(self, index: Tensor, streams: dict[str, Tensor], again: bool = False) -> dict[str, Tensor]:
        encode = self.method.encode_again if again else self.method.encode
        return dict(encode(Batch(index, streams)).rows)


@dataclass(frozen=True, eq=False)
class Learner:
    """Everything that a step touches.

    Attributes:
        fabric: precision, devices, ranks.
        method: where anchors, candidates and positives come from.
        encoding: the method's `encode`, as Fabric set it up.
        criterion: detector, strategy, objective and temperature.
        optimiser: of all parameters of method and criterion, as Fabric set it up.
        blank: where the weights are sharded, the method without any.
        across_devices: anchors are compared with the candidates of all ranks, not only of their own.
    """

    fabric: Fabric
    method: Method
    encoding: Any
    criterion: Criterion
    optimiser: Any
    blank: Method | None = None
    across_devices: bool = True

    def of_copy(self, method: Method) -> Learner:
        """The same with a copy of the method, which each rank encodes with by itself."""
        module = EncodeBatch(method)

        def encoding(*given: Any) -> dict[str, Tensor]:
            with self.fabric.autocast():
                rows: dict[str, Tensor] = module(*given)
                return rows

        return replace(self, method=method, encoding=encoding)

    def encode(self, batch: Batch, again: bool = False) -> Embeddings:
        """The method's `encode`, or its `encode_again`."""
        return Embeddings(batch.index, self.encoding(batch.index, dict(batch.streams), again))


def training_step(learner: Learner, batch: Batch, clock: Clock, pieces: int = 1) -> tuple[float, list[Judged]]:
    """One step: encode, compare, flag, back-propagate, update.

    Args:
        learner: what is trained, and with what.
        batch: this rank's part of the batch, on its device.
        clock: where training stands.
        pieces: encode the batch in this many pieces (the gradient cache), with the same gradients in less memory.

    Returns:
        The loss over all ranks, in nats, and what was flagged on the way.

    A GPU is waited for once, at the end of the way back.

    Raises:
        NotFinite: the loss or a gradient is not finite. No parameter has changed then.
    """
    fabric, method, criterion = learner.fabric, learner.method, learner.criterion
    learner.optimiser.zero_grad(set_to_none=True)

    cache = GradientCache(learner, batch, pieces) if pieces > 1 else None
    embeddings = learner.encode(batch) if cache is None else cache.embeddings
    loss, judged = criterion(formed(lambda: method.contrasts(embeddings), learner.across_devices), clock)
    mean_loss = over_ranks(fabric, loss.detach(), "mean")
    fabric.backward(loss)
    if cache is not None:
        cache.replay()
    average_over_ranks(fabric, criterion)

    # Waited for here and not later: no parameter may follow what is not finite.
    value, norm = start_fetching(torch.stack([mean_loss.double(), _gradient_norm(learner)]))()
    if not (math.isfinite(value) and math.isfinite(norm)):
        raise NotFinite(value, gather_rows(batch.index).tolist(), *_largest_gradient(learner))
    criterion.temperature.after_backward(clock, loss_scale(fabric))
    learner.optimiser.step()
    method.after_step(embeddings, clock)
    return value, judged


class NotFinite(ArithmeticError):
    """A step whose loss or gradient is not finite.

    Attributes:
        loss: over all ranks.
        rows: data-set rows of the batch.
        name: of the parameter with the largest gradient; one that is not finite counts as the largest.
        gradient: its norm.
    """

    def __init__(self, loss: float, rows: list[int], name: str, gradient: float) -> None:
        super().__init__(f"loss {loss}, largest gradient {gradient} of {name}")
        self.loss, self.rows, self.name, self.gradient = loss, rows, name, gradient


def _gradient_norm(learner: Learner) -> Tensor:
    """() float64: of all parameters together; 0 where float16 training looks at gradients itself, and skips steps."""
    if loss_scale(learner.fabric) != 1:
        return torch.zeros((), dtype=torch.float64, device=learner.fabric.device)
    gradients = ([each for _, each in _gradients(part)] for part in (learner.method, learner.criterion))
    norms = [full(nn.utils.get_total_norm(each)) for each in gradients if each]  # only the method's may be sharded
    return torch.linalg.vector_norm(torch.stack([each.double() for each in norms]))


def _largest_gradient(learner: Learner) -> tuple[str, float]:
    """Name and norm."""
    gradients = [*_gradients(learner.method), *_gradients(learner.criterion)]
    norms = [(name, float(full(gradient.norm()))) for name, gradient in gradients]
    return max(norms, key=lambda each: each[1] if math.isfinite(each[1]) else math.inf)


def _gradients(part: nn.Module) -> list[tuple[str, Tensor]]:
    return [(name, parameter.grad) for name, parameter in part.named_parameters() if parameter.grad is not None]


def start_fetching(numbers: Tensor) -> Callable[[], list[float]]:
    """Begin to fetch an (n,) tensor from its device.

    Returns:
        Gives the numbers; waits for what the device had to do up to here, and for nothing that it was given since.
    """
    if numbers.device.type != "cuda":
        return lambda: list(numbers.tolist())
    here = numbers.to("cpu", non_blocking=True)
    there = torch.cuda.current_stream(numbers.device).record_event()

    def arrived() -> list[float]:
        there.synchronize()
        return list(here.tolist())

    return arrived


def loss_scale(fabric: Fabric) -> float:
    """What float16 training multiplies the loss by; 1 in other precisions."""
    scaler = getattr(fabric.strategy.precision, "scaler", None)
    return 1.0 if scaler is None else float(scaler.get_scale())


def average_over_ranks(fabric: Fabric, module: nn.Module) -> None:
    """Average gradients that no wrapper averages: those of the few parameters outside the encoder."""
    if fabric.world_size > 1:
        for parameter in module.parameters():
            if parameter.grad is not None:
                parameter.grad = over_ranks(fabric, parameter.grad, "mean")
