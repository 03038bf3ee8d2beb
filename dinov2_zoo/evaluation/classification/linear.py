"""Linear evaluation: a grid of probes on frozen features, trained on one pass of the backbone (paper B.3)."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision.transforms.v2.functional as tv
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torchvision.transforms import InterpolationMode

from dinov2_zoo.config import to_dict
from dinov2_zoo.config.classification import LinearConfig
from dinov2_zoo.data.augment import draw_box
from dinov2_zoo.data.decode import DecodeError, decode
from dinov2_zoo.data.heldout import split_by_class
from dinov2_zoo.data.preprocess import normalise, to_uint8
from dinov2_zoo.data.sources import Source
from dinov2_zoo.errors import CheckpointError, ConfigError, DataError
from dinov2_zoo.evaluation.batches import batch_indices, endless_batches
from dinov2_zoo.evaluation.classification.labelled import check_classes, facts, skipped_notes
from dinov2_zoo.evaluation.classification.probe_grid import ProbeGrid, cosine_factor
from dinov2_zoo.evaluation.classification.robust_sets import RobustSet, robust_accuracy
from dinov2_zoo.evaluation.encoders.encoder import LayeredEncoder
from dinov2_zoo.evaluation.encoders.feature_store import Kind, last_features, source_checksum, stored_features
from dinov2_zoo.evaluation.record import Result, checksum
from dinov2_zoo.files import atomic_write
from dinov2_zoo.training.distributed import DistributedContext

Say = Callable[[str], object]
HELDOUT = 0.1
"""Share of the training images that chooses the winner with choose_on "heldout" (chosen here)."""


def evaluate_linear(
    encoder: LayeredEncoder,
    train: Source,
    test: Source,
    source: str,
    config: LinearConfig,
    *,
    processes: DistributedContext,
    folder: Path,
    robust: Sequence[RobustSet] = (),
    say: Say = lambda _: None,
) -> Result:
    """Train the grid and measure every probe; the headline is the winner's accuracy, with how it was chosen in a note.

    Args:
        encoder: The model.
        train: Images to learn from.
        test: Images to be measured on.
        source: How the training images were named.
        config: Settings.
        processes: Share every batch and every extraction.
        folder: Features are stored in `features` below it, the probes' state in `linear`.
        robust: More sets, for the winner only.
        say: Takes a line of progress now and then.

    Raises:
        DataError: The classes do not fit; see `labelled.check_classes`.
        CheckpointError: The folder holds the probes of another training.
        ConfigError: No probe has finite weights, or the model has too few blocks.
    """
    check_classes(train, test)
    if max(config.blocks) > encoder.depth:
        raise ConfigError(f"The model has {encoder.depth} blocks, fewer than linear.blocks {config.blocks}: lower it.")
    assert train.labels is not None
    classes = max(train.labels) + 1
    learnt, judge = split_by_class(train, HELDOUT, 0) if config.choose_on == "heldout" else (train, test)
    most = max(config.blocks)
    kind = Kind(config.size, most, mean=True)

    def stored(part: Source):
        return stored_features(
            encoder,
            part,
            folder / "features",
            kind,
            processes=processes,
            batch_size=config.pass_size,
            workers=config.workers,
            say=say,
        )

    grid = ProbeGrid(
        {name: width for name, width, _ in _inputs(config, encoder.dim)},
        classes,
        config.rates,
        torch.Generator().manual_seed(0),
        config.batch_size / 256,
        processes.device,
    )
    if config.path == "cached":
        kept = stored(learnt)
        assert kept.labels is not None
        batches = _cached(kept.features, kept.labels, config, processes)
        skipped = kept.skipped
    else:
        batches, skipped = _augmented(encoder, learnt, config, processes)
    settings = {"weights": encoder.fingerprint(), "images": source_checksum(learnt), **to_dict(config)}
    _train(grid, batches, config, encoder.dim, processes, folder / "linear", settings, say)

    def accuracies(part: Source) -> dict[str, float]:
        seen = stored(part)
        skipped.update(seen.skipped)
        assert seen.labels is not None
        right = torch.zeros(len(grid.names))
        for rows in torch.arange(len(seen.labels)).split(1024):
            scores = grid.logits(_split(seen.features[rows].to(processes.device).float(), config, encoder.dim))
            right += (scores.argmax(2).cpu() == seen.labels[rows, None]).sum(0)
        return dict(zip(grid.names, (right / len(seen.labels)).tolist(), strict=True))

    dead = set(grid.dead())
    judged = {name: value for name, value in accuracies(judge).items() if name not in dead}
    if not judged:
        raise ConfigError("No linear probe has finite weights: lower linear.rates.")
    winner = max(judged, key=lambda name: judged[name])
    tested = judged if judge is test else {n: v for n, v in accuracies(test).items() if n not in dead}
    spread = torch.tensor(list(tested.values()))
    figures = {"top1": tested[winner], "median": spread.median().item(), "least": spread.min().item()}
    column = grid.names.index(winner)
    for more in robust:
        seen = stored(more.source)
        parts = [
            grid.logits(_split(features.to(processes.device).float(), config, encoder.dim))[:, column].cpu()
            for features in seen.features.split(1024)
        ]
        figures[f"robust/{more.name}"] = robust_accuracy(torch.cat(parts), seen.indices.tolist(), more)
    figures |= {f"probe/{name}": value for name, value in tested.items()}
    on = "the test images, as in the official code: a little too good" if judge is test else "held-out training images"
    notes = [f"The winner of {len(judged)} probes, {winner}, was chosen on {on}.", *skipped_notes(skipped)]
    if config.path == "cached":
        notes.append("Cached path: no augmentation, unlike the paper.")
    if dead:
        notes.append(f"{len(dead)} probes became infinite and are left out: {', '.join(sorted(dead))}.")
    return Result(figures, "top1", to_dict(config), facts(source, train, test), notes)


def _inputs(config: LinearConfig, dim: int) -> list[tuple[str, int, Callable[[Tensor], Tensor]]]:
    """Name, width and way to cut out of [class tokens of the last blocks, mean patch] of every input of the grid."""
    most = max(config.blocks)
    found: list[tuple[str, int, Callable[[Tensor], Tensor]]] = []
    for count in config.blocks:
        first = (most - count) * dim
        found.append((f"last{count}", count * dim, lambda x, first=first: x[:, first : most * dim]))
        found.append((f"last{count}+mean", (count + 1) * dim, lambda x, first=first: x[:, first:]))
    return found


def _split(features: Tensor, config: LinearConfig, dim: int) -> dict[str, Tensor]:
    return {name: cut(features) for name, _, cut in _inputs(config, dim)}


Batches = Callable[[int], Iterator[tuple[Tensor, Tensor]]]
"""Features [B, W] and labels of every batch from a step on."""


def _cached(features: Tensor, labels: Tensor, config: LinearConfig, processes: DistributedContext) -> Batches:
    def batches(start: int) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in batch_indices(len(labels), batch_size=config.batch_size, processes=processes, start=start):
            rows = [index for _, index in batch]
            yield features[rows], labels[rows]

    return batches


def _augmented(
    encoder: LayeredEncoder, source: Source, config: LinearConfig, processes: DistributedContext
) -> tuple[Batches, dict[str, str]]:
    """Random crops and flips through the encoder; what cannot be decoded is left out of its batch and noted."""
    skipped: dict[str, str] = {}

    def read(index: int, randomness: torch.Generator) -> tuple[Tensor, int] | None:
        assert source.labels is not None
        try:
            return augmented(to_uint8(decode(source.read(index))), config.size, randomness), source.labels[index]
        except DecodeError as error:
            skipped[source.name(index)] = str(error)
            return None

    def batches(start: int) -> Iterator[tuple[Tensor, Tensor]]:
        for found in endless_batches(
            len(source),
            read,
            batch_size=config.batch_size,
            processes=processes,
            start=start,
            workers=config.workers,
        ):
            good = [pair for pair in found if pair is not None]
            if not good:
                raise DataError(f"None of {len(found)} images could be decoded: check the training images.")
            images = torch.stack([image for image, _ in good]).split(config.pass_size)
            features = [last_features(encoder, part, max(config.blocks), mean=True) for part in images]
            yield torch.cat(features), torch.tensor([label for _, label in good])

    return batches, skipped


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
    batches: Batches,
    config: LinearConfig,
    dim: int,
    processes: DistributedContext,
    folder: Path,
    settings: Mapping[str, Any],
    say: Say,
) -> None:
    key = json.dumps(settings, sort_keys=True, default=str)
    file = folder / f"probes-{checksum([key])[:8]}.safetensors"
    done = _load(file, grid, key)
    stream = batches(done) if done < config.steps else iter(())
    for step in range(done, config.steps):
        features, labels = next(stream)
        inputs = _split(features.to(processes.device).float(), config, dim)
        grid.step(inputs, labels.to(processes.device), cosine_factor(step, config.steps), processes)
        if processes.is_main and ((step + 1) % config.save_every == 0 or step + 1 == config.steps):
            _save(file, grid, key, step + 1)
        if (step + 1) % max(1, config.steps // 10) == 0:
            say(f"step {step + 1} of {config.steps}")
    processes.barrier()


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
