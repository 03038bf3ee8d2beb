"""How fast a model makes features: images per second of a forward pass, with the spread over repeats."""

import statistics
import time
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from dinov2_zoo.evaluation.encoders.encoder import Encoder
from dinov2_zoo.evaluation.record import DataFacts, Result
from dinov2_zoo.training.run_folder import processor_name


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


def evaluate_speed(
    encoder: Encoder, device: torch.device, precision: str, *, size: int = 224, batch: int = 8, repeats: int = 5
) -> Result:
    """Images per second of class and patch tokens, as a record; the figures hold for the hardware that it names.

    Args:
        encoder: The model.
        device: Where it is.
        precision: Of its forward passes, for the record.
        size: Image side, pixels.
        batch: Images at a time.
        repeats: Timed passes.
    """
    images = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)
    rate, spread = images_per_second(encoder, images, repeats=repeats)
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()
    protocol = {"hardware": hardware, "threads": torch.get_num_threads(), "precision": precision, "size": size}
    figures = {"images_per_second": rate, "largest_deviation": spread}
    data = DataFacts("random pixels", {"batch": batch}, "")
    return Result(figures, "images_per_second", {**protocol, "batch": batch, "repeats": repeats}, data)
