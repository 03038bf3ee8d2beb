"""Several evaluations of several models in one go: each leaves a record, and one table shows them all."""

import difflib
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from dinov2_zoo.config import to_dict
from dinov2_zoo.config.evaluate import EvaluateConfig, EvaluationData
from dinov2_zoo.data.heldout import split_by_class
from dinov2_zoo.data.image_sets import open_labelled
from dinov2_zoo.errors import ConfigError
from dinov2_zoo.evaluation.classification.knn import evaluate_knn
from dinov2_zoo.evaluation.classification.linear import evaluate_linear
from dinov2_zoo.evaluation.classification.logistic import evaluate_logistic
from dinov2_zoo.evaluation.classification.robust_sets import open_robust
from dinov2_zoo.evaluation.depth.protocol import evaluate_depth
from dinov2_zoo.evaluation.depth.readers import open_depth
from dinov2_zoo.evaluation.encoders.adapters import open_encoder
from dinov2_zoo.evaluation.encoders.encoder import LayeredEncoder
from dinov2_zoo.evaluation.encoders.subjects import Subject, subjects
from dinov2_zoo.evaluation.record import Result, cached_record, write_record
from dinov2_zoo.evaluation.retrieval.protocol import evaluate_retrieval
from dinov2_zoo.evaluation.retrieval.readers import open_retrieval
from dinov2_zoo.evaluation.segmentation.protocol import evaluate_segmentation
from dinov2_zoo.evaluation.segmentation.readers import open_segmentation
from dinov2_zoo.evaluation.throughput import evaluate_speed
from dinov2_zoo.evaluation.video.protocol import evaluate_video
from dinov2_zoo.evaluation.video.readers import open_video
from dinov2_zoo.training.runtime import Runtime

Say = Callable[[str], object]
Opened = Callable[[Callable[[str], Any], str], Any]
"""Opens data by a reader and a line of text, or gives what was opened before."""

# Task: the field of `EvaluationData` that it needs.
TASKS = {
    "knn": "train",
    "linear": "train",
    "logistic": "train",
    "depth:lin1": "depth",
    "depth:lin4": "depth",
    "depth:dpt": "depth",
    "segmentation:linear": "segmentation",
    "segmentation:ms": "segmentation",
    "retrieval": "retrieval",
    "video": "video",
    "speed": None,
}

HELDOUT = 0.2
"""Share of each class that is set aside to be measured on where no test images are named (chosen here)."""


@dataclass(frozen=True)
class Measured:
    """What an evaluation left."""

    subject: Subject
    records: list[dict[str, Any]]
    """One for each task, as `record.write_record` writes it."""


def evaluate_models(config: EvaluateConfig, runtime: Runtime, say: Say = lambda _: None) -> list[Measured]:
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
    # Once for all tasks that share them: a walk over ImageNet takes minutes.
    opened = cache(lambda opener, text: opener(text))
    runs = {task: _prepare(task, config, opened) for task in tasks}
    found: list[Measured] = []
    for subject in models:
        with runtime.main_first():
            encoder = open_encoder(
                subject.source, device=runtime.device, autocast=runtime.autocast, seed=config.runtime.seed
            )
        weights = encoder.fingerprint()
        records: list[dict[str, Any]] = []
        for task, run in runs.items():
            asked = {"settings": _settings(task, config), "precision": runtime.precision, "weights": weights}
            record = runtime.broadcast(None if config.again else cached_record(subject.folder, task, asked))
            if record is not None:
                say(f"{subject.name}, {task}: measured before ({subject.folder}; --again true measures it anew)")
            else:
                say(f"{subject.name}, {task}")
                started = time.perf_counter()
                result = run(encoder, runtime, subject, lambda line: say(f"  {line}"))
                seconds = time.perf_counter() - started
                if runtime.is_main:
                    record = write_record(subject.folder, subject.source, task, result, asked=asked, seconds=seconds)
                record = runtime.broadcast(record)
            assert record is not None
            records.append(record)
        found.append(Measured(subject, records))
    return found


def parse_tasks(text: str, data: EvaluationData) -> list[str]:
    """The tasks that a list names, in its order.

    Raises:
        ConfigError: One is unknown (the nearest is named), or lacks its data.
    """
    tasks = list(dict.fromkeys(filter(None, (part.strip() for part in text.split(",")))))
    for task in tasks:
        if task not in TASKS:
            near = [t for t in TASKS if t.startswith(f"{task}:")] or difflib.get_close_matches(task, TASKS, 1, 0.4)
            raise ConfigError(f"There is no task `{task}`: use {' or '.join(near) or ', '.join(TASKS)}.")
        need = TASKS[task]
        if need is not None and getattr(data, need) is None:
            raise ConfigError(f"{task} needs images: name them with --data.{need} (see --help for its kinds).")
    return tasks


def _settings(task: str, config: EvaluateConfig) -> dict[str, Any]:
    """All that was asked for and that the figures of a task depend on."""
    kind = task.partition(":")[0]
    need = TASKS[task]
    names = ("train", "test", "robust") if need == "train" else (need,) if need else ()
    own = to_dict(getattr(config, kind)) if hasattr(config, kind) else {}
    return {**own, "seed": config.runtime.seed, "data": {name: getattr(config.data, name) for name in names}}


def _prepare(
    task: str, config: EvaluateConfig, opened: Opened
) -> Callable[[LayeredEncoder, Runtime, Subject, Say], Result]:
    """Open a task's data; what is returned measures a model on them."""
    kind, _, head = task.partition(":")
    data = config.data
    if kind == "depth":
        assert data.depth
        protocol = partial(evaluate_depth, data=opened(open_depth, data.depth), source=data.depth, head=head)
    elif kind == "segmentation":
        assert data.segmentation
        images = opened(open_segmentation, data.segmentation)
        protocol = partial(evaluate_segmentation, data=images, source=data.segmentation, head=head)
    elif kind == "retrieval":
        assert data.retrieval
        protocol = partial(evaluate_retrieval, data=opened(open_retrieval, data.retrieval), source=data.retrieval)
    elif kind == "video":
        assert data.video
        protocol = partial(evaluate_video, data=opened(open_video, data.video), source=data.video)
    elif kind == "speed":
        return lambda encoder, runtime, _, __: evaluate_speed(encoder, runtime.device, runtime.precision)
    else:
        protocol = _classification(kind, config, opened)
    return lambda encoder, runtime, subject, say: protocol(
        encoder,
        config=getattr(config, kind),
        processes=runtime,
        folder=subject.folder,
        say=say,
    )


def _classification(kind: str, config: EvaluateConfig, opened: Opened) -> Callable[..., Result]:
    data = config.data
    assert data.train
    train, test = opened(open_labelled, data.train), opened(open_labelled, data.test) if data.test else None
    if kind == "knn":
        return partial(evaluate_knn, train=train, test=test, source=data.train)
    if test is None:
        train, test = split_by_class(train, HELDOUT, config.runtime.seed)
    if kind == "logistic":
        return partial(evaluate_logistic, train=train, test=test, source=data.train)
    robust = [open_robust(text.strip(), train) for text in (data.robust or "").split(",") if text.strip()]
    return partial(evaluate_linear, train=train, test=test, source=data.train, robust=robust)
