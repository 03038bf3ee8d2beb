"""Several evaluations of several models in one go: each leaves a record, and one table shows them all."""

import difflib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from dinov2_zoo.config.evaluate import EvaluateConfig, EvaluationData
from dinov2_zoo.errors import ConfigError
from dinov2_zoo.evaluation import (
    classification,
    correspondence,
    depth,
    in_context,
    retrieval,
    segmentation,
    speed,
    video,
)
from dinov2_zoo.evaluation.encoders.adapters import open_encoder
from dinov2_zoo.evaluation.encoders.encoder import LayeredEncoder
from dinov2_zoo.evaluation.encoders.subjects import Subject, subjects
from dinov2_zoo.evaluation.record import Computed, cached_record, write_record
from dinov2_zoo.evaluation.task import Task
from dinov2_zoo.evaluation.workspace import Say, Workspace, silent
from dinov2_zoo.training.runtime import Runtime

FOLDERS = (classification, depth, segmentation, in_context, correspondence, retrieval, video, speed)
"""A new kind of task is one more folder here, and one more group of settings in `EvaluateConfig`."""

TASKS: dict[str, Task] = {task.name: task for folder in FOLDERS for task in folder.TASKS}


@dataclass(frozen=True)
class ModelRecords:
    """What the evaluation of one model left."""

    subject: Subject
    records: list[dict[str, Any]]
    """One for each task, as `record.write_record` writes it."""


def evaluate_models(config: EvaluateConfig, runtime: Runtime, say: Say = silent) -> list[ModelRecords]:
    """Run every task on every model; what has a record of the same weights, data and settings is not run again.

    Args:
        config: Models, tasks, data, settings.
        runtime: Processes and precision.
        say: Takes a line of progress now and then.

    Raises:
        ConfigError: A task is unknown, or its data are not named.
        DataError: Data are missing or damaged; names the file. Finished tasks keep their records.
    """
    tasks = parse_tasks(config.tasks, config.data)
    models = subjects(config.model, config.out)
    # All data are opened before the first model: a wrong path is told now, not after hours.
    opened = cache(lambda opener, text: opener(text))
    data = {task: task.open(config, opened) for task in tasks}
    found: list[ModelRecords] = []
    for subject in models:
        with runtime.main_first():
            encoder = open_encoder(
                subject.source, device=runtime.device, autocast=runtime.autocast, seed=config.runtime.seed
            )
        shared = {"precision": runtime.precision, "weights": encoder.fingerprint()}
        records: list[dict[str, Any]] = []
        for task in tasks:
            asked = {"settings": task.asked(config), **shared}
            known = None if config.overwrite else cached_record(subject.folder, task.name, asked)
            record = runtime.broadcast(known)
            if record is None:
                say(f"{subject.name}, {task.name}")
                workspace = Workspace(runtime, subject.folder, lambda line: say(f"  {line}"), runtime.precision)
                settings = getattr(config, task.settings) if task.settings else None
                record = _measure(task, encoder, data[task], settings, workspace, subject, asked)
                record = runtime.broadcast(record)
            else:
                say(f"{subject.name}, {task.name}: measured before ({subject.folder}; --overwrite measures it anew)")
            assert record is not None
            records.append(record)
        found.append(ModelRecords(subject, records))
    return found


def _measure(
    task: Task,
    encoder: LayeredEncoder,
    data: Any,
    settings: Any,
    workspace: Workspace,
    subject: Subject,
    asked: Mapping[str, Any],
) -> dict[str, Any] | None:
    """Run a task; the main process writes its record and returns it."""
    started = time.perf_counter()
    result = task.run(encoder, data, settings, workspace)
    context, seconds = workspace.context, time.perf_counter() - started
    if not context.is_main:
        return None
    computed = Computed(context.world_size, context.device.type, seconds)
    return write_record(subject.folder, subject.source, task.name, result, asked=asked, computed=computed)


def parse_tasks(text: str, data: EvaluationData) -> list[Task]:
    """The tasks that a list names, in its order.

    Raises:
        ConfigError: One is unknown (the nearest is named), or lacks its data.
    """
    names = list(dict.fromkeys(filter(None, (part.strip() for part in text.split(",")))))
    for name in names:
        if name not in TASKS:
            near = [t for t in TASKS if t.startswith(f"{name}:")] or difflib.get_close_matches(name, TASKS, 1, 0.4)
            raise ConfigError(f"There is no task `{name}`: use {' or '.join(near) or ', '.join(TASKS)}.")
        for need in TASKS[name].data[:1]:
            if getattr(data, need) is None:
                raise ConfigError(f"{name} needs images: name them with --data.{need} (see --help for its kinds).")
    return [TASKS[name] for name in names]
