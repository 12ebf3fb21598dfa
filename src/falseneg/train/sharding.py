"""Weights, gradients and optimiser state in shards, one for each process (FSDP), and in one piece again for measuring."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from falseneg.errors import UserError
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

    _like_the_first(module, mesh.device_type)
    scalars = {each for each in module.parameters() if not each.ndim}
    for each in scalars:
        if each.requires_grad:
            raise UserError("fsdp shards no parameter without a dimension, and the method trains one; leave fsdp out")
        each.data = each.data.to(mesh.device_type)
    try:
        for part in (*_blocks(module), module):
            fully_shard(part, mesh=mesh["data_parallel"], ignored_params=scalars)
    except (ValueError, NotImplementedError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"fsdp cannot shard this network ({reason}); leave it out, or take another encoder") from error
    return module


@torch.no_grad()
def _like_the_first(module: nn.Module, device: str) -> None:
    """All ranks begin with the weights and buffers of the first, as under DDP."""
    for each in (*module.parameters(), *module.buffers()):
        there = each.detach().to(device, copy=True)
        distributed.broadcast(there, 0)
        each.data.copy_(there)


def _blocks(part: nn.Module) -> list[nn.Module]:
    """What a network repeats, such as the blocks of a transformer or a ResNet: children of one class in a list of modules.

    Where they repeat others that hold most of them, as stages do, the inner ones.
    """
    alike = isinstance(part, nn.Sequential | nn.ModuleList) and len({type(child) for child in part}) == 1 < len(part)
    found = []
    for child in part.children():
        inner = _blocks(child)
        called = type(child).forward is not nn.Module.forward  # a list of modules is not
        if alike and called and 2 * sum(map(_size, inner)) < _size(child):
            found.append(child)
        else:
            found += inner
    return found


def _size(module: nn.Module) -> int:
    return sum(each.numel() for each in module.parameters())


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
    method = copy.deepcopy(blank)
    method.load_state_dict({name: full(each) for name, each in learner.method.state_dict().items()}, assign=True)
    for own, theirs in zip(method.buffers(), learner.method.buffers(), strict=True):
        own.data = theirs.clone()
        distributed.broadcast(own.data, 0)
    return learner.of_copy(method.train(learner.method.training))


def full(tensor: Tensor) -> Tensor:
    """A tensor in one piece; of a sharded one every rank has to ask."""
    whole: Tensor = tensor.full_tensor() if _is_sharded(tensor) else tensor  # type: ignore[attr-defined]
    return whole


def _is_sharded(value: object) -> bool:
    """Whether it is a DTensor, whose class takes a second to import: for runs with shards only."""
    return hasattr(value, "full_tensor")


def gathered(state: State, keep: bool) -> State:
    """A state dict with the shards of all ranks put together, on the CPU; what is in one piece stays as it is.

    Args:
        state: of a module or an optimiser; every rank has to ask.
        keep: whether this rank wants it; otherwise it gets empty tensors instead of the large ones.
    """

    def together(value: Any) -> Any:
        if not _is_sharded(value):
            return value
        found = full(value)
        return found.cpu() if keep else found.new_empty(0)

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


def _as(own: Any, value: Any) -> Any:
    """The own shard of a value of the same shape; anything else as it is."""
    if not (_is_sharded(own) and isinstance(value, Tensor) and value.shape == own.shape):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(own.device), own.device_mesh, own.placements, src_data_rank=None)
