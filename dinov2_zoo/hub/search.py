"""Nearest photos: features of a source in a file, and the photos of it that are most like another one."""

import os
from pathlib import Path

import torch.nn.functional as F

from dinov2_zoo import __version__
from dinov2_zoo.data.inputs import Images
from dinov2_zoo.errors import CheckpointError, ConfigError
from dinov2_zoo.hub.embed import Embeddings
from dinov2_zoo.hub.features_file import Origin, read_features, write_features
from dinov2_zoo.hub.model import Dinov2Model
from dinov2_zoo.weights.fingerprint import weights_fingerprint


def embed_to_file(
    images: Images,
    path: Path,
    *,
    model: str,
    size: int | None = None,
    batch_size: int = 32,
    device: str | None = None,
    half: bool = False,
) -> tuple[Embeddings, Origin]:
    """Embed photos and write their features with what they were made with; an earlier file is replaced.

    Args:
        images: See `Dinov2Model.embed`.
        path: A .parquet file.
        model: As `Dinov2Model.from_pretrained` takes it.
        size: Side to which photos are prepared, pixels; default: the model's own.
        batch_size: Photos at a time.
        device: Where the model runs; default: CPU.
        half: Store 16 bits a number.

    Raises:
        ZooError: As `Dinov2Model.from_pretrained` and `embed` raise it.
    """
    net = Dinov2Model.from_pretrained(model, device=device)
    found = net.embed(images, size=size, batch_size=batch_size, return_names=True)
    local = os.path.abspath(os.path.expanduser(model))
    origin = Origin(
        model=local if os.path.exists(local) else model,
        fingerprint=weights_fingerprint(net.state_dict()),
        size=size or net.config.img_size,
        version=__version__,
    )
    write_features(path, found.features, found.names, origin, half=half)
    return found, origin


def nearest(
    path: Path, photo: Images, *, count: int = 5, model: str | None = None, device: str | None = None
) -> list[tuple[str, float]]:
    """Photos of a file of features that are most like one photo, by the cosine of their class tokens.

    Args:
        path: A file that `embed_to_file` wrote.
        photo: One; prepared and embedded as those of the file were.
        count: How many.
        model: Where the file's model is now; default: where it was.
        device: Where the model runs; default: CPU.

    Returns:
        (name, cosine), the most similar first. A photo that is in the file finds itself.

    Raises:
        ConfigError: `count` is below 1, or `photo` is more than one photo.
        CheckpointError: The file's model is not where it was, or another.
        DataError: The file or the photo cannot be read.
    """
    if count < 1:
        raise ConfigError(f"{count} photos are none: ask for 1 or more.")
    features, names, origin = read_features(path)
    if model is None and os.path.isabs(origin.model) and not os.path.exists(origin.model):
        raise CheckpointError(
            f"{path} was made with {origin.model}, which is not there any more: say where it is with --model."
        )
    net = Dinov2Model.from_pretrained(model or origin.model, device=device)
    if weights_fingerprint(net.state_dict()) != origin.fingerprint:
        raise CheckpointError(
            f"{model or origin.model} has other weights than the model that made {path} ({origin.model}): name that "
            "one with --model, or embed the photos again."
        )
    query = net.embed(photo, size=origin.size, return_names=True).features
    if len(query) != 1:
        raise ConfigError(f"{len(query)} photos are too many to look for: name one.")
    similarity = F.cosine_similarity(query, features)
    best = similarity.topk(min(count, len(names)))
    return [(names[row], value) for value, row in zip(best.values.tolist(), best.indices.tolist(), strict=True)]
