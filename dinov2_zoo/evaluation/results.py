"""The table of an evaluation: what was measured here, and beside it what the paper reports for its models."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dinov2_zoo.evaluation.paper import published
from dinov2_zoo.evaluation.table import Cell, Table

# Figures in units of their own; all others are shares, shown as percent.
UNITS = {"rmse": "RMSE, m", "images_per_second": "images/s"}
WORDS = {
    "top1": "top-1, %",
    "miou": "mean IoU, %",
    "map": "mAP, %",
    "map_medium": "mAP medium, %",
    "map_hard": "mAP hard, %",
    "j_and_f": "J&F, %",
}


def results_table(records: Mapping[str, Sequence[Mapping[str, Any]]]) -> Table:
    """One row for each task on each data set, one column for each model, the paper's models last where they have it.

    Args:
        records: By model, as `record.write_record` writes them.
    """
    rows: dict[tuple[str, str, str], dict[str, float]] = {}
    for model, entries in records.items():
        for entry in entries:
            for task, name in _figures(entry):
                key = (task, str(entry["data"]["source"]), name)
                rows.setdefault(key, {})[model] = entry["figures"][name]
    paper = {key: published(key[0], key[1]) for key in rows}
    theirs = list(dict.fromkeys(model for found in paper.values() for model in found))
    columns = ["task", "figure", *records, *(f"{model}, paper" for model in theirs)]
    sources: dict[str, list[str]] = {}
    for task, source, _ in rows:
        sources.setdefault(task, []).append(source)
    cells: list[list[Cell]] = []
    for key, found in rows.items():
        task, source, name = key
        percent = name not in UNITS
        # Percent with one decimal; the table's own rule is for figures of any size.
        mine = [_percent(found.get(model)) if percent else found.get(model) for model in records]
        title = task if len(sources[task]) == 1 else f"{task}, {source}"
        cells.append([title, WORDS.get(name) or UNITS.get(name) or name, *mine, *map(paper[key].get, theirs)])
    return Table("Evaluation", columns, cells, f"{_images(rows)} What else figures depend on stands in the records.")


def _images(rows: Iterable[tuple[str, str, str]]) -> str:
    """Which tasks saw which images."""
    tasks: dict[str, list[str]] = {}
    for task, source, _ in rows:
        tasks.setdefault(source, []).append(task)
    said = [f"{source} ({', '.join(dict.fromkeys(found))})" for source, found in tasks.items()]
    return f"Images: {'; '.join(said)}."


def _figures(entry: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The figures of a record that stand in the table, each with the task that its row is called by."""
    task, figures = str(entry["task"]), entry["figures"]
    found = [(task, str(entry["headline"]))]
    if "map_hard" in figures:
        found.append((f"{task}/hard", "map_hard"))
    return found + [(f"{task}/{name.partition('/')[2]}", name) for name in figures if name.startswith("robust/")]


def _percent(value: float | None) -> Cell:
    return None if value is None else f"{100 * value:.1f}"
