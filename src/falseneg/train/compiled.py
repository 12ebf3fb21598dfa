"""The encoder compiled to machine code by `torch.compile`, in place."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from falseneg.errors import UserError
from falseneg.methods.base import Method
from falseneg.models import Momentum


def check_compiler(device: torch.device, say: Callable[[str], None]) -> None:
    """Compile something small, before anything else begins.

    The first time on a machine that takes about ten seconds of a core, for the compiler's headers; later two.

    Args:
        device: to compile for.
        say: is told what is waited for.

    Raises:
        UserError: nothing can be compiled for this device here.
    """
    say("trying the compiler: about ten seconds the first time, and a minute or more on a busy machine")
    # It says that there is no CUDA, to those who do without it.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    # A size that was never seen: what was compiled before lies on the disk, and would need no compiler.
    numbers = torch.ones(int(time.time() * 1000) % 10**6 + 1, device=device)
    try:
        torch.compile(_something, dynamic=False)(numbers)
    except Exception as error:
        reason = (str(error) or type(error).__name__).strip().splitlines()[0].rstrip(".:")
        needed = "Triton and a C compiler" if device.type == "cuda" else "a C++ compiler such as g++"
        raise UserError(
            f"compile_encoder is true, but nothing can be compiled for {device.type} here ({reason}); install {needed}, or "
            "leave compile_encoder out"
        ) from error


def _something(numbers: Tensor) -> Tensor:
    return (numbers * 2 + 1).relu()


def compile_networks(method: Method) -> None:
    """Compile the encoder and the networks that follow it, in place: names of weights, copies and exports stay the same.

    Each size of views is compiled by itself, when it first comes. Random draws are those of the uncompiled encoder, so
    that the gradient cache can repeat them.
    """
    networks = [method.encoder, *(part.network for part in method.modules() if isinstance(part, Momentum))]
    for network in networks:
        network.compile(dynamic=False, options={"fallback_random": True})


def uncompiled(compiles: bool) -> AbstractContextManager[object]:
    """Run without compiling: for measuring, whose batches have their own sizes.

    Args:
        compiles: whether the run does otherwise.
    """
    return torch.compiler.set_stance("force_eager") if compiles else contextlib.nullcontext()
