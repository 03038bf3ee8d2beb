"""What the command `dinov2-zoo` does, one function per word; their docstrings are its help.

Each imports what it needs when it is called, so that `dinov2-zoo --help` answers at once.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from rich.console import Console

from dinov2_zoo.config.evaluate import EvaluateConfig


def status(run: Path) -> None:
    """Say how a run is doing, from its folder: progress, time left, speed, loss, checkpoints.

    Args:
        run: A run folder, such as runs/demo.
    """
    from dinov2_zoo.reports.status import status as rows_of

    rows = rows_of(run)
    width = max(map(len, rows))
    console = Console(soft_wrap=True, highlight=False)
    for label, words in rows.items():
        console.print(f"{label:{width}}  {words}", markup=False)


def verify(source: str, revision: str | None = None) -> None:
    """Load a model here, in timm, in transformers (and onnxruntime) and compare; exit with 2 if anything differs.

    Args:
        source: A folder of a saved model, or a Hub id.
        revision: Branch, tag or commit on the Hub.
    """
    from dinov2_zoo.evaluation.table import Table, terminal_table
    from dinov2_zoo.hub.verify import require
    from dinov2_zoo.hub.verify import verify as checks_of

    checks = checks_of(source, revision=revision)
    marks = {True: "ok", False: "WRONG", None: "-"}
    table = Table(source, ("check", "", "found"), [(c.what, marks[c.passed], c.found) for c in checks])
    Console(soft_wrap=True).print(terminal_table(table, left=(2,)))
    require(checks, source)


def convert(
    source: Path,
    target: Path,
    to: Literal["zoo", "meta", "timm", "transformers"] = "zoo",
    branch: Literal["ema", "student"] = "ema",
) -> None:
    """Write a backbone in another layout, prove that it computes the same, and say so in the file's header.

    Args:
        source: A folder or file in any layout, or a training checkpoint runs/x/checkpoints/step-N.
        target: A folder to be created; for meta also a file, .safetensors or .pth.
        to: zoo (the folder that three libraries load), meta, timm or transformers.
        branch: Of a training checkpoint: the average, which is what is released, or the student.
    """
    from dinov2_zoo.hub.convert import convert as write

    difference = write(source, target, to, branch=branch)
    Console(soft_wrap=True).print(f"{target} computes what {source} does; largest difference {difference:g}.")


def models() -> None:
    """List the published models that have a short name, with what they reach."""
    from dinov2_zoo.evaluation.table import Table, terminal_table
    from dinov2_zoo.hub.registry import REGISTRY, SPEED_ON

    columns = ("name", "on the Hub", "M params", "teacher", "k-NN", "linear", "images/s")
    entries = REGISTRY.values()
    rows = [
        (e.name, e.repository, round(e.parameters / 1e6, 1), e.teacher, e.knn, e.linear, e.images_per_second)
        for e in entries
    ]
    # What all of them share is said once.
    shared = ", ".join(sorted({f"{e.data}, last at {e.resolution} pixels, {e.licence}" for e in entries}))
    sources = "; ".join(
        f"{' '.join(e.name for e in entries if e.source == s)}: {s}" for s in {e.source: 0 for e in entries}
    )
    note = (
        f"Trained on {shared}. k-NN, linear: ImageNet-1k top-1, percent, as published ({sources}), not measured here. "
        f"images/s: measured here, {SPEED_ON}. No commit is pinned: pass revision=."
    )
    Console(soft_wrap=True).print(terminal_table(Table("Published models", columns, rows), left=(1, 3), folds=1), note)


def publish(
    source: Path, repository: str, upload: bool = False, private: bool = False, revision: str | None = None
) -> None:
    """Verify a model and put it on the Hub with its card; without --upload true, only show what would go up.

    Args:
        source: A finished distillation's run folder, or the folder of a saved model.
        repository: Hub id, owner/name; the owner may be an organisation. The token is that of `hf auth login`.
        upload: Do it.
        private: Make a new repository private.
        revision: Branch to commit to; default: main.
    """
    from dinov2_zoo.hub.publish import publish as put

    done = put(source, repository, really=upload, private=private, revision=revision)
    console = Console(soft_wrap=True, highlight=False)
    for name, size in done.files.items():
        console.print(f"{size:>14,}  {name}", markup=False)
    passed = sum(check.passed is True for check in done.checks)
    console.print(f"{passed} checks passed, {sum(done.files.values()):,} bytes in {len(done.files)} files.")
    console.print(f"Published at {done.address}" if done.address else "Nothing was uploaded: add --upload true.")


def export(source: str, target: Path, size: int = 224, precision: Literal["fp32", "fp16", "int8"] = "fp32") -> None:
    """Export a model to one file for images of one size, run it beside the model, and say how far it is off.

    Args:
        source: A short name, Hub id, folder or file of weights.
        target: A new file, .onnx or .pt2 (torch.export).
        size: Image side, pixels.
        precision: Of the weights; int8 is onnxruntime's dynamic quantisation.
    """
    from dinov2_zoo.hub.export import export as write

    found = write(source, target, size=size, precision=precision)
    Console(soft_wrap=True, highlight=False).print(
        f"{target}, {found.size / 2**20:.1f} MiB: largest difference {found.largest_difference:.1e}, "
        f"least cosine of a token {found.least_cosine:.6f}"
    )


def evaluate(config: EvaluateConfig) -> None:
    """Measure models by the paper's protocols: k-NN, linear, logistic, depth, segmentation, retrieval, video, speed."""
    from dinov2_zoo.evaluation.results import results_table
    from dinov2_zoo.evaluation.suite import evaluate_models
    from dinov2_zoo.evaluation.table import terminal_table
    from dinov2_zoo.training.runtime import Runtime

    with Runtime(config.runtime) as runtime:
        console = Console(soft_wrap=True, highlight=False, quiet=not runtime.is_main)
        found = evaluate_models(config, runtime, lambda line: console.print(line, markup=False))
        records = {model.subject.name: model.records for model in found}
        students = [model.subject.name for model in found if model.subject.is_student]
        console.print(terminal_table(results_table(records, students), left=(1,)))
        for model in found:
            console.print(f"{model.subject.name}: records in {model.subject.folder}", markup=False)


COMMANDS: dict[str, Callable[..., None]] = {
    "models": models,
    "status": status,
    "evaluate": evaluate,
    "verify": verify,
    "convert": convert,
    "export": export,
    "publish": publish,
}

CONFIGURED = {"evaluate": EvaluateConfig}
"""Commands that take one configuration, whose fields are their options."""
