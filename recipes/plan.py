"""Say what a run needs on GPUs, without any: memory, collectives, operations, seconds; and what fits if it does not.

How       The run's own step, on tensors without numbers and with processes that are not there (dinov2_zoo/simulation).
Try it    dinov2-zoo plan --config recipes/configs/vitg14.yaml --gpus 64 --gpu h100-80
Your own  dinov2-zoo plan distill --student vits14 --teacher vitl14 --gpus 8 --gpu a100-80
          dinov2-zoo plan adapt-resolution RUN --size 518 --gpus 8
          The options of the run itself may follow. Which run it is: by its word, or by the names in the file.
Result    Tables; the exit code is 2 where the run does not fit.
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

from dinov2_zoo.arguments import parse, run
from dinov2_zoo.config import DistillConfig, PretrainConfig
from dinov2_zoo.errors import ConfigError
from dinov2_zoo.recipes import distill_arguments, pretrain_arguments

RUNS = ("pretrain", "distill", "adapt-resolution")


@dataclass(frozen=True)
class PlanConfig:
    """On what the run is to be planned."""

    gpus: int = 1
    """Processes of the run, a GPU each, over all machines."""
    gpu: Literal["h100-80", "h200", "a100-40", "a100-80", "l4", "rtx4090"] = "h100-80"
    """The GPU."""
    reshard: bool = False
    """Free gathered weights between forward and backward, as `accelerate/fsdp.yaml` does."""
    copies: int = 1
    """Whole copies of the weights among the GPUs, as `accelerate/hsdp.yaml` has."""
    machine: int = 8
    """GPUs in each machine."""
    json: str | None = None
    """A file for the figures."""


def sorted_out(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """A plan's own options, and the run's words."""
    names = {f"--{field.name}" for field in dataclasses.fields(PlanConfig)} | {"--help", "-h"}
    mine: list[str] = []
    rest: list[str] = []
    into = rest
    for word in argv:
        if word.startswith("-"):
            into = mine if word.partition("=")[0] in names else rest
        elif into is mine and (not mine or "=" in mine[-1] or not mine[-1].startswith("-")):
            into = rest  # an option of a plan takes one value
        into.append(word)
    return mine, rest


def config_of(words: Sequence[str]) -> PretrainConfig | DistillConfig:
    """The configuration of the run that words are about."""
    word, rest = (words[0], list(words[1:])) if words and words[0] in RUNS else (_guess(words), list(words))
    if word == "adapt-resolution":
        from dinov2_zoo.recipes.adapt_resolution import AdaptConfig

        return parse(AdaptConfig, rest, position="run", resumes=False)[0].adapted()
    if not any(option.partition("=")[0] == "--data" for option in rest):
        rest.append("--data=images")  # they are not read, but the demo's settings are not meant
    return (pretrain_arguments if word == "pretrain" else distill_arguments)(rest)[0]


def _guess(words: Sequence[str]) -> str:
    """Which run some options and files belong to."""
    names = {word[2:].partition("=")[0].partition(".")[0] for word in words if word.startswith("--")}
    for option, value in zip(words, [*words[1:], ""], strict=True):
        if option.partition("=")[0] == "--config":
            file = Path(option.partition("=")[2] or value)
            names |= set(yaml.safe_load(file.read_text()) or {}) if file.is_file() else set()
    fields = [{field.name for field in dataclasses.fields(kind)} for kind in (PretrainConfig, DistillConfig)]
    return "pretrain" if names & (fields[0] - fields[1]) else "distill"


def plan(asked: PlanConfig, config: PretrainConfig | DistillConfig) -> None:
    """Simulate, show; try what would fit.

    Raises:
        ConfigError: The run does not fit.
    """
    from rich.console import Console

    from dinov2_zoo.evaluation.table import terminal_table
    from dinov2_zoo.simulation import report
    from dinov2_zoo.simulation.chips import CHIPS
    from dinov2_zoo.simulation.remedies import try_remedies
    from dinov2_zoo.simulation.runtime import Processes
    from dinov2_zoo.simulation.step import simulate
    from dinov2_zoo.simulation.timing import predict

    console = Console(soft_wrap=True, highlight=False)
    chip, processes = CHIPS[asked.gpu], Processes(asked.gpus, asked.reshard, asked.copies)
    step = simulate(config, processes)
    phases = predict(step, chip, machine=asked.machine)
    tables = [report.memory_table(step), report.time_table(phases), report.collectives_table(step)]
    for table in filter(None, tables):
        console.print(terminal_table(table))
    console.print(report.summary(step, phases, chip), markup=False)
    console.print(report.verdict(step, chip, asked.gpu), markup=False)
    if asked.json:
        Path(asked.json).write_text(json.dumps(report.figures(step, phases), indent=2) + "\n")
    if step.peak <= chip.room:
        return
    fitting: list[str] = []
    for trial in try_remedies(config, processes, chip):
        console.print(report.trial_line(trial, chip), markup=False)
        fitting += [trial.change] * (trial.step.peak <= chip.room)
    remedy = f"try {' or '.join(fitting)}." if fitting else "take larger GPUs, or fewer images with loader.batch_size."
    raise ConfigError(f"The run does not fit on {asked.gpus} x {asked.gpu}: {remedy}")


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line, plan."""
    mine, rest = sorted_out(sys.argv[1:] if argv is None else argv)
    asked, _ = parse(PlanConfig, mine, script=Path(__file__), resumes=False)
    plan(asked, config_of(rest))


if __name__ == "__main__":
    run(main)
