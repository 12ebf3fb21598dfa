"""One optimiser step, readable from top to bottom."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from falseneg.batch import Batch, Embeddings
from falseneg.clock import Clock
from falseneg.errors import UserError
from falseneg.flagged import Judged
from falseneg.losses import Criterion
from falseneg.methods.base import Method
from falseneg.methods.memory_bank import MemoryBank
from falseneg.train.gradient_cache import GradientCache
from falseneg.train.metrics import over_ranks

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
    """

    fabric: Fabric
    method: Method
    encoding: Any
    criterion: Criterion
    optimiser: Any

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

    A GPU is waited for once, for the loss, and only when it has the whole way back in its queue.

    Raises:
        UserError: the loss is not finite. No parameter has changed then.
    """
    fabric, method, criterion = learner.fabric, learner.method, learner.criterion
    learner.optimiser.zero_grad(set_to_none=True)

    cache = GradientCache(learner, batch, pieces) if pieces > 1 else None
    embeddings = learner.encode(batch) if cache is None else cache.embeddings
    loss, judged = criterion(method.contrasts(embeddings), clock)
    fetch_loss = start_fetching(over_ranks(fabric, loss.detach(), "mean"))
    fabric.backward(loss)
    if cache is not None:
        cache.replay()
    average_over_ranks(fabric, criterion)

    # Waited for here and not later: no parameter may follow a loss that is not finite.
    if not math.isfinite(value := fetch_loss()):
        raise UserError(
            f"the loss became {value} at step {clock.step + 1}; lower the learning rate, lengthen the warm-up, "
            "raise the temperature or train with precision 32-true, and resume from the last checkpoint"
        )
    criterion.temperature.after_backward(clock, loss_scale(fabric))
    learner.optimiser.step()
    method.after_step(embeddings, clock)
    return value, judged


def start_fetching(number: Tensor) -> Callable[[], float]:
    """Begin to fetch a () tensor from its device.

    Returns:
        Gives the number; waits for what the device had to do up to here, and for nothing that it was given since.
    """
    if number.device.type != "cuda":
        return lambda: float(number)
    here = number.to("cpu", non_blocking=True)
    there = torch.cuda.current_stream(number.device).record_event()

    def arrived() -> float:
        there.synchronize()
        return float(here)

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
