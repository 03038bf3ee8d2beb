"""Speed of a model's forward pass."""

from dinov2_zoo.evaluation.speed.throughput import evaluate_speed
from dinov2_zoo.evaluation.task import Task

TASKS = (Task("speed", evaluate_speed, units={"images_per_second": "images/s"}),)
