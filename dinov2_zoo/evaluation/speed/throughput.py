"""How fast a model makes features: images per second of a forward pass, with the spread over repeats."""

import statistics
import time
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from dinov2_zoo.evaluation.encoders.encoder import Encoder
from dinov2_zoo.evaluation.record import DataFacts, Result
from dinov2_zoo.evaluation.workspace import Workspace
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


SIZE, BATCH, REPEATS = 224, 8, 5
"""Image side in pixels, images at a time, timed passes (chosen here)."""


def evaluate_speed(encoder: Encoder, data: None, settings: None, workspace: Workspace) -> Result:
    """Images per second of class and patch tokens; the metrics hold for the hardware that the record names.

    Args:
        encoder: The model.
        data: None: random pixels do.
        settings: None: there are none.
        workspace: Device and precision of the passes.
    """
    device = workspace.device
    images = torch.randn(BATCH, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)).to(device)
    rate, spread = images_per_second(encoder, images, repeats=REPEATS)
    protocol = {
        "hardware": torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name(),
        "threads": torch.get_num_threads(),
        "precision": workspace.precision,
        "size": SIZE,
        "batch": BATCH,
        "repeats": REPEATS,
    }
    metrics = {"images_per_second": rate, "largest_deviation": spread}
    return Result(metrics, "images_per_second", protocol, DataFacts("random pixels", {"batch": BATCH}, ""))
