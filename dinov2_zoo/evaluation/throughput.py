"""How fast a model makes features: images per second of a forward pass, with the spread over repeats."""

import statistics
import time
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor


def images_per_second(
    encode: Callable[[Tensor], object], images: Float[Tensor, "B 3 H W"], *, repeats: int = 5
) -> tuple[float, float]:
    """Median images/s over repeats, and the largest relative deviation from it.

    Args:
        encode: A forward pass.
        images: One batch, on the device.
        repeats: Timed passes, after one untimed.
    """
    durations: list[float] = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        encode(images)
        if images.is_cuda:
            torch.cuda.synchronize()
        durations.append(time.perf_counter() - started)
    rates = [len(images) / seconds for seconds in durations[1:]]
    median = statistics.median(rates)
    return median, max(abs(rate / median - 1) for rate in rates)
