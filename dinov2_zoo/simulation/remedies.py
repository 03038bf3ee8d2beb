"""What makes a run fit that does not: found by trying it, step by step, in the simulation."""

from collections.abc import Generator
from dataclasses import dataclass, replace

from dinov2_zoo.config import DistillConfig, PretrainConfig
from dinov2_zoo.errors import ConfigError
from dinov2_zoo.simulation.chips import Chip
from dinov2_zoo.simulation.runtime import Processes
from dinov2_zoo.simulation.step import Step, simulate

RESHARD = "--reshard"
CHECKPOINT = "--runtime.activation_checkpointing true"
SPLITS = (2, 4, 8)
"""Micro-batches, and times as many GPUs, that are tried."""


@dataclass(frozen=True)
class Trial:
    """A change, and what came of it."""

    change: str
    """As options of the command line."""
    step: Step


def try_remedies(
    config: PretrainConfig | DistillConfig, processes: Processes, chip: Chip
) -> Generator[Trial, None, None]:
    """Changes to a run that does not fit, mild ones first, until one fits; then what more GPUs would do.

    Args:
        config: Of the run.
        processes: Of the run.
        chip: What it is to fit on.
    """
    sharded, recomputing = replace(processes, reshard=True), _recomputing(config)
    saves_weights, saves_blocks = processes.count > 1 and not processes.reshard, recomputing != config
    mild = [
        ([RESHARD], config, sharded, saves_weights),
        ([CHECKPOINT], recomputing, processes, saves_blocks),
        ([RESHARD, CHECKPOINT], recomputing, sharded, saves_weights and saves_blocks),
    ]
    words = [RESHARD] * saves_weights + [CHECKPOINT] * saves_blocks
    best = sharded if saves_weights else processes
    split = [(n * config.optim.accumulate, n) for n in SPLITS]
    more = [
        [([*words, f"--optim.accumulate {n}"], _split(recomputing, n), best, True) for n, _ in split],
        [
            ([*words, f"--gpus {n * processes.count}"], recomputing, replace(best, count=n * processes.count), True)
            for _, n in split
        ],
    ]
    for family in [mild, *more]:
        for changes, changed, group, helps in family:
            if not helps:
                continue
            try:
                step = simulate(changed, group)
            except ConfigError:  # the batch does not divide
                continue
            yield Trial(" ".join(changes), step)
            if step.peak <= chip.room:
                if family is not mild:
                    break
                return


def _recomputing(config: PretrainConfig | DistillConfig) -> PretrainConfig | DistillConfig:
    return replace(config, runtime=replace(config.runtime, activation_checkpointing=True))


def _split(config: PretrainConfig | DistillConfig, count: int) -> PretrainConfig | DistillConfig:
    return replace(config, optim=replace(config.optim, accumulate=count))
