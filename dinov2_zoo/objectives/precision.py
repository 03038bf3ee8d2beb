"""Losses are computed in fp32, whatever the precision of the networks, but for what goes into their largest products.

Products of tokens with prototypes run in TF32 on CUDA: 11 significant bits go in, sums are fp32. The fused kernel takes
bf16, 8 bits, where the networks run in bf16. Of random unit vectors in 256 dimensions, logits at a temperature of
0.04 (`benchmarks/product_precision.py`):

    rounded                             logits, rms   loss    gradients, relative
    what goes in, to TF32               5e-4          5e-7    4e-4 to 1e-3
    what goes in, to bf16               4e-3          1e-5    4e-3 to 8e-3
    networks' output alone, to bf16     3e-3          2e-6    2e-3 to 7e-3

Autocast would round the logits themselves, up to 25, to 8 bits: an error of up to 0.06.
"""

import functools
from collections.abc import Callable
from contextlib import ExitStack
from contextvars import ContextVar
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")

_networks: ContextVar[torch.dtype] = ContextVar("networks", default=torch.float32)


def without_autocast(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a loss so that it is computed in its inputs' precision, also where it is called under autocast.

    Autocast would run every matrix product in bf16: logits that small temperatures then magnify, and sums of terms.
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        accelerator = torch.accelerator.current_accelerator()
        devices = {"cpu", accelerator.type if accelerator else "cpu"}
        half = any(torch.is_autocast_enabled(d) and torch.get_autocast_dtype(d) == torch.bfloat16 for d in devices)
        before = _networks.set(torch.bfloat16 if half else torch.float32)
        try:
            with ExitStack() as stack:
                for device in devices:
                    stack.enter_context(torch.autocast(device, enabled=False))
                return function(*args, **kwargs)
        finally:
            _networks.reset(before)

    return run


def product_dtype() -> torch.dtype:
    """What may go into the products of a loss: bf16 where the loss was called under autocast to bf16, else fp32."""
    return _networks.get()


def with_tf32_products(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate what multiplies tokens with prototypes: its fp32 products run in TF32 on CUDA, nothing else does.

    Only products in `function` itself: those of an ordinary backward pass come later, after the setting is as before.
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        setting = torch.backends.cuda.matmul
        before = setting.fp32_precision
        setting.fp32_precision = "tf32"
        try:
            return function(*args, **kwargs)
        finally:
            setting.fp32_precision = before

    return run
