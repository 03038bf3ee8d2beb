"""Depth from frozen features: lin.1, lin.4 and DPT heads, their training, and the metrics of NYUv2 and KITTI."""

from functools import partial

from dinov2_zoo.config.evaluate import EvaluateConfig
from dinov2_zoo.evaluation.depth.protocol import evaluate_depth
from dinov2_zoo.evaluation.depth.readers import DepthData, open_depth
from dinov2_zoo.evaluation.task import Opener, Task


def _open(config: EvaluateConfig, opened: Opener) -> DepthData:
    return opened(open_depth, config.data.depth or "")


TASKS = tuple(
    Task(f"depth:{head}", partial(evaluate_depth, head=head), "depth", _open, ("depth",), {"rmse": "RMSE, m"})
    for head in ("lin1", "lin4", "dpt")
)
