"""Building what a file describes, within a bound of memory."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from falseneg.errors import UserError


class Within(TorchDispatchMode):
    """Inside, tensors of at most so many bytes are made, all together: a larger one is refused before it takes memory.

    Args:
        most: bytes.
        refusal: what to say then.
    """

    def __init__(self, most: int, refusal: str) -> None:
        super().__init__()
        self.left, self.refusal = most, refusal

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        makes = any(argument.name == "device" for argument in function._schema.arguments)
        if makes and not any(isinstance(argument, Tensor) for argument in args):
            made = function(*args, **{**kwargs, "device": "meta"})
            self.left -= made.numel() * made.element_size()
            if self.left < 0:
                raise UserError(self.refusal)
        return function(*args, **kwargs)
