"""The table of an evaluation: what was measured here, and beside it what the paper reports for its models."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dinov2_zoo.evaluation.paper import published
from dinov2_zoo.evaluation.suite import TASKS
from dinov2_zoo.evaluation.table import Cell, Table

Record = Mapping[str, Any]


@dataclass(frozen=True)
class _Row:
    task: str
    """Name by which the paper's tables are looked up."""
    title: str
    source: str
    unit: str


def results_table(records: Mapping[str, Sequence[Record]], students: Collection[str] = ()) -> Table:
    """One row for each task on each data set, one column for each model, the paper's models last where they have it.

    Args:
        records: By model, as `record.write_record` writes them.
        students: Models whose columns are marked.
    """
    found: dict[_Row, dict[str, float]] = {}
    for model, entries in records.items():
        for row, value in (pair for entry in entries for pair in _rows(entry)):
            found.setdefault(row, {})[model] = value
    paper = {row: published(row.task, row.source) for row in found}
    theirs = list(dict.fromkeys(model for models in paper.values() for model in models))
    cells: list[list[Cell]] = []
    for row, values in found.items():
        several = len({other.source for other in found if other.title == row.title}) > 1
        # Percent with one decimal; the table's own rule is for numbers of any size.
        shown = [_percent(values.get(model)) if row.unit.endswith("%") else values.get(model) for model in records]
        title = f"{row.title}, {row.source}" if several else row.title
        cells.append([title, row.unit, *shown, *map(paper[row].get, theirs)])
    columns = ["task", "metric", *records, *(f"{model}, paper" for model in theirs)]
    note = f"{_images(records)} What else metrics depend on stands in the records."
    return Table("Evaluation", columns, cells, note, [name for name in students if len(records) > 1])


def _rows(entry: Record) -> Iterator[tuple[_Row, float]]:
    """The rows that a record gives, with their values."""
    task, metrics, source = TASKS[entry["task"]], entry["metrics"], str(entry["data"]["source"])
    title = task.title.format(name=task.name, **entry["protocol"])
    for word, metric in {"": str(entry["headline"]), **task.more_rows(metrics)}.items():
        end = f"/{word}" if word else ""
        yield _Row(task.name + end, title + end, source, task.unit(metric)), metrics[metric]


def _images(records: Mapping[str, Sequence[Record]]) -> str:
    """Which tasks saw which images, and how many."""
    tasks: dict[str, dict[str, list[str]]] = {}
    for entry in (entry for entries in records.values() for entry in entries):
        counts: dict[str, int] = entry["data"]["images"]
        split = entry["protocol"].get("split")
        text = ", ".join(f"{name} {count:,}" for name, count in counts.items())
        if len(counts) == 1:
            text = f"n = {sum(counts.values()):,} images"
        said = f"{text}, {split}" if split else text
        tasks.setdefault(str(entry["data"]["source"]), {}).setdefault(said, []).append(str(entry["task"]))
    told = {
        source: "; ".join(f"{', '.join(dict.fromkeys(names))}: {said}" for said, names in found.items())
        for source, found in tasks.items()
    }
    return f"Images: {'. '.join(f'{source} ({text})' for source, text in told.items())}."


def _percent(value: float | None) -> Cell:
    return None if value is None else f"{100 * value:.1f}"
