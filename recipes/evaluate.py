"""Measure frozen models by the paper's protocols: k-NN, linear, logistic, depth, segmentation, retrieval, video.

Paper     Oquab et al. 2023, section 7; every setting's source stands in its help below.
Run       dinov2-zoo evaluate facebook/dinov2-base --tasks knn,linear,depth:lin4
          --data.train imagenet:/data/imagenet@train --data.test imagenet:/data/imagenet@val --data.depth nyu:/data/nyu
Try it    make evaluate-demo: the demo's teacher, student and an untrained twin, minutes on 2 CPU cores.
Result    A table, and for each model and task one JSON record: metrics, settings, data, versions, hardware.
"""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from dinov2_zoo.arguments import parse, run
from dinov2_zoo.config.evaluate import EvaluateConfig


def evaluate(config: EvaluateConfig) -> None:
    """Measure, show."""
    from dinov2_zoo.evaluation.results import results_table
    from dinov2_zoo.evaluation.suite import evaluate_models
    from dinov2_zoo.evaluation.table import terminal_table
    from dinov2_zoo.training.runtime import Runtime

    with Runtime(config.runtime) as runtime:
        console = Console(soft_wrap=True, highlight=False, quiet=not runtime.is_main)
        found = evaluate_models(config, runtime, lambda line: console.print(line, markup=False))
        records = {model.subject.name: model.records for model in found}
        students = [model.subject.name for model in found if model.subject.is_student]
        console.print(terminal_table(results_table(records, students), left=(1,)))
        for model in found:
            console.print(f"{model.subject.name}: records in {model.subject.folder}", markup=False)


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line, measure, show."""
    config, _ = parse(EvaluateConfig, argv, script=Path(__file__), position="model", resumes=False)
    evaluate(config)


if __name__ == "__main__":
    run(main)
