"""Runs from their first to their last step: what every training recipe does around the loop."""

import errno
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from dinov2_zoo.config import DistillConfig, PretrainConfig, to_dict
from dinov2_zoo.data.batch import Batch
from dinov2_zoo.data.skips import SkipLedger, guarded
from dinov2_zoo.errors import Preempted, TrainingError
from dinov2_zoo.objectives.fastest import prepare
from dinov2_zoo.training.checkpoints.choose import choose_checkpoints
from dinov2_zoo.training.checkpoints.resume import load_checkpoint
from dinov2_zoo.training.checkpoints.writer import CheckpointWriter
from dinov2_zoo.training.guard import Guard
from dinov2_zoo.training.health_watch import HealthWatch
from dinov2_zoo.training.lane import Hook, Lane
from dinov2_zoo.training.log import RunLog
from dinov2_zoo.training.loop import train
from dinov2_zoo.training.preconditioning import Coordinates
from dinov2_zoo.training.preemption import StopRequest
from dinov2_zoo.training.run_folder import hold_run_folder
from dinov2_zoo.training.runtime import Runtime
from dinov2_zoo.training.state import TrainState

# What gloo and NCCL say when another process has gone.
LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited", "NCCL")


@dataclass(frozen=True)
class Run:
    """One run of a session."""

    config: DistillConfig | PretrainConfig
    """Settled. Runs of one session differ in their network and their folder only."""
    module: nn.Module
    """With children `student` and `ema`; maps a batch to loss terms. With a frozen `teacher` it has `teach`, too."""
    measure: Callable[[], Mapping[str, float]]
    """Measures the average: metrics by name; called every `evaluation.every` steps."""
    coordinates: Coordinates | None = None
    """In which the optimizer steps; None: the network's own."""
    guard: tuple[Callable[[], float], float] | None = None
    """Measures the average in one number, the higher the better; and that number of the start. None: no guard."""


def train_runs(
    runs: Sequence[Run],
    runtime: Runtime,
    batches: Callable[..., Iterable[Batch]],
    *,
    images: int,
    resume: str | None,
) -> list[Lane]:
    """Shard the modules of some runs, train them to their last step on the same batches, asking their teacher once.

    Each leaves checkpoints and metrics in its folder, as it would alone.

    Args:
        runs: One or more; modules with a teacher share it.
        runtime: Where to run.
        batches: `train_loader` but for seed, start_step and steps.
        images: In the source, for the share of damaged ones.
        resume: Continue from checkpoints in the folders: "auto", the newest whole ones, if there are any; or "step-N".

    Returns:
        What each run came to, in order: its state after the last step; or its `error`, if it ended before the others.

    Raises:
        Preempted: The runs were told to stop; they have saved themselves.
        ConfigError: Another process is writing one of these runs.
        CheckpointError: A checkpoint could not be written, or the one named cannot be read.
        DataError, TrainingError: From data and loop; the disk is full.
    """
    config, folders = runs[0].config, [run.config.folder for run in runs]
    steps = config.optim.steps
    batch = config.loader.batch_size
    states = [
        TrainState.start(runtime.shard(run.module), run.config.optim, global_batch=batch, coordinates=run.coordinates)
        for run in runs
    ]
    with ExitStack() as around:
        chosen: tuple[list[Path | None], list[str]] = [], []
        with runtime.together():
            if runtime.is_main:
                for folder in folders:
                    around.enter_context(hold_run_folder(folder))
                chosen = choose_checkpoints(folders, resume, redo=config.checkpoint.every)
        checkpoints, remarks = runtime.broadcast(chosen)
        for run, state in zip(runs, states, strict=True):
            state.guard = _guard(run, state, runtime)
        for state, checkpoint in zip(states, checkpoints, strict=True):
            if checkpoint is not None:
                load_checkpoint(checkpoint, state)
        logs = [_log(runtime, runs, i, start=states[0].step) for i in range(len(runs))]
        log = logs[0]
        trouble = runtime.trackers.start(config.name, to_dict(config))
        ways = prepare(runs[0].module, runtime.device, torch.bfloat16 if runtime.precision == "bf16" else torch.float32)
        for sentence in [*remarks, *filter(None, (trouble, ways))]:
            log.say(sentence)
        what = "Training" if len(runs) == 1 else f"Training {len(runs)} students together"
        log.say(f"{what}, step {log.start} to {steps}" + (f", from {checkpoints[0]}" if checkpoints[0] else ""))

        for each in logs:
            around.enter_context(each)
        around.enter_context(_in_words(runtime, config.folder))
        stop = around.enter_context(StopRequest())
        writers = [around.enter_context(CheckpointWriter(run.config.folder, run.config.checkpoint)) for run in runs]
        hooks = [_hooks(*parts) for parts in zip(runs, logs, writers, strict=True)]
        lanes = [Lane(*parts) for parts in zip(states, logs, hooks, strict=True)]
        stream = batches(seed=config.runtime.seed, start_step=states[0].step, steps=steps)
        ledger = SkipLedger(images, config.loader.max_bad_share)
        train(
            runtime,
            lanes,
            guarded(stream, ledger),
            stop=lambda: bool(stop) or any(writer.failed for writer in writers),
            workers=config.loader.workers,
        )
        for writer in writers:
            writer.wait()
        unfinished = [(lane, writer) for lane, writer in zip(lanes, writers, strict=True) if lane.error is None]
        if (step := unfinished[0][0].state.step) < steps:
            for lane, writer in unfinished:
                writer.save(lane.state)
            for writer in writers:
                writer.wait()
            reason = next(filter(None, runtime.gather(stop.reason)), "another process was told to stop")
            raise Preempted(
                f"{reason}; saved at step {step} of {steps}, after which the same command with --resume goes on."
            )
    return lanes


