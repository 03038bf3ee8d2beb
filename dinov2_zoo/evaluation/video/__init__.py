"""Masks carried through a video."""

from dinov2_zoo.config.evaluate import EvaluateConfig
from dinov2_zoo.evaluation.task import Opener, Task
from dinov2_zoo.evaluation.video.protocol import evaluate_video
from dinov2_zoo.evaluation.video.readers import VideoSet, open_video


def _open(config: EvaluateConfig, opened: Opener) -> VideoSet:
    return opened(open_video, config.data.video or "")


TASKS = (Task("video", evaluate_video, "video", _open, ("video",), {"j_and_f": "J&F, %"}),)
