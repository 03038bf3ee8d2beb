"""What a run will do, settled and said before it begins: images, batch, steps, time, and where results go."""

import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import psutil
import torch
from torch import Tensor, nn

from dinov2_zoo.config import DistillConfig, RunConfig, to_dict
from dinov2_zoo.config.settle import Cost, Hardware, adopt, settle_data, settle_length
from dinov2_zoo.data.batch import Batch
from dinov2_zoo.data.finishing import FinishingStage, resized
from dinov2_zoo.data.heldout import keep_out, open_images
from dinov2_zoo.data.sources import Source
from dinov2_zoo.progress import duration
from dinov2_zoo.training.lane import ask_teacher
from dinov2_zoo.training.run_folder import check_run_folder
from dinov2_zoo.training.runtime import Runtime

C = TypeVar("C", bound=RunConfig)
D = TypeVar("D", bound=DistillConfig)

MEMORY_SHARE = 0.7
"""Share of the free memory that batches may fill."""
BACKWARD = 1.5
"""Memory of a backward pass over that of what was kept for it: gradients of activations, temporaries (chosen here)."""
STATE = 16
"""Bytes per trained number: gradient, two moments and a copy (fp32)."""


def check_run(config: C, *, resume: str | None) -> C:
    """Check the run folder, or those of all students, before anything else is done.

    Args:
        config: As asked for.
        resume: Go on with the runs that the folders hold.

    Returns:
        The configuration; what it leaves open is as it was in the runs to be resumed.

    Raises:
        ConfigError: A folder holds another run, is not a run, or was made with other settings.
    """
    if len(config.each()) == 1:
        (config,) = config.each()
    records = [one.folder / "config.json" for one in config.each()]
    if resume and (record := next(filter(Path.is_file, records), None)):
        settings = json.loads(record.read_text())["config"]
        config = adopt(config, {name: value for name, value in settings.items() if name != "name"})
    for one in config.each():
        check_run_folder(one.folder, to_dict(one), resume=resume)
    return config


def hardware(runtime: Runtime) -> Hardware:
    """What a run has."""
    return Hardware(runtime.device.type, runtime.world_size, runtime.cores)


def open_run(asked: D, runtime: Runtime) -> tuple[D, Source, Source, Source | None]:
    """Open a distillation's images, and settle what follows from their number.

    Returns:
        The configuration, all images of `data`, those to train on, and those to measure on, if there are any.

    Raises:
        DataError: There are no images, or too few.
        ConfigError: A setting does not go with their number.
    """
    source, heldout = open_images(asked.data, asked.evaluation.heldout)
    config = settle_data(asked, len(source), apart=heldout is not None, hardware=hardware(runtime))
    return config, source, *keep_out(source, heldout, config.evaluation.heldout_count, config.runtime.seed)


