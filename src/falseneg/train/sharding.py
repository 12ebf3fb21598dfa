"""Weights, gradients and optimiser state in shards, one for each process (FSDP), and in one piece again for measuring."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from falseneg.batch import Batch
from falseneg.methods.base import Method

if TYPE_CHECKING:
    from lightning_fabric.strategies import ModelParallelStrategy

    from falseneg.train.session import Session
    from falseneg.train.step import Learner

State = TypeVar("State")


def sharding_strategy(processes: int) -> ModelParallelStrategy:
    """What makes Fabric shard a module over so many processes."""
    from lightning_fabric.strategies import ModelParallelStrategy

    return ModelParallelStrategy(_shard, data_parallel_size=processes, tensor_parallel_size=1)


def _shard(module: nn.Module, mesh: Any) -> nn.Module:
    """Shard each block of a network, and then what is left: the weights of one block at a time are whole in a step."""
    from torch.distributed.fsdp import fully_shard

    for block in _blocks(module):
        fully_shard(block, mesh=mesh["data_parallel"])
    fully_shard(module, mesh=mesh["data_parallel"])
    return module


def _blocks(module: nn.Module) -> list[nn.Module]:
    """What is repeated: the children, all of one class, of each list or sequence of modules, as in a transformer or a ResNet."""
    lists = (list(part) for part in module.modules() if isinstance(part, nn.Sequential | nn.ModuleList))
    alike = (each for each in lists if len(each) > 1 and len({type(block) for block in each}) == 1)
    blocks = [block for each in alike for block in each if any(True for _ in block.parameters())]
    inner = {id(part) for block in blocks for part in block.modules() if part is not block}
    return [block for block in blocks if id(block) not in inner]


def blank_copy(method: Method) -> Method:
    """A copy without weights, which `whole` fills; made before they are sharded."""
    without = {id(each): nn.Parameter(each.detach().to("meta"), each.requires_grad) for each in method.parameters()}
    return copy.deepcopy(method, without)


@contextlib.contextmanager
def whole(session: Session) -> Iterator[None]:
    """While something is measured: of sharded weights a copy in one piece, so that each process goes at its own pace.

    Args:
        session: every rank has to ask. Its learner is another one until the end; buffers, such as the running statistics of
            BatchNorm, are the first rank's there.
    """
    learner = session.learner
    if learner.blank is None:
        yield
        return
    session.learner = _in_one_piece(learner, learner.blank)
    try:
        yield
    finally:
        session.learner = learner


def _in_one_piece(learner: Learner, blank: Method) -> Learner:
    fabric, method = learner.fabric, copy.deepcopy(blank)
    method.load_state_dict({name: full(each) for name, each in learner.method.state_dict().items()}, assign=True)
    for own, theirs in zip(method.buffers(), learner.method.buffers(), strict=True):
        own.data = theirs.clone()
        distributed.broadcast(own.data, 0)
    method.train(learner.method.training)

    def encode(index: Tensor, streams: dict[str, Tensor], again: bool = False) -> dict[str, Tensor]:
        with fabric.autocast():
            return dict((method.encode_again if again else method.encode)(Batch(index, streams)).rows)

    return replace(learner, method=method, encoding=encode)


def full(tensor: Tensor) -> Tensor:
    """A tensor in one piece; of a sharded one every rank has to ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gathered(state: State, keep: bool) -> State:
    """A state dict with the shards of all ranks put together, on the CPU; what is in one piece stays as it is.

    Args:
        state: of a module or an optimiser; every rank has to ask.
        keep: whether this rank wants it; otherwise it gets empty tensors instead of the large ones.
    """

    def together(value: Any) -> Any:
        if not isinstance(value, DTensor):
            return value
        whole = value.full_tensor()
        return whole.cpu() if keep else whole.new_empty(0)

    return torch.utils._pytree.tree_map(together, state)


def scattered(state: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A module's state in one piece, with each tensor sharded as in the state that it is to be loaded into."""
    return {name: _as(like.get(name), each) for name, each in state.items()}


def scattered_optimiser(state: Mapping[str, Any], optimiser: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimiser's state in one piece, sharded as its parameters are."""
    parameters = [each for group in optimiser.param_groups for each in group["params"]]
    kept = {
        number: {name: _as(parameters[number], value) for name, value in of_one.items()}
        for number, of_one in state["state"].items()
    }
    return {**state, "state": kept}


def _as(own: Tensor | None, value: Any) -> Any:
    """The own shard of a value of the same shape; anything else as it is."""
    if not (isinstance(own, DTensor) and isinstance(value, Tensor) and value.shape == own.shape):
        return value
    return distribute_tensor(value.to(own.device), own.device_mesh, own.placements, src_data_rank=None)
