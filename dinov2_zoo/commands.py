"""What the command `dinov2-zoo` does besides the recipes, one function per word; their docstrings are its help.

Each imports what it needs when it is called, so that `dinov2-zoo --help` answers at once.
"""

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console

if TYPE_CHECKING:
    from torch import nn

    from dinov2_zoo.hub.model import Dinov2Model


def distill(
    data: str | Path | None = None,
    *,
    student: str | None = None,
    students: Sequence[str] | None = None,
    teacher: str | Path | None = None,
    resume: str | Path | None = None,
    **settings: Any,
) -> "Dinov2Model | nn.Module | list[Dinov2Model | nn.Module]":
    """Distil a teacher into a student in this process, as `dinov2-zoo distill` does, and load what comes of it.

    Args:
        data: Training images: a folder, or another source that `--data` takes. None: the demo's photos and settings.
        student: A name of `list_models()`, or "timm:<name>".
        students: Several in its place: the teacher is asked once for all.
        teacher: Hub id, folder or file.
        resume: As `--resume`: a run folder, "step-N", or "auto".
        settings: All other settings, nested or by dotted name: optim={"steps": 10} or **{"optim.steps": 10}.

    Returns:
        The student, on the CPU and in evaluation mode; a timm network where it was one. A list of `students`.

    Raises:
        ZooError: What the command would print; its message is the same.
    """
    from dinov2_zoo.arguments import as_options

    recipes, recipe = import_module("dinov2_zoo.recipes"), import_module("dinov2_zoo.recipes.distill")
    several = None if students is None else list(students)
    named = {"data": data, "student": student, "students": several, "teacher": teacher, "resume": resume}
    argv = as_options({name: value for name, value in named.items() if value is not None} | settings)
    config, arguments = recipes.distill_arguments(argv)
    recipe.launch(config, resume=arguments.resume)
    released = [_load(one.student, one.folder / "student") for one in config.each()]
    return released[0] if students is None else released


def _load(name: str, folder: Path) -> "Dinov2Model | nn.Module":
    """A released student."""
    if name.startswith("timm:"):
        import timm

        return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    from dinov2_zoo.hub.model import Dinov2Model

    return Dinov2Model.from_pretrained(folder).eval()


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
    Console(soft_wrap=True).print(terminal_table(table, left=(2,), folds=2))
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

    # 80 columns hold these; ids of the Hub may not be broken, or they could not be copied.
    columns = ("name", "on the Hub", "M", "k-NN", "linear")
    entries = REGISTRY.values()
    rows = [(e.name, e.repository, round(e.parameters / 1e6), e.knn, e.linear) for e in entries]
    # What all of them share is said once.
    shared = ", ".join(sorted({f"{e.data}, last at {e.resolution} pixels, {e.licence}" for e in entries}))
    sources = "; ".join(
        f"{' '.join(e.name for e in entries if e.source == s)}: {s}" for s in {e.source: 0 for e in entries}
    )
    teachers = "; ".join(
        f"{' '.join(e.name for e in entries if e.teacher == t)} {'by itself' if t == 'none' else f'from {t}'}"
        for t in {e.teacher: 0 for e in entries}
    )
    speeds = ", ".join(f"{e.name} {e.images_per_second:g}" for e in entries if not e.name.endswith("_reg4"))
    note = (
        f"M: millions of parameters. Trained on {shared}: {teachers}. k-NN, linear: ImageNet-1k top-1, percent, as "
        f"published ({sources}), not measured here. Images per second, measured here on {SPEED_ON}: {speeds}. "
        "No commit is pinned: pass revision=."
    )
    Console(soft_wrap=True).print(terminal_table(Table("Published models", columns, rows), left=(1,), folds=0))
    Console(highlight=False).print(note)


def publish(
    source: Path,
    repository: str,
    upload: bool = False,
    public: bool = False,
    pictures: bool = False,
    licence: str | None = None,
    revision: str | None = None,
) -> None:
    """Verify a model and put it on the Hub with its card; without --upload, only show what would go up.

    Args:
        source: A finished distillation's run folder, or the folder of a saved model.
        repository: Hub id, owner/name; the owner may be an organisation. The token is that of `hf auth login`.
        upload: Do it.
        public: Let everybody see the repository; otherwise it is private.
        pictures: Upload the picture of held-out photos too; otherwise only if they are photos that packages ship.
        licence: Under which you give the weights away, such as apache-2.0; otherwise the card says that none is stated.
        revision: Branch to commit to; default: main.
    """
    from dinov2_zoo.hub.publish import publish as put

    done = put(source, repository, really=upload, public=public, pictures=pictures, licence=licence, revision=revision)
    console = Console(soft_wrap=True, highlight=False)
    for name, size in done.files.items():
        console.print(f"{size:>14,}  {name}", markup=False)
    for reason in done.left_out:
        console.print(f"{'stays here':>14}  {reason}", markup=False)
    passed = sum(check.passed is True for check in done.checks)
    console.print(f"{passed} checks passed, {sum(done.files.values()):,} bytes in {len(done.files)} files.")
    card = "as its own card says" if done.own_card else done.licence or "not stated: name one with --licence"
    console.print(f"{'Public' if public else 'Private'}; licence: {card}.")
    console.print(f"Published at {done.address}" if done.address else "Nothing was uploaded: add --upload.")


