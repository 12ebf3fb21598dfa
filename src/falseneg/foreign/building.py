"""Building what a file describes, within a bound of memory."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Within(TorchDispatchMode):
    """Inside, tensors of at most so many bytes are made, all together: else a `MemoryError`, before any is taken.

    Args:
        most: bytes.
    """

    def __init__(self, most: int) -> None:
        super().__init__()
        self.left = most

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        makes = any(argument.name == "device" for argument in function._schema.arguments)
        if makes and not any(isinstance(argument, Tensor) for argument in args):
            made = function(*args, **{**kwargs, "device": "meta"})
            self.left -= made.numel() * made.element_size()
            if self.left < 0:
                raise MemoryError
        return function(*args, **kwargs)
