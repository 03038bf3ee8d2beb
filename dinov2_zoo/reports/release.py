"""What a finished distillation leaves in its run folder, and on the screen."""

from collections.abc import Mapping
from dataclasses import replace

from rich.console import Console

from dinov2_zoo.config import DistillConfig
from dinov2_zoo.evaluation.distilled.heldout import Examiner, StudentMetrics
from dinov2_zoo.evaluation.table import terminal_table
from dinov2_zoo.hub.student import save_student
from dinov2_zoo.objectives.distillation import Distillation
from dinov2_zoo.reports.distillation import distillation_report, distillation_table
from dinov2_zoo.training.runtime import Runtime
from dinov2_zoo.training.state import TrainState

Stages = dict[str, StudentMetrics]
"""What was measured of a student, from its first weights on, in order."""


def release_student(
    config: DistillConfig, runtime: Runtime, state: TrainState, stages: Mapping[str, StudentMetrics], examine: Examiner
) -> None:
    """Write a trained student and its report, and show its table. Every process must call it.

    Args:
        config: Of its run.
        runtime: Where the run is.
        state: After the last step; its average is the student.
        stages: What was measured of it.
        examine: What measured it.
    """
    folder, module, remarks = config.folder, state.module, state.guard.remarks if state.guard else []
    assert isinstance(module, Distillation)
    table = distillation_table(stages, examine, module, metrics=folder / "metrics.jsonl")
    table = replace(table, note=" ".join([table.note, *remarks]))
    weights = runtime.full_state_dict(module.ema)
    if runtime.is_main:
        save_student(folder / "student", module, weights)
        distillation_report(folder, table, stages, examine, pictures=config.evaluation.pictures)
        places = f"Student   {folder}/student\nReport    {folder}/report.html\nPictures  {folder}/features.jpg"
        Console(soft_wrap=True).print(terminal_table(table), places, sep="\n")