def publish_zoo(
    namespace: str, only: str = "", work: Path = Path("publish-zoo"), upload: bool = False, public: bool = False
) -> None:
    """Put Meta's DINOv2 models on the Hub as folders that three libraries load; without --upload, show the plan.

    Args:
        namespace: Owner on the Hub, you or an organisation. The token is that of `hf auth login`.
        only: Short names, separated by commas; default: all eight, small to large.
        work: Folder where one model at a time lies; what was fetched is kept there when something goes wrong.
        upload: Do it: fetch, convert, verify, upload, delete; what is there at the same checksum is skipped.
        public: Let everybody see the repositories; otherwise they are private.
    """
    from dinov2_zoo.errors import HubError
    from dinov2_zoo.hub.publish_zoo import look_up_states, plan
    from dinov2_zoo.hub.publish_zoo import publish_zoo as put

    gib, console = 2**30, Console(soft_wrap=True, highlight=False)
    items, unseen = plan(namespace, [name.strip() for name in only.split(",") if name.strip()]), ""
    try:
        items = look_up_states(items)
    except HubError as error:
        unseen = f"What is there already is not known. {error}"
    for i in items:
        console.print(f"{i.source} -> {i.target}: {i.state}", markup=False)
        console.print(f"    {i.weights / gib:.2f} GiB down, {i.uploaded / gib:.2f} up, {i.disk / gib:.2f} of disk")
    left = [item for item in items if item.state != "done"]
    if left:
        console.print(
            f"{sum(i.weights for i in left) / gib:.1f} GiB to fetch and {sum(i.uploaded for i in left) / gib:.1f} GiB "
            f"to upload, to {'public' if public else 'private'} repositories. One model at a time: at once "
            f"{max(i.disk for i in left) / gib:.1f} GiB of disk in {work} and about as much memory.",
            markup=False,
        )
    if unseen:
        console.print(unseen, markup=False)
    if not upload:
        console.print("Nothing was fetched or uploaded: add --upload.")
        return
    put(items, work, public=public, say=lambda line: console.print(line, markup=False))


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


def embed(
    source: str,
    output: Path,
    model: str = "vits14_reg4",
    size: int | None = None,
    batch_size: int = 32,
    device: str | None = None,
    precision: Literal["fp32", "fp16"] = "fp32",
    overwrite: bool = False,
) -> None:
    """Write a feature vector for every photo to a parquet file, for `search`, pandas or a classifier.

    Args:
        source: A folder, a photo, a pattern in quotes ('photos/*.jpg'), an address, or another source of images.
        output: A .parquet file, with columns name and feature; the model and the size are in its metadata.
        model: A short name (see `dinov2-zoo models`), a Hub id, or your student's folder. The default is fetched from
            the Hub once, 88 MB.
        size: Side to which photos are prepared, pixels; default: the model's own, 518 for Meta's. On a CPU, 224 is
            about ten times as fast.
        batch_size: Photos at a time; lower it where memory is short.
        device: cpu, cuda, cuda:1, mps; default: a GPU if there is one.
        precision: Of the file; fp16 is half as large.
        overwrite: Replace a file that is there.
    """
    import torch

    from dinov2_zoo.data.inputs import open_by_name
    from dinov2_zoo.data.sources import describe
    from dinov2_zoo.hub.features_file import check_target
    from dinov2_zoo.hub.search import embed_to_file

    console = Console(soft_wrap=True, highlight=False)
    check_target(output, overwrite=overwrite)
    photos = open_by_name(source)
    console.print(f"{describe(photos)}.", markup=False)
    device = device or ("cuda" if torch.cuda.is_available() else None)
    found, origin = embed_to_file(
        photos, output, model=model, size=size, batch_size=batch_size, device=device, half=precision == "fp16"
    )
    if found.skipped:
        console.print(found.trouble(show=len(found.skipped)), markup=False)
    rows, width = found.features.shape
    console.print(f"{output}: {rows:,} photos, {width} numbers each; {model} at {origin.size} pixels.", markup=False)


def search(features: Path, photo: str, k: int = 5, model: str | None = None, device: str | None = None) -> None:
    """List the photos of a features file that are most like one photo.

    Args:
        features: What `dinov2-zoo embed` wrote.
        photo: A file or an address; prepared and embedded as those of the file were.
        k: How many.
        model: Where the model of the file is now; default: where it was.
        device: cpu, cuda, cuda:1, mps; default: CPU, which is quick enough for one photo.
    """
    from rich.markup import escape

    from dinov2_zoo.evaluation.table import Table, terminal_table
    from dinov2_zoo.hub.search import nearest

    found = nearest(features, photo, count=k, model=model, device=device)
    # Names of files may hold what rich takes for markup.
    rows = [(escape(name), cosine) for name, cosine in found]
    table = Table(f"Nearest to {escape(photo)}", ("photo", "cosine"), rows)
    Console(soft_wrap=True).print(terminal_table(table))


COMMANDS: dict[str, Callable[..., None]] = {
    "embed": embed,
    "search": search,
    "models": models,
    "status": status,
    "verify": verify,
    "convert": convert,
    "export": export,
    "publish": publish,
    "publish-zoo": publish_zoo,
}
