"""The rules that turn "auto" into numbers: from images and hardware first, from what a step costs second.

The numbers are chosen here, but for those that name a source; tried on the demo and on folders of 8 to 300 photos.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from dinov2_zoo.config.auto import is_auto, seconds
from dinov2_zoo.config.checks import all_problems, check
from dinov2_zoo.config.distill import DistillConfig
from dinov2_zoo.config.pretrain import PretrainConfig
from dinov2_zoo.config.run import RunConfig
from dinov2_zoo.config.training import AgreementConfig

C = TypeVar("C", bound=RunConfig)

LEAST_IMAGES = 8
BATCH = {"cuda": 256, "cpu": 32}
"""Images per step, for each GPU, or on CPUs together."""
FIT_IMAGES = {"cuda": 1024, "cpu": 240}
INIT_IMAGES = 300
EPOCHS = 30
STEPS = (90, 50_000)
LONGEST = {"cuda": 24 * 3600.0, "cpu": 3600.0}
"""Seconds of training where nothing says how long it is to be."""


@dataclass(frozen=True)
class Hardware:
    """What a run has."""

    device: str
    """"cuda" or "cpu"."""
    processes: int
    """Over all machines."""
    cores: int
    """That each process has for decoding and, without a GPU, for everything."""


@dataclass(frozen=True)
class Cost:
    """What one image costs one process, measured."""

    train: float
    """Seconds of forward and backward pass."""
    forward: float
    """Seconds of all forward passes without a backward one."""
    decode: float
    """Seconds of one decoding worker."""
    memory: float
    """Bytes that are kept for the backward pass, with what the backward pass adds."""
    free: float
    """Bytes there are for them."""


def settle_data(config: C, images: int, *, apart: bool, hardware: Hardware) -> C:
    """Settle what follows from images and hardware: images kept out, batch, workers, evaluated size.

    Args:
        config: As asked for.
        images: In the training source.
        apart: Held-out images are in a source of their own.
        hardware: What the run has.

    Raises:
        ConfigError: Names every setting that cannot work with these images and processes, with values that would.
    """
    loader, evaluation, accumulate = config.loader, config.evaluation, config.optim.accumulate
    share = accumulate * hardware.processes
    with all_problems():
        found = f"{images} image{'s' * (images != 1)}"
        check(images >= LEAST_IMAGES, f"{config.data} holds {found}: give {LEAST_IMAGES} or more.")
        images = max(images, LEAST_IMAGES)  # what else cannot work is said for as many as are needed
        count = 0
        if isinstance(evaluation, AgreementConfig):
            count = kept_out(evaluation.heldout_count, images, apart=apart)
            most = max(0, images // 2)
            check(
                count <= most,
                f"evaluation.heldout_count {count} takes more than half of the {images} images: use at most {most}, or "
                "auto.",
            )
            evaluation = dataclasses.replace(evaluation, heldout_count=count)
        left = max(images - count, 1)
        batch = loader.batch_size
        if is_auto(batch):
            most = BATCH[hardware.device] * (hardware.processes if hardware.device == "cuda" else 1)
            batch = max(share, min(most, left) // share * share)
        low = left // share * share
        words = f"at most {low}, or auto" if low else f"fewer processes x accumulate (now {share})"
        check(batch <= left, f"loader.batch_size {batch} is more than the {left} images to train on: use {words}.")
        near = [size for size in (batch // share * share, -(-batch // share) * share) if size]
        check(
            batch % share == 0,
            f"loader.batch_size {batch} does not divide among {hardware.processes} processes x {accumulate} "
            f"micro-batches: use {' or '.join(map(str, dict.fromkeys(near)))}.",
        )
    workers = decoding_workers(loader.workers, hardware)
    if is_auto(evaluation.size):
        evaluation = dataclasses.replace(evaluation, size=config.crops.global_size)
    colours = loader.colours_by(hardware.device, config.crops)
    loader = dataclasses.replace(loader, batch_size=batch, workers=workers, colours=colours)
    if isinstance(config, DistillConfig) and not config.students:  # of several, each has its own
        config = dataclasses.replace(config, precondition=config.preconditions)
    return dataclasses.replace(config, loader=loader, evaluation=evaluation)


def kept_out(asked: int, images: int, *, apart: bool) -> int:
    """Images that are taken out of a source for measuring: as asked for, or by rule; none where others are `apart`."""
    return 0 if apart else min(32, max(2, images // 8)) if is_auto(asked) else asked


def decoding_workers(asked: int, hardware: Hardware) -> int:
    """Decoding processes: as asked for, or from the free cores."""
    free = hardware.cores - 1 if hardware.device == "cuda" else hardware.cores // 4
    return min(12, max(1, free)) if is_auto(asked) else asked


def settle_length(
    asked: C, config: C, images: int, cost: Cost, hardware: Hardware, *, finish: Cost | None = None
) -> tuple[C, float]:
    """Settle what follows from the cost of a step: the batch that fits, steps, and all that follows the steps.

    Args:
        asked: As asked for.
        config: From `settle_data`.
        images: To train on.
        cost: As measured.
        hardware: What the run has.
        finish: As measured of the finishing stage, where there is one: the most memory of its sizes, the mean of times.

    Returns:
        The configuration without any "auto", `epochs` or `time` left; and the seconds that the run will take.
    """
    share = config.optim.accumulate * hardware.processes
    batch = config.loader.batch_size
    if is_auto(asked.loader.batch_size):
        memory = max(cost.memory, finish.memory if finish else 0.0)
        fits = int(cost.free // memory) if memory else batch
        batch = max(share, min(batch, fits * share) // share * share)
    per_process = batch / hardware.processes

    def of_a_step(cost: Cost) -> float:
        return max(cost.train * per_process, cost.decode * per_process / max(1, config.loader.workers))

    step = of_a_step(cost)
    if finish and isinstance(config, DistillConfig):
        step += config.finish.share * (of_a_step(finish) - step)

    allowed = seconds(config.time) if config.time else None
    first = _first_images(config, hardware.device)
    preparation = cost.forward * _passes(config, first) / hardware.processes
    if allowed is not None and preparation > 0.4 * allowed:
        first = _first_images(config, hardware.device, scale=0.4 * allowed / preparation)
        preparation = cost.forward * _passes(config, first) / hardware.processes
    steps = _steps(config, images, batch, step, allowed, preparation, hardware.device)

    every, measured = config.checkpoint.every, config.evaluation.every
    changes: dict[str, Any] = {
        "epochs": None,
        "time": None,
        "optim": config.optim.settled(steps),
        "loader": dataclasses.replace(config.loader, batch_size=batch),
        "checkpoint": dataclasses.replace(
            config.checkpoint, every=min(1000, max(10, steps // 10)) if is_auto(every) else every
        ),
        "evaluation": dataclasses.replace(
            config.evaluation,
            every=(steps // 10 if steps >= 1000 else 0) if is_auto(measured) else measured,
            fit_images=first["fit_images"],
        ),
    }
    if isinstance(config, DistillConfig):
        changes["init_images"] = first["init_images"]
    return _within(dataclasses.replace(config, **changes)), preparation + steps * step


def adopt(config: C, record: Mapping[str, Any]) -> C:
    """Settle a configuration as the run was that it is to continue: "auto", `epochs` and `time` as recorded there.

    Args:
        config: As asked for now.
        record: Nested settings of the run, without any "auto".
    """
    config = dataclasses.replace(_adopt(config, record), epochs=None, time=None)
    return _within(dataclasses.replace(config, optim=config.optim.settled()))


def _within(config: C) -> C:
    """The same with the temperature's rise over within half of the run."""
    if isinstance(config, PretrainConfig):
        warmup = min(config.self_distillation.temperature_warmup_steps, config.optim.steps // 2)
        temperature = dataclasses.replace(config.self_distillation, temperature_warmup_steps=warmup)
        config = dataclasses.replace(config, self_distillation=temperature)
    return config


def _adopt(config: Any, record: Mapping[str, Any], *, length: bool = False) -> Any:
    length = length or getattr(config, "epochs", None) is not None or getattr(config, "time", None) is not None
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name not in record:
            continue
        if dataclasses.is_dataclass(value):
            changes[field.name] = _adopt(value, record[field.name], length=length)
        elif is_auto(value) or (field.name == "steps" and length):
            found = record[field.name]
            changes[field.name] = tuple(found) if isinstance(found, list) else found
    return dataclasses.replace(config, **changes)


def _first_images(config: RunConfig, device: str, scale: float = 1.0) -> dict[str, int]:
    """Images that first weights are fitted on; `scale` makes those numbers smaller that were not asked for."""

    def number(asked: int, usual: int) -> int:
        return max(32, int(usual * scale)) if is_auto(asked) else asked

    found = {"fit_images": number(config.evaluation.fit_images, FIT_IMAGES[device])}
    if isinstance(config, DistillConfig):
        found["init_images"] = number(config.init_images, INIT_IMAGES)
    return found


def _passes(config: RunConfig, first: Mapping[str, int]) -> int:
    """Images that pass before training: two fits of the projector, and four passes for fitted first weights."""
    if isinstance(config, DistillConfig):
        return 2 * first["fit_images"] + (4 * first["init_images"] if config.init == "fitted" else 0)
    return first["fit_images"] if isinstance(config, PretrainConfig) and config.freeze_backbone else 0


def _steps(
    config: RunConfig, images: int, batch: int, step: float, allowed: float | None, preparation: float, device: str
) -> int:
    """Optimizer steps: by time, by epochs, as asked for, or by rule."""
    if allowed is not None:
        return max(1, int(0.95 * (allowed - preparation) / step))
    if config.epochs is not None:
        return max(1, math.ceil(config.epochs * images / batch))
    if not is_auto(config.optim.steps):
        return config.optim.steps
    least, most = STEPS
    wanted = min(most, max(least, math.ceil(EPOCHS * images / batch)))
    return max(1, min(wanted, int(LONGEST[device] / step)))
