"""What a pretraining shows at its end: k-NN before and after, and whether the teacher is in health."""

import json
import statistics
from collections.abc import Mapping
from pathlib import Path

from dinov2_zoo.evaluation.distilled.heldout import KNN_K
from dinov2_zoo.evaluation.table import Cell, Table
from dinov2_zoo.reports.curves import read_metrics
from dinov2_zoo.reports.html import write_report

# Metric in metrics.jsonl and what it is called.
HEALTH_ROWS = (
    ("health/information", "nats that an image tells about its prototype"),
    ("health/prototypes_used", "images with a prototype of their own, share"),
    ("health/rank", "directions filled by class tokens"),
    ("health/neighbour_distance", "distance to the nearest neighbour"),
)


def pretraining_table(stages: Mapping[str, Mapping[str, float]], metrics: Path) -> Table:
    """Metrics of the teacher at some stages.

    Args:
        stages: {name: {"knn": accuracy}}, the first and the last.
        metrics: metrics.jsonl; its first and last lines give the health metrics.
    """
    rows: list[list[Cell]] = []
    if any(stages.values()):
        rows.append([f"k-NN accuracy (k = {KNN_K})", *(found.get("knn") for found in stages.values())])
    series = read_metrics(metrics) if metrics.exists() else {}
    blanks: list[Cell] = [None] * (len(stages) - 2)
    for name, title in HEALTH_ROWS:
        if series.get(name):
            rows.append([title, series[name][0][1], *blanks, series[name][-1][1]])
    if series.get("images_per_second"):
        speed = statistics.median(rate for _, rate in series["images_per_second"])
        rows.append(["training, images/s", None, *blanks, speed])
    return Table("The teacher", ["", *stages], rows, "Health metrics: of the first and the last logged batches.")


def pretraining_report(folder: Path, table: Table) -> None:
    """Write report.html into a run folder that holds config.json and metrics.jsonl."""
    record = json.loads((folder / "config.json").read_text())
    config = record["config"]
    begun = f"from {config['init']}" if config["init"] != "random" else "from random weights"
    what = "Heads fitted on a frozen backbone" if config["freeze_backbone"] else "Self-distillation"
    seen = config["optim"]["steps"] * config["loader"]["batch_size"]
    network = config["model"] if config["init"] == "random" else config["init"]
    write_report(
        folder / "report.html",
        title=f"{network}, {'heads fitted' if config['freeze_backbone'] else 'pretrained'}",
        summary=f"{what} {begun} on {config['data']}: {config['optim']['steps']:,} steps, {seen:,} images seen.",
        tables=[table],
        metrics_file=folder / "metrics.jsonl",
        config=config,
        provenance=record["provenance"],
    )
