"""Pairs of views of photos, and what a model makes of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from dinov2_zoo.config import to_dict
from dinov2_zoo.config.correspondence import CorrespondenceConfig, ViewsConfig
from dinov2_zoo.data.augment import generator
from dinov2_zoo.data.batch import Skipped
from dinov2_zoo.data.decode import DecodeError, decode
from dinov2_zoo.data.preprocess import normalise, to_uint8
from dinov2_zoo.data.sources import Source, open_source
from dinov2_zoo.errors import DataError
from dinov2_zoo.evaluation.correspondence.geometry import between, draw_quads, render
from dinov2_zoo.evaluation.correspondence.views import ViewMatches, view_correspondence
from dinov2_zoo.evaluation.dense.maps import view_size
from dinov2_zoo.evaluation.encoders.encoder import LayeredEncoder
from dinov2_zoo.evaluation.encoders.feature_store import source_checksum
from dinov2_zoo.evaluation.encoders.reading import Place, cut, read_ahead
from dinov2_zoo.evaluation.record import DataFacts, Result
from dinov2_zoo.evaluation.segmentation.augment import distorted
from dinov2_zoo.evaluation.workspace import Workspace

SIZE = 224
"""Side of a view, pixels (chosen here)."""
LEAST = 32
"""Photos with a shorter side, pixels, are left out: their views would be blurs, whatever the model (chosen here)."""


@dataclass(frozen=True)
class ViewBatch:
    """Pairs of views, without photos that could not be used."""

    first: Float[Tensor, "B 3 S S"]
    """Normalised."""
    second: Float[Tensor, "B 3 S S"]
    geometry: Float[Tensor, "B 3 3"]
    """From places in the first to places in the second, relative, fp64."""
    photos: list[int]
    """Number of the photo of each pair."""
    skipped: list[Skipped] = field(default_factory=list[Skipped])
    """Photos left out, with the reason."""

    def pin_memory(self) -> "ViewBatch":
        """The same batch with its views in page-locked memory; torch's DataLoader calls it."""
        return replace(self, first=self.first.pin_memory(), second=self.second.pin_memory())


@dataclass(frozen=True)
class ReadViews:
    """Makes pairs of views of some photos; what is drawn follows from seed, photo and pair alone."""

    source: Source
    size: int
    """Side of a view, pixels."""
    config: ViewsConfig

    def __call__(self, places: list[Place]) -> ViewBatch:
        """Decode some photos and cut their views."""
        firsts: list[Tensor] = []
        seconds: list[Tensor] = []
        geometries: list[Tensor] = []
        photos: list[int] = []
        skipped: list[Skipped] = []
        for place in places:
            try:
                pixels = to_uint8(decode(self.source.read(place.item)))
                if min(pixels.shape[1:]) < LEAST:
                    raise DecodeError(f"Its short side has less than {LEAST} pixels: give larger photos.")
            except DecodeError as error:
                skipped.append(Skipped(place.item, self.source.name(place.item), str(error)))
                continue
            for number in range(self.config.pairs):
                randomness = generator("views", self.config.seed, place.item, number)
                quads = draw_quads(pixels.shape[2], pixels.shape[1], self.config, randomness)
                one, two = (render(pixels, quad, self.size) for quad in quads)
                if self.config.colour:
                    two = distorted(two, torch.rand(10, generator=randomness, dtype=torch.float64).tolist())
                firsts.append(one)
                seconds.append(two)
                geometries.append(between(*quads))
                photos.append(place.item)
        if not photos:
            nothing = torch.empty(0, 3, self.size, self.size)
            return ViewBatch(nothing, nothing, torch.empty(0, 3, 3, dtype=torch.float64), [], skipped)
        first, second = (normalise(torch.stack(part)) for part in (firsts, seconds))
        return ViewBatch(first, second, torch.stack(geometries), photos, skipped)


def view_batches(
    source: Source,
    config: ViewsConfig,
    *,
    size: int = SIZE,
    batch_size: int = 16,
    workers: int = 0,
    indices: Sequence[int] | None = None,
) -> Iterator[ViewBatch]:
    """Pairs of views of a source's photos, in order, the same each time.

    Args:
        source: Photos.
        config: How many pairs, and how they are cut.
        size: Side of a view, a multiple of the patch, pixels.
        batch_size: Views of each kind in a batch, about.
        workers: Decoding processes.
        indices: Numbers of the photos; default all.
    """
    chosen = range(len(source)) if indices is None else indices
    batches = cut(chosen, max(1, batch_size // config.pairs), workers)
    return read_ahead(ReadViews(source, size, config), batches, workers)


@dataclass(frozen=True)
class Photos:
    """Any photos."""

    photos: Source
    source: str

    def facts(self) -> DataFacts:
        """What a record says of the photos."""
        return DataFacts(self.source, {"photos": len(self.photos)}, source_checksum(self.photos))


def open_photos(path: str) -> Photos:
    """Photos by all that recipes take as --data."""
    return Photos(open_source(path), f"views:{path}")


def measure_views(encoder: LayeredEncoder, data: Photos, config: CorrespondenceConfig, workspace: Workspace) -> Result:
    """Match patches of two views of each photo; the headline is `recall`, and `ViewMatches` says what the rest is.

    Raises:
        DataError: No photo can be used.
        ConfigError: Views are to be smaller than a patch.
    """
    size = view_size(config.size or SIZE, encoder.patch_size, "correspondence.size")
    context = workspace.context
    mine = range(context.rank, len(data.photos), context.world_size)
    found: list[tuple[list[int], ViewMatches]] = []
    skipped: list[Skipped] = []
    options = {"size": size, "batch_size": config.batch_size, "workers": config.workers}
    for batch in view_batches(data.photos, config.views, indices=mine, **options):
        skipped += batch.skipped
        if batch.photos:
            matches = view_correspondence(encoder(batch.first), encoder(batch.second), batch.geometry)
            found.append((batch.photos, matches.map(Tensor.cpu)))
    gathered = context.gather((found, skipped))
    parts = [part for found, _ in gathered for part in found]
    left_out = [skip for _, skipped in gathered for skip in skipped]
    if not parts:
        reason = f" ({left_out[0].name}: {left_out[0].reason})" if left_out else ""
        raise DataError(f"None of {len(data.photos)} photos of {data.source} can be used{reason}")
    matches = ViewMatches.cat([part for _, part in parts])
    order = torch.tensor([photo for photos, _ in parts for photo in photos]).argsort(stable=True)
    metrics = {**matches.map(lambda values: values[order]).means(), "pairs": float(len(order))}
    notes = ["Last block, final norm, patch tokens; nearest by cosine, from the first view to the second."]
    if left_out:
        notes.append(f"Left out: {'; '.join(f'{skip.name}: {skip.reason}' for skip in left_out[:5])}")
    protocol = {**to_dict(config), "kind": "views", "size": size}
    return Result(metrics, "recall", protocol, data.facts(), notes)
