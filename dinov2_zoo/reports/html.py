"""One self-contained page about a run: opens offline in any browser, and says where its numbers are from."""

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from dinov2_zoo.evaluation.table import Table
from dinov2_zoo.files import atomic_write
from dinov2_zoo.reports.curves import curves, read_metrics

# A page with a picture per photo stays below a few MB, and feature colours have no text for JPEG to blur.
JPEG_QUALITY = 88


def write_report(
    path: Path,
    *,
    title: str,
    summary: str,
    tables: Sequence[Table] = (),
    pictures: Sequence[tuple[str, Image.Image]] = (),
    snippet: str = "",
    curves_note: str = "",
    metrics_file: Path | None = None,
    config: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Write a report as one HTML file without outside resources; written aside, then renamed.

    Args:
        path: File to write, e.g. runs/<name>/report.html; its folder must exist.
        title: Heading.
        summary: What was run and what came out, plain text; empty lines part paragraphs.
        tables: Measurements.
        pictures: (caption, picture), embedded.
        snippet: Code that uses what was made.
        curves_note: What to expect of the curves.
        metrics_file: metrics.jsonl for the curves; left out when None or missing.
        config: Resolved settings, nested dicts.
        provenance: Versions, revision, machine.

    Raises:
        DataError: metrics_file is damaged.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.jinja").render(
        title=title,
        paragraphs=[part.strip() for part in summary.split("\n\n") if part.strip()],
        tables=tables,
        snippet=snippet,
        curves_note=curves_note,
        pictures=[(caption, data_uri(picture), picture.size) for caption, picture in pictures],
        curves=curves(read_metrics(metrics_file)) if metrics_file is not None and metrics_file.exists() else [],
        config=list(flatten(config or {})),
        provenance=list(flatten(provenance or {})),
    )
    with atomic_write(path) as partial:
        partial.write_text(page, encoding="utf-8")


def data_uri(picture: Image.Image) -> str:
    """The picture as a JPEG inside a URL."""
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "jpeg", quality=JPEG_QUALITY, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as (dotted name, value), in their order."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")  # pyright: ignore[reportUnknownArgumentType]
        else:
            yield prefix + name, str(value)