def settle(
    asked: C,
    config: C,
    runtime: Runtime,
    modules: Sequence[nn.Module],
    batches: Callable[..., Iterable[Batch]],
    *,
    images: int,
    stage: FinishingStage | None = None,
) -> tuple[C, float]:
    """Measure a few passes of some modules on real crops and settle all that follows. Every process must call it.

    Args:
        asked: The configuration as asked for.
        config: From `settle_data`.
        runtime: Where the run is.
        modules: Of the runs that share each step. Each maps a batch to loss terms; on its device, not yet sharded. They
            are left as they were.
        batches: Reads this process's batches as a loader's settings say, and perhaps a `stage`.
        images: To train on.
        stage: The finishing stage, if there is one; only its sides count.

    Returns:
        The configuration without any "auto", and the seconds that the run will take.
    """
    count = min(8 if runtime.device.type == "cuda" else 2, max(1, images // runtime.world_size))
    loader = replace(config.loader, batch_size=count * runtime.world_size, workers=0)

    def read(**more: Any) -> tuple[Batch, float]:
        started = time.perf_counter()
        batch = next(iter(batches(loader, **more)))
        return batch, (time.perf_counter() - started) / count

    batch, decode = read()
    cost, finish = measure(runtime, modules, batch, decode=decode), None
    if stage is not None:
        # Student and teacher draw their sides apart, and each costs what its own takes: the mean over pairs of equal
        # sides is that over all pairs.
        batch, decode = read(stage=replace(stage, first=0))
        costs = [measure(runtime, modules, resized(batch, side), decode=decode) for side in stage.sides]
        times = {name: sum(getattr(c, name) for c in costs) / len(costs) for name in ("train", "forward", "decode")}
        finish = Cost(**times, memory=max(c.memory for c in costs), free=min(c.free for c in costs))
    config, seconds = settle_length(asked, config, images, cost, hardware(runtime), finish=finish)
    return replace(config, runtime=replace(config.runtime, precision=runtime.precision)), seconds


def measure(runtime: Runtime, modules: Sequence[nn.Module], batch: Batch, *, decode: float) -> Cost:
    """What an image costs: the slowest process's times, the least memory that one has.

    Activation checkpointing is not switched on yet: with it, a step takes less memory and a third more time than told.

    Args:
        runtime: Where the run is.
        modules: As for `settle`.
        batch: Of this process.
        decode: Seconds that it took to make, per image.
    """
    device, count = runtime.device, len(batch.seeds)
    batch = batch.to(device)
    parameters = {parameter for module in modules for parameter in module.parameters()}
    moving = {buffer: buffer.clone() for module in modules for buffer in module.buffers()}
    own = {p.untyped_storage().data_ptr() for p in parameters}
    kept: list[dict[int, int]] = []

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[-1][storage.data_ptr()] = storage.nbytes()
        return tensor

    def step() -> None:
        """As in the training loop: one teacher for all, and what a student keeps is let go before the next begins."""
        with runtime.autocast():
            taught = ask_teacher(modules, batch)
        for module in modules:
            kept.append({})
            with runtime.autocast():
                loss = module(batch, *taught)["loss"]
            loss.backward()

    def forward() -> None:
        """As in the fits before training: each student's, and the teacher's for each."""
        with runtime.autocast(), torch.no_grad():
            for module in modules:
                module(batch)

    with torch.random.fork_rng(devices=[]):
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            step()  # the first is slow: kernels are chosen, memory is fetched
        most = max(sum(student.values()) for student in kept)
        train = _fastest(step, device) / count
        passes = _fastest(forward, device) / count
    for parameter in parameters:
        parameter.grad = None
    for buffer, before in moving.items():
        buffer.copy_(before)
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    free = MEMORY_SHARE * _free_memory(device) - STATE * trained
    mine = Cost(train, passes, decode, BACKWARD * most / count, free)
    everyone = runtime.gather(mine)
    slowest = {name: max(getattr(cost, name) for cost in everyone) for name in ("train", "forward", "decode", "memory")}
    return Cost(**slowest, free=min(cost.free for cost in everyone))


def announce(config: RunConfig, images: str, *, train: int, heldout: int, seconds: float) -> str:
    """One paragraph for the person who began the run.

    Args:
        config: Settled.
        images: What was found and left out, in words.
        train: Images to train on.
        heldout: Images kept out.
        seconds: Expected time.
    """
    batch, steps = config.loader.batch_size, config.optim.steps
    passes = steps * batch / train
    kept = f"; {heldout} are kept out of training, for measuring" if heldout else ""
    folders = [str(one.folder) for one in config.each()]
    together = f" for {len(folders)} students together" if len(folders) > 1 else ""
    places = " and ".join([", ".join(folders[:-1]), folders[-1]] if together else folders)
    return (
        f"{images}{kept}. {steps:,} steps of {batch} images, {passes:.3g} passes over {train:,}, "
        f"about {duration(seconds)}{together}. Results go to {places}."
    )


def _fastest(action: Callable[[], object], device: torch.device, times: int = 3) -> float:
    """Seconds of the fastest of a few repetitions: what else the machine does only ever adds."""
    found: list[float] = []
    for _ in range(times):
        started = _now(device)
        action()
        found.append(_now(device) - started)
    return min(found)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _free_memory(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