def _log(runtime: Runtime, runs: Sequence[Run], i: int, *, start: int) -> RunLog:
    """The log of run number `i`. The first has the screen; a tracker's names begin with the network if it is shared."""
    config = runs[i].config

    def track(values: Mapping[str, float], step: int) -> str | None:
        return runtime.trackers.log({f"{config.network}/{name}": value for name, value in values.items()}, step)

    return RunLog(
        config.folder,
        replace(config.log, progress=config.log.progress and i == 0),
        steps=config.optim.steps,
        start=start,
        main=runtime.is_main,
        track=track if len(runs) > 1 else runtime.trackers.log,
        console=runtime.console,
    )


def _guard(run: Run, state: TrainState, runtime: Runtime) -> Guard | None:
    """What watches a run, at its start. The first process's measurements count, lest processes take different turns."""
    if run.guard is None:
        return None
    measure, start = run.guard
    return Guard(
        state.student,
        state.ema,
        measure=lambda: runtime.broadcast(measure()),
        start=runtime.broadcast(start),
        steps=state.config.steps,
    )


def _hooks(run: Run, log: RunLog, writer: CheckpointWriter) -> list[Hook]:
    """What a run does after its steps."""
    steps, save_every, measure_every = run.config.optim.steps, run.config.checkpoint.every, run.config.evaluation.every

    def watch(state: TrainState, _: object) -> None:
        if state.guard and (found := state.guard(state.step, log.say)):
            log.write(state.step, {f"guard/{name}": value for name, value in found.items()})

    def save(state: TrainState, _: object) -> None:
        if state.step == steps or (save_every and state.step % save_every == 0):
            writer.save(state)

    def evaluate(state: TrainState, _: object) -> None:
        if measure_every and state.step % measure_every == 0 and state.step < steps:
            log.write(state.step, {f"heldout/{name}": value for name, value in run.measure().items()})

    return [watch, save, evaluate, HealthWatch(log.say, from_step=run.config.optim.warmup_steps)]


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
