"""Measure frozen models by the paper's protocols: k-NN, linear, logistic, depth, segmentation, retrieval, video.

Paper     Oquab et al. 2023, section 7; every setting's source stands in its help below.
Run       accelerate launch recipes/evaluate.py --model facebook/dinov2-base --tasks knn,linear,depth:lin4
          --data.train imagenet:/data/imagenet@train --data.test imagenet:/data/imagenet@val --data.depth nyu:/data/nyu
Try it    make evaluate-demo: the demo's teacher, student and an untrained twin, minutes on 2 CPU cores.
Result    A table, and for each model and task one JSON record: metrics, settings, data, versions, hardware. With one
          process, `dinov2-zoo evaluate` is the same.
"""

from dinov2_zoo.cli import parse, run
from dinov2_zoo.commands import evaluate
from dinov2_zoo.config.evaluate import EvaluateConfig


def main() -> None:
    """Read the command line, measure, show."""
    config, _ = parse(EvaluateConfig, description=__doc__, resumes=False)
    evaluate(config)


if __name__ == "__main__":
    run(main)
