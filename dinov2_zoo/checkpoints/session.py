"""A run from its first to its last step: what every training recipe does around the loop."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from torch import nn

from dinov2_zoo.checkpoints.resume import latest_checkpoint, load_checkpoint, save_checkpoint
from dinov2_zoo.config import DistillConfig, PretrainConfig, to_dict
from dinov2_zoo.data.batch import Batch
from dinov2_zoo.data.skips import SkipLedger, guarded
from dinov2_zoo.training.health_watch import HealthWatch
from dinov2_zoo.training.log import RunLog
from dinov2_zoo.training.loop import train
from dinov2_zoo.training.runtime import Runtime
from dinov2_zoo.training.state import TrainState


def train_run(
    config: DistillConfig | PretrainConfig,
    runtime: Runtime,
    folder: Path,
    module: nn.Module,
    batches: Callable[..., Iterable[Batch]],
    *,
    images: int,
    resume: bool,
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
        resume: Continue from the newest checkpoint in `folder`, if there is one.
        measure: Figures of the average, by name; called every `evaluation.every` steps.

    Returns:
        The state after the last step.
    """
    steps, every = config.optim.steps, config.evaluation.every
    state = TrainState.start(runtime.shard(module), config.optim, global_batch=config.loader.batch_size)
    checkpoint = latest_checkpoint(folder) if resume else None
    if checkpoint is not None:
        load_checkpoint(checkpoint, state)
    runtime.start_trackers(config.name, to_dict(config))
    log = RunLog(folder, config.log, steps=steps, start=state.step, main=runtime.is_main, track=runtime.track)
    log.say(f"Training, step {state.step} to {steps}")

    def save(state: TrainState, _: object) -> None:
        if state.step == steps or (config.checkpoint.every and state.step % config.checkpoint.every == 0):
            save_checkpoint(folder, state, keep=config.checkpoint.keep)

    def evaluate(state: TrainState, _: object) -> None:
        if every and state.step % every == 0 and state.step < steps:
            log.write(state.step, {f"heldout/{name}": figure for name, figure in measure().items()})

    with log:
        stream = batches(seed=config.runtime.seed, start_step=state.step, steps=steps)
        ledger = SkipLedger(images, config.loader.max_bad_share)
        watch = HealthWatch(log.say, from_step=config.optim.warmup_steps)
        train(runtime, state, guarded(stream, ledger), log, [save, evaluate, watch])
    return state
