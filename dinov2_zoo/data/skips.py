"""A few damaged files are usual and are skipped; many mean that something is wrong with the data."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from dinov2_zoo.data.batch import Batch, Skipped
from dinov2_zoo.errors import DataError


class SkipLedger:
    """Counts the distinct images that could not be decoded, in this process.

    Args:
        source_length: Images in the source.
        max_share: Largest share of them that may be bad, 0 to 1: `LoaderConfig.max_bad_share`.
    """

    def __init__(self, source_length: int, max_share: float) -> None:
        self.source_length = source_length
        self.max_share = max_share
        self._bad: set[int] = set()

    @property
    def bad(self) -> int:
        """Distinct bad images so far."""
        return len(self._bad)

    def add(self, skipped: Sequence[Skipped]) -> None:
        """Count a batch's skipped images.

        Raises:
            DataError: More than `max_share` of the source is bad.
        """
        self._bad.update(image.sample_id for image in skipped)
        if skipped and len(self._bad) > self.max_share * self.source_length:
            last = skipped[-1]
            raise DataError(
                f"{len(self._bad)} of {self.source_length} images could not be decoded, more than the share of "
                f"{self.max_share:g} that loader.max_bad_share allows; the last one is {last.name}: {last.reason} "
                "All are listed in skipped.jsonl in the run folder: repair or remove them, "
                "or raise loader.max_bad_share."
            )


def list_skipped(folder: Path, images: Sequence[Skipped]) -> None:
    """Add images that could not be decoded to skipped.jsonl in a folder."""
    if images:
        # Appended in one call, so that lines of several processes do not mix.
        lines = [json.dumps({"id": s.sample_id, "name": s.name, "reason": s.reason}) + "\n" for s in images]
        with (folder / "skipped.jsonl").open("a") as file:
            file.write("".join(lines))


def guarded(batches: Iterable[Batch], ledger: SkipLedger) -> Iterator[Batch]:
    """Pass batches on, entering their skipped images in the ledger once the consumer has had (and logged) them.

    Raises:
        DataError: From the ledger, before the batch after the one that went over the limit.
    """
    for batch in batches:
        yield batch
        ledger.add(batch.skipped)
