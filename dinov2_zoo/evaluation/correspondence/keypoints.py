"""Keypoints carried from photo to photo by the nearest patch: PCK on SPair-71k."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from dinov2_zoo.config import to_dict
from dinov2_zoo.config.correspondence import CorrespondenceConfig
from dinov2_zoo.data.augment import generator
from dinov2_zoo.evaluation.correspondence.matching import features_at
from dinov2_zoo.evaluation.correspondence.spair import KeypointPair, KeypointPairs
from dinov2_zoo.evaluation.dense.maps import patch_maps, resized, view_size, whole_patches
from dinov2_zoo.evaluation.dense.pairs import read_photo
from dinov2_zoo.evaluation.encoders.encoder import LayeredEncoder
from dinov2_zoo.evaluation.encoders.reading import Place, cut, read_ahead
from dinov2_zoo.evaluation.record import Result
from dinov2_zoo.evaluation.workspace import Workspace

SIZE = 800
"""Longest side, pixels (Probe3D's config)."""
REACH = 0.1
"""Distance up to which a keypoint counts as found, as a share of the longer side of the object's box (PCK@0.1)."""


@dataclass(frozen=True)
class _ReadPhotos:
    """Reads photos whole, the longest side scaled to `size`, both sides multiples of the patch."""

    data: KeypointPairs
    photos: Sequence[tuple[str, str, tuple[int, int]]]
    """Category, file name, width and height of each."""
    size: int
    patch: int

    def __call__(self, places: list[Place]) -> list[tuple[int, Tensor]]:
        found: list[tuple[int, Tensor]] = []
        for place in places:
            category, name, (width, height) = self.photos[place.item]
            path = self.data.photo(category, name)
            photo = read_photo(path, self.data.root / "PairAnnotation", (height, width))
            factor = self.size / max(width, height)
            found.append((place.item, resized(photo, whole_patches([height * factor, width * factor], self.patch))))
        return found


def found_keypoints(
    first: Float[Tensor, "D h w"], second: Float[Tensor, "D H W"], places: Float[Tensor, "n 2"]
) -> Float[Tensor, "n 2"]:
    """Where points of one photo are found in another: the centres of the nearest patches.

    Args:
        first: L2-normalised patch tokens of the photo that asks.
        second: Of the photo that answers.
        places: Relative, x and y, 0..1; a point between patches has an interpolated feature.

    Returns:
        Relative places, on the device of the maps.
    """
    columns = second.shape[2]
    patch = (features_at(first, places) @ second.flatten(1)).argmax(1)
    x, y = patch % columns + 0.5, patch // columns + 0.5
    return torch.stack([x / columns, y / second.shape[1]], 1)


def keypoint_metrics(pairs: Sequence[KeypointPair], right: Mapping[int, Sequence[bool]]) -> dict[str, float]:
    """Shares of keypoints that were found, averaged in the ways that are in use.

    Args:
        pairs: All pairs.
        right: For each judged pair, by its number, which keypoints were found.

    Returns:
        pck_point: over all keypoints. pck_image: of each pair, then over pairs. pck_class: over the keypoints of a
        category, then over categories (Probe3D's recall). pck_viewpoint0 to 2: as pck_point, by how far the viewpoints
        are apart. pairs, points: how many were judged.
    """

    def share(numbers: Sequence[int]) -> float:
        hits = [hit for number in numbers for hit in right[number]]
        return sum(hits) / len(hits)

    numbers = sorted(right)
    metrics = {"pck_point": share(numbers), "pck_image": sum(share([n]) for n in numbers) / len(numbers)}
    categories = sorted({pairs[n].category for n in numbers})
    by_category = [share([n for n in numbers if pairs[n].category == category]) for category in categories]
    metrics["pck_class"] = sum(by_category) / len(by_category)
    for viewpoint in sorted({pairs[n].viewpoint for n in numbers}):
        metrics[f"pck_viewpoint{viewpoint}"] = share([n for n in numbers if pairs[n].viewpoint == viewpoint])
    return {**metrics, "pairs": float(len(numbers)), "points": float(sum(len(right[n]) for n in numbers))}


def measure_keypoints(
    encoder: LayeredEncoder, data: KeypointPairs, config: CorrespondenceConfig, workspace: Workspace
) -> Result:
    """Find keypoints by the nearest patch; the headline is `pck_point`, and `keypoint_metrics` says what the rest is.

    Each photo is encoded once, though it is in many pairs: the maps of one category are kept at a time.

    Raises:
        DataError: A photo cannot be read, or is not of the size that its pairs name; names it.
        ConfigError: Photos are to be smaller than a patch.
    """
    size = config.size or SIZE
    view_size(size, encoder.patch_size, "correspondence.size")
    context = workspace.context
    categories = sorted({pair.category for pair in data.pairs})
    mine: dict[int, list[bool]] = {}
    for category in categories[context.rank :: context.world_size]:
        numbers = _judged(data.pairs, category, config.pairs)
        chosen = [data.pairs[number] for number in numbers]
        photos = sorted({(category, name, size) for p in chosen for name, size in zip(p.images, p.sizes, strict=True)})
        read = _ReadPhotos(data, photos, size, encoder.patch_size)
        maps: dict[str, Tensor] = {}
        for batch in read_ahead(read, cut(range(len(photos)), config.batch_size, config.workers), config.workers):
            found = patch_maps(encoder, [image for _, image in batch])
            maps.update((photos[item][1], tokens) for (item, _), tokens in zip(batch, found, strict=True))
        for number, pair in zip(numbers, chosen, strict=True):
            first, second = (maps[name] for name in pair.images)
            relative = found_keypoints(first, second, pair.points / torch.tensor(pair.sizes[0])).cpu()
            error = (relative * torch.tensor(pair.sizes[1]) - pair.truths).norm(dim=1)
            mine[number] = (error <= REACH * pair.extent).tolist()
        workspace.say(f"{category}: {len(photos)} photos, {len(numbers)} pairs")
    right = {number: hits for part in context.gather(mine) for number, hits in part.items()}
    metrics = keypoint_metrics(data.pairs, right)
    notes = [
        "Last block, final norm, patch tokens; keypoints take interpolated features, and find the centres of patches.",
        "Photos whole, their ratio kept; Probe3D pads them to squares, and places a patch at its upper left corner.",
    ]
    protocol = {**to_dict(config), "kind": "spair", "size": size, "reach": REACH}
    return Result(metrics, "pck_point", protocol, data.facts(), notes)


def _judged(pairs: Sequence[KeypointPair], category: str, most: int | None) -> list[int]:
    """Numbers of a category's pairs, at most so many, drawn at random."""
    numbers = [number for number, pair in enumerate(pairs) if pair.category == category]
    order = torch.randperm(len(numbers), generator=generator("spair", category)).tolist()[:most]
    return sorted(numbers[place] for place in order)
