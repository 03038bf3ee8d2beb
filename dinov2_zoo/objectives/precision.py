"""Losses are computed in fp32, whatever the precision of the networks."""

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
