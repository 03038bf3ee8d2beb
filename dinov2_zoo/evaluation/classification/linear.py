"""Linear evaluation: a grid of probes on frozen features, trained on one pass of the backbone (paper B.3)."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision.transforms.v2.functional as tv
from jaxtyping import Float
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torchvision.transforms import InterpolationMode

from dinov2_zoo.config import to_dict
from dinov2_zoo.config.classification import LinearConfig
from dinov2_zoo.data.augment import draw_box
from dinov2_zoo.data.heldout import split_by_class
from dinov2_zoo.data.preprocess import normalise, to_uint8
from dinov2_zoo.data.sources import Source
from dinov2_zoo.errors import CheckpointError, ConfigError, DataError
from dinov2_zoo.evaluation.classification.labelled import LabelledData, skipped_notes
from dinov2_zoo.evaluation.classification.probe_grid import ProbeGrid, cosine_factor
from dinov2_zoo.evaluation.classification.robust_sets import robust_accuracy
from dinov2_zoo.evaluation.encoders.encoder import LayeredEncoder
from dinov2_zoo.evaluation.encoders.feature_store import (
    Kind,
    Stored,
    last_features,
    source_checksum,
    stored_features,
)
from dinov2_zoo.evaluation.encoders.reading import ReadImages, TrainingOrder, read_ahead
from dinov2_zoo.evaluation.record import Result, checksum
from dinov2_zoo.evaluation.workspace import Workspace
from dinov2_zoo.files import atomic_write

ROBUST = "robust/"
"""Begins the names of the metrics of robustness sets."""
CHOICE_SHARE = 0.1
"""Share of each class in the training images that chooses the winner with choose_on "heldout" (chosen here: it only has
to rank probes, so it is smaller than `labelled.TEST_SHARE`, which results are reported on)."""


def evaluate_linear(encoder: LayeredEncoder, data: LabelledData, config: LinearConfig, workspace: Workspace) -> Result:
    """Train the grid and measure every probe; the headline is the winner's accuracy, with how it was chosen in a note.

    Args:
        encoder: The model.
        data: Images to learn from and to be measured on; more sets for the winner only.
        config: Settings.
        workspace: Processes share every batch and every extraction; the probes' state is saved in `linear`.

    Raises:
        CheckpointError: The folder holds the probes of another training.
        ConfigError: No probe has finite weights, or the model has too few blocks.
    """
    if max(config.blocks) > encoder.depth:
        raise ConfigError(f"The model has {encoder.depth} blocks, fewer than linear.blocks {config.blocks}: lower it.")
    assert data.train.labels is not None and data.test is not None
    heldout = config.choose_on == "heldout"
    learnt, judge = split_by_class(data.train, CHOICE_SHARE, 0) if heldout else (data.train, data.test)
    inputs = Inputs(config.blocks, encoder.dim)
    draw = torch.Generator().manual_seed(0)
    grid = ProbeGrid(inputs.widths(), max(data.train.labels) + 1, config.rates, draw, config.batch_size / 256)
    grid.to(workspace.device)
    skipped: dict[str, str] = {}

    def stored(part: Source) -> Stored:
        kind, options = inputs.kind(config.size), {"batch_size": config.pass_size, "workers": config.workers}
        found = stored_features(encoder, part, kind, workspace, **options)
        skipped.update(found.skipped)
        return found

    if config.path == "cached":
        batches = _cached(stored(learnt), config, workspace)
    else:
        batches = _augmented(encoder, learnt, config, workspace, skipped)
    key = {"weights": encoder.fingerprint(), "images": source_checksum(learnt), **to_dict(config)}
    _train(grid, inputs, batches, config, workspace, key)

    def accuracies(part: Source) -> dict[str, float]:
        seen = stored(part)
        assert seen.labels is not None
        right = torch.zeros(len(grid.names))
        for rows in torch.arange(len(seen.labels)).split(1024):
            found = grid(inputs.split(seen.features[rows].to(workspace.device))).argmax(2)
            right += (found.cpu() == seen.labels[rows, None]).sum(0)
        return dict(zip(grid.names, (right / len(seen.labels)).tolist(), strict=True))

    def winners_logits(part: Stored) -> Tensor:
        column = grid.names.index(winner)
        parts = part.features.split(1024)
        return torch.cat([grid(inputs.split(rows.to(workspace.device)))[:, column].cpu() for rows in parts])

    dead = grid.dead()
    with torch.no_grad():
        judged = {name: value for name, value in accuracies(judge).items() if name not in dead}
        if not judged:
            raise ConfigError("No linear probe has finite weights: lower linear.rates.")
        winner = max(judged, key=lambda name: judged[name])
        tested = {n: v for n, v in accuracies(data.test).items() if n not in dead} if heldout else judged
        spread = torch.tensor(list(tested.values()))
        metrics = {"top1": tested[winner], "median": spread.median().item(), "least": spread.min().item()}
        for more in data.robust:
            seen = stored(more.source)
            metrics[f"{ROBUST}{more.name}"] = robust_accuracy(winners_logits(seen), seen.indices.tolist(), more)
    metrics |= {f"probe/{name}": value for name, value in tested.items()}
    on = "held-out training images" if heldout else "the test images, as in the official code: a little too good"
    notes = [f"The winner of {len(judged)} probes, {winner}, was chosen on {on}.", *skipped_notes(skipped)]
    if config.path == "cached":
        notes.append("Cached path: no augmentation, unlike the paper.")
    if dead:
        notes.append(f"{len(dead)} probes became infinite and are left out: {', '.join(sorted(dead))}.")
    return Result(metrics, "top1", {**to_dict(config), "split": data.split}, data.facts(), notes)


@dataclass(frozen=True)
class Inputs:
    """What probes read: class tokens of the last blocks, with and without the mean patch of the last one."""

    blocks: tuple[int, ...]
    """How many last blocks; two inputs for each number."""
    dim: int
    """Width of a token."""

    def kind(self, size: int) -> Kind:
        """The features that all inputs are parts of, of images with a side of `size` pixels."""
        return Kind(size, max(self.blocks), mean=True)

    def widths(self) -> dict[str, int]:
        """Width of each input, by name."""
        return {name: part.stop - part.start for name, part in self._parts().items()}

    def split(self, features: Float[Tensor, "B W"]) -> dict[str, Float[Tensor, "B _"]]:
        """All inputs, fp32, of features of this kind."""
        return {name: features[:, part].float() for name, part in self._parts().items()}

    def _parts(self) -> dict[str, slice]:
        most, dim = max(self.blocks), self.dim
        found: dict[str, slice] = {}
        for count in self.blocks:
            found[f"last{count}"] = slice((most - count) * dim, most * dim)
            found[f"last{count}+mean"] = slice((most - count) * dim, (most + 1) * dim)
        return found


Batches = Callable[[int], Iterator[tuple[Tensor, Tensor]]]
"""Features [B, W] and labels of every batch from a step on."""


def _order(length: int, config: LinearConfig, workspace: Workspace, start: int) -> TrainingOrder:
    return TrainingOrder(length, config.batch_size, workspace.context, steps=config.steps, start=start)


def _cached(kept: Stored, config: LinearConfig, workspace: Workspace) -> Batches:
    features, labels = kept.features, kept.labels
    assert labels is not None

    def batches(start: int) -> Iterator[tuple[Tensor, Tensor]]:
        for places in _order(len(labels), config, workspace, start):
            rows = [place.item for place in places]
            yield features[rows], labels[rows]

    return batches


@dataclass(frozen=True)
class RandomCrop:
    """Prepares an image for a training step."""

    size: int
    """Side of the result, pixels."""

    def __call__(self, image: Image.Image, index: int, randomness: torch.Generator) -> Float[Tensor, "3 S S"]:
        """The prepared image."""
        return augmented(to_uint8(image), self.size, randomness)


def _augmented(
    encoder: LayeredEncoder, source: Source, config: LinearConfig, workspace: Workspace, skipped: dict[str, str]
) -> Batches:
    """Random crops and flips through the encoder; what cannot be decoded is left out of its batch and noted."""

    def batches(start: int) -> Iterator[tuple[Tensor, Tensor]]:
        labels = torch.tensor(source.labels)
        order = _order(len(source), config, workspace, start)
        for batch in read_ahead(ReadImages(source, RandomCrop(config.size)), order, config.workers):
            skipped.update({skip.name: skip.reason for skip in batch.skipped})
            if not batch.indices:
                raise DataError(f"None of {len(batch.skipped)} images could be decoded: check the training images.")
            parts = batch.images.split(config.pass_size)
            features = [last_features(encoder, part, max(config.blocks), mean=True) for part in parts]
            yield torch.cat(features), labels[batch.indices]

    return batches


def augmented(pixels: Tensor, size: int, randomness: torch.Generator) -> Tensor:
    """A random crop of 8 to 100 % of the area, aspect 3/4 to 4/3, mirrored half of the time, normalised (official).

    Args:
        pixels: uint8 [3, H, W].
        size: Side of the result, pixels.
        randomness: Of all choices.
    """
    numbers = iter(torch.rand(24, generator=randomness, dtype=torch.float64).tolist())
    flip = next(numbers) < 0.5
    box = draw_box(pixels.shape[2], pixels.shape[1], (0.08, 1.0), (3 / 4, 4 / 3), numbers)
    crop = tv.resized_crop(pixels, *box, [size, size], interpolation=InterpolationMode.BICUBIC, antialias=True)
    return normalise(tv.horizontal_flip(crop) if flip else crop)


def _train(
    grid: ProbeGrid,
    inputs: Inputs,
    batches: Batches,
    config: LinearConfig,
    workspace: Workspace,
    settings: Mapping[str, Any],
) -> None:
    key = json.dumps(settings, sort_keys=True, default=str)
    file = workspace.folder / "linear" / f"probes-{checksum([key])[:8]}.safetensors"
    done = _load(file, grid, key)
    context, device = workspace.context, workspace.device
    stream = batches(done)
    for step in range(done, config.steps):
        features, labels = next(stream)
        found = inputs.split(features.to(device))
        grid.step(found, labels.to(device), cosine_factor(step, config.steps), context)
        if context.is_main and ((step + 1) % config.save_every == 0 or step + 1 == config.steps):
            _save(file, grid, key, step + 1)
        if (step + 1) % max(1, config.steps // 10) == 0:
            workspace.say(f"step {step + 1} of {config.steps}")
    context.barrier()


def _save(file: Path, grid: ProbeGrid, key: str, step: int) -> None:
    with atomic_write(file) as partial:
        save_file(grid.state(), partial, {"settings": key, "step": str(step)})


def _load(file: Path, grid: ProbeGrid, key: str) -> int:
    """Steps that were done before."""
    if not file.is_file():
        return 0
    try:
        with safe_open(file, "pt") as state:
            metadata = state.metadata()
            tensors = {name: state.get_tensor(name) for name in state.keys()}  # noqa: SIM118 (it is no dict)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} cannot be read ({error}): remove it to train anew.") from error
    if metadata["settings"] != key:
        raise CheckpointError(f"{file} is of a training with other settings: remove it.")
    grid.load(tensors)
    return int(metadata["step"])
