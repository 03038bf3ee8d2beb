"""The training loop: one function, the same on one CPU and on many GPUs, for one run and for several side by side."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from dinov2_zoo.data.batch import Batch
from dinov2_zoo.errors import TrainingError
from dinov2_zoo.training.bottleneck import Bottleneck
from dinov2_zoo.training.lane import Lane, ask_teacher
from dinov2_zoo.training.runtime import Runtime


def train(
    runtime: Runtime,
    lanes: Sequence[Lane],
    batches: Iterable[Batch],
    *,
    stop: Callable[[], bool] = lambda: False,
    workers: int = 0,
) -> None:
    """Train some runs in place from their step to their last one, or until one process is asked to stop.

    They see the same batches, and their teacher is asked once for all; everything else each has for itself, so that a
    run comes out as it would alone. One with a step that is not finite, more than `optim.max_bad_steps` times, ends
    before that update, its weights still good; the others go on, and its lane says so in `error`.

    Args:
        runtime: Where to run.
        lanes: The runs, at the same step, with as many steps, and micro-batches in each, and with one teacher.
        batches: This process's micro-batches from that step on, `optim.accumulate` per step.
        stop: Whether this process is to stop; if one is, all return after the same step.
        workers: Processes that make the batches, for a sentence about what takes the time.

    Raises:
        TrainingError: No run is left that could go on, or `batches` ended early.
    """
    steps, accumulate = lanes[0].state.config.steps, lanes[0].state.config.accumulate
    running, stream, stopping = list(lanes), iter(batches), False
    bottleneck = Bottleneck(
        [lane.state.module for lane in running], runtime.device, workers=workers, say=lanes[0].log.say
    )
    for lane in running:
        lane.state.module.train()

    while (step := running[0].state.step) < steps and not stopping:
        started, waited = time.perf_counter(), 0.0
        micro_batches: list[Batch] = []
        bottleneck.begin()
        for lane in running:
            lane.begin()
        for _ in range(accumulate):
            # ---------------------------------------------------------------- batch
            asked = time.perf_counter()
            batch = next(stream, None)
            waited += time.perf_counter() - asked
            if batch is None:
                raise TrainingError(f"The data ended at step {step} of {steps}: give more, or fewer steps.")
            bottleneck.mark("data")
            micro_batches.append(batch)
            placed = replace(batch.to(runtime.device, non_blocking=True), logged=lanes[0].log.due(step + 1))

            # ---------------------------------------------------------------- teacher, then each student's backward
            with runtime.autocast():
                taught = ask_teacher([lane.state.module for lane in running], placed)
            for lane in running:
                lane.log.skip(batch.skipped)
                bottleneck.mark("loss")
                lane.backward(runtime, placed, taught)
                bottleneck.mark("student")

        # -------------------------------------------------------------------- update
        asked_to_stop = stop()
        stopping = any([lane.update(runtime, micro_batches, stop=asked_to_stop) for lane in running])
        running = _sound(running)
        bottleneck.end(micro_batches)

        # -------------------------------------------------------------------- log, checkpoints, measurements
        images = runtime.world_size * sum(len(batch.sample_ids) for batch in micro_batches)
        seconds = time.perf_counter() - started
        for lane in running:
            lane.finish(runtime, images, seconds=seconds, waited=waited)


def _sound(running: Sequence[Lane]) -> list[Lane]:
    """The runs that can go on.

    Raises:
        TrainingError: There are none.
    """
    left = [lane for lane in running if lane.error is None]
    for error in [lane.error for lane in running if lane.error is not None]:
        if not left:
            raise error
        left[0].log.say(f"{error} The other students go on.")
    return left
