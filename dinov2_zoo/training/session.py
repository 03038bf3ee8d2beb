"""A run from its first to its last step: what every training recipe does around the loop."""

import errno
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from torch import nn

from dinov2_zoo.config import DistillConfig, PretrainConfig, to_dict
from dinov2_zoo.data.batch import Batch
from dinov2_zoo.data.skips import SkipLedger, guarded
from dinov2_zoo.errors import CheckpointError, Preempted, TrainingError
from dinov2_zoo.training.checkpoints.find import newest_whole, rewind
from dinov2_zoo.training.checkpoints.resume import load_checkpoint
from dinov2_zoo.training.checkpoints.writer import CheckpointWriter
from dinov2_zoo.training.health_watch import HealthWatch
from dinov2_zoo.training.log import RunLog
from dinov2_zoo.training.loop import train
from dinov2_zoo.training.preemption import StopRequest
from dinov2_zoo.training.run_folder import hold_run_folder
from dinov2_zoo.training.runtime import Runtime
from dinov2_zoo.training.state import TrainState

# What gloo and NCCL say when another process has gone.
LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited", "NCCL")


def train_run(
    config: DistillConfig | PretrainConfig,
    runtime: Runtime,
    folder: Path,
    module: nn.Module,
    batches: Callable[..., Iterable[Batch]],
    *,
    images: int,
    resume: str | None,
    measure: Callable[[], Mapping[str, float]],
) -> TrainState:
    """Shard a module, train it to its last step, and leave checkpoints and metrics in the run folder.

    Args:
        config: Of the run.
        runtime: Where to run.
        folder: The run folder.
        module: With children `student` and `ema`; maps a batch to loss terms.
        batches: `train_loader` but for seed, start_step and steps.
        images: In the source, for the share of damaged ones.
        resume: Continue from a checkpoint in `folder`: "auto", the newest whole one, if there is one; or "step-N".
        measure: Measures the average: metrics by name; called every `evaluation.every` steps.

    Returns:
        The state after the last step.

    Raises:
        Preempted: The run was told to stop; it has saved itself.
        ConfigError: Another process is writing this run.
        CheckpointError: A checkpoint could not be written, or the one named cannot be read.
        DataError, TrainingError: From data and loop; the disk is full.
    """
    steps, every = config.optim.steps, config.evaluation.every
    state = TrainState.start(runtime.shard(module), config.optim, global_batch=config.loader.batch_size)
    around = ExitStack()
    chosen: tuple[Path | None, list[str]] = None, []
    with runtime.together():
        if runtime.is_main:
            around.enter_context(hold_run_folder(folder))
            chosen = _choose(folder, resume)
    checkpoint, damaged = runtime.broadcast(chosen)
    if checkpoint is not None:
        load_checkpoint(checkpoint, state)
    log = RunLog(
        folder,
        config.log,
        steps=steps,
        start=state.step,
        main=runtime.is_main,
        track=runtime.trackers.log,
        console=runtime.console,
    )
    for sentence in damaged:
        log.say(f"Skipped: {sentence}")
    if trouble := runtime.trackers.start(config.name, to_dict(config)):
        log.say(trouble)
    log.say(f"Training, step {state.step} to {steps}" + (f", from {checkpoint}" if checkpoint else ""))

    with (
        around,
        log,
        _in_words(runtime, folder),
        StopRequest() as stop,
        CheckpointWriter(folder, config.checkpoint) as writer,
    ):

        def save(state: TrainState, _: object) -> None:
            if state.step == steps or (config.checkpoint.every and state.step % config.checkpoint.every == 0):
                writer.save(state)

        def evaluate(state: TrainState, _: object) -> None:
            if every and state.step % every == 0 and state.step < steps:
                log.write(state.step, {f"heldout/{name}": value for name, value in measure().items()})

        stream = batches(seed=config.runtime.seed, start_step=state.step, steps=steps)
        ledger = SkipLedger(images, config.loader.max_bad_share)
        watch = HealthWatch(log.say, from_step=config.optim.warmup_steps)
        hooks = [save, evaluate, watch]
        train(runtime, state, guarded(stream, ledger), log, hooks, stop=lambda: bool(stop) or writer.failed)
        writer.wait()
        if state.step < steps:
            writer.save(state)
            writer.wait()
            reason = next(filter(None, runtime.gather(stop.reason)), "another process was told to stop")
            raise Preempted(
                f"{reason}; saved at step {state.step} of {steps}, after which the same command with --resume goes on."
            )
    return state


@contextmanager
def _in_words(runtime: Runtime, folder: Path) -> Generator[None, None, None]:
    """Say in words what the machines do to a run: a full disk (checkpoints say it themselves), a lost process."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise TrainingError(
            f"The disk of {folder} is full: make room; --resume then goes on from the last checkpoint."
        ) from error
    except RuntimeError as error:
        if runtime.world_size == 1 or not any(sign in str(error) for sign in LOST):
            raise
        raise TrainingError(
            f"Another process of this run has died or cannot be reached ({str(error).splitlines()[0][:200]}): look for "
            "the reason in its output; --resume then goes on from the last checkpoint."
        ) from error


def _choose(folder: Path, resume: str | None) -> tuple[Path | None, list[str]]:
    """The checkpoint to go on from, and what is wrong with newer ones.

    Raises:
        CheckpointError: None is whole although there are some, or the one named is not.
    """
    if resume is None:
        return None, []
    if resume != "auto":
        return rewind(folder, resume), []
    found, damaged = newest_whole(folder)
    if damaged and found is None:
        raise CheckpointError(f"No whole checkpoint is left: {' '.join(damaged)} Without any, the run begins anew.")
    return found, damaged
