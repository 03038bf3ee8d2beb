"""Losses are computed in fp32, whatever the precision of the networks; their largest products in TF32 on CUDA.

TF32 rounds what goes into a product to 11 significant bits and adds up in fp32. Logits z . w / T of unit vectors move by
less than 2^-10 / T, which is 0.024 at T = 0.04, and in 256 dimensions by 5e-4 in the root mean square
(`benchmarks/product_precision.py`): a hundredth of what bf16 networks do to z.
"""

import functools
from collections.abc import Callable
from contextlib import ExitStack
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def without_autocast(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a loss so that it is computed in its inputs' precision, also where it is called under autocast.

    Autocast would run every matrix product in bf16: logits that small temperatures then magnify, and sums of terms.
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        accelerator = torch.accelerator.current_accelerator()
        devices = {"cpu", accelerator.type if accelerator else "cpu"}
        with ExitStack() as stack:
            for device in devices:
                stack.enter_context(torch.autocast(device, enabled=False))
            return function(*args, **kwargs)

    return run


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
