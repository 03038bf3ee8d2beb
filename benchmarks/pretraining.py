"""What a few minutes of pretraining give, over several seeds, and what distilling by prototypes gives.

Run  python benchmarks/pretraining.py --data FOLDER --labelled FOLDER_PER_CLASS [--seeds 0 1 2] [--teacher FOLDER]
Each seed is `recipes/pretrain.py` with its demo's settings (about 5 minutes on 2 CPU cores). Then a teacher is
distilled in prototypes mode into a random student for as many steps, and the student's agreement with it, on images
kept out of training, is compared with that of an untrained network and of those pretrained alone. This is done with
the first seed's teacher, and with --teacher, a backbone with heads that `recipes/fit_heads.py` has made.
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from paired import Spread

from dinov2_zoo import Dinov2Model
from dinov2_zoo.config import CropConfig, LoaderConfig
from dinov2_zoo.data.heldout import split_heldout
from dinov2_zoo.data.loader import train_loader
from dinov2_zoo.data.sources import open_source
from dinov2_zoo.evaluation.distilled.agreement import agreement
from dinov2_zoo.evaluation.distilled.heldout import load_images
from dinov2_zoo.initialisation.ridge import fit_maps
from dinov2_zoo.models.branch import Branch
from dinov2_zoo.models.zoo import model_config

RECIPES = Path(__file__).parent.parent / "recipes"
SIZE, HELDOUT, FIT = 112, 32, 240


def recipe(name: str, *arguments: object) -> None:
    command = [sys.executable, str(RECIPES / name), *map(str, arguments), "--log.progress", "false"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


@torch.no_grad()
def agreement_with(teacher: Dinov2Model, student: Dinov2Model, data: str) -> dict[str, float]:
    """On images kept out of the distillation; the linear map is fitted on the others."""
    images, heldout = split_heldout(open_source(data), HELDOUT, 0)
    crops, loader = CropConfig(global_size=SIZE, local_count=0), LoaderConfig(batch_size=30, workers=0)
    batches = train_loader(images, crops, loader, seed=1, steps=FIT // 30)
    maps = fit_maps(Branch(student), Branch(teacher), batches, device=torch.device("cpu"))
    pixels = load_images(heldout, SIZE)
    theirs, mine = teacher.tokens([pixels])[0], student.tokens([pixels])[0]
    found = agreement(mine, maps(mine), theirs)
    return {name: value for name, value in found.to_dict().items() if value is not None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--labelled", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--teacher", type=Path)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--runs", type=Path, default=Path("runs/pretraining"))
    options = parser.parse_args()
    shutil.rmtree(options.runs, ignore_errors=True)
    common = ("--data", options.data, "--runs", options.runs, "--optim.steps", options.steps)
    preset = ("--config", RECIPES / "configs/pretrain_demo.yaml", *common)
    labelled = ("--evaluation.labelled", options.labelled, "--evaluation.labelled_size", SIZE)
    before, after = [], []
    for seed in options.seeds:
        recipe("pretrain.py", *preset, *labelled, "--runtime.seed", seed, "--name", f"seed-{seed}")
        measured = json.loads((options.runs / f"seed-{seed}/measured.json").read_text())
        before.append(measured["start"]["knn"])
        after.append(measured["trained"]["knn"])
    print(f"k-NN (k = 20, leave-one-out) untrained   {Spread.of(before)}")
    print(f"                             pretrained  {Spread.of(after)}")
    print(f"                             gain        {Spread.of([b - a for a, b in zip(before, after, strict=True)])}")

    alone = {f"alone, seed {seed}": options.runs / f"seed-{seed}/teacher" for seed in options.seeds}
    first = alone.pop(f"alone, seed {options.seeds[0]}")
    compare("the first of these teachers", first, alone, common, options.data)
    if options.teacher:
        # Heads of the size that fit_heads.yaml gives.
        heads = [f"--{kind}_head.{size}" for kind in ("dino", "ibot") for size in ("hidden=512", "bottleneck=128")]
        heads += ["--objective.prototypes.teacher_temperature=0.05"]  # as they were fitted
        everyone = {f"alone, seed {options.seeds[0]}": first} | alone
        compare(str(options.teacher), options.teacher, everyone, (*common, *heads), options.data)


def compare(title: str, teacher: Path, alone: Mapping[str, Path], common: Sequence[object], data: str) -> None:
    """Distil a teacher, and print how its student and networks that never saw it agree with it."""
    name = f"distilled-from-{teacher.parent.name}"
    link = ("--config", RECIPES / "configs/chain_distill.yaml", *common, "--evaluation.labelled=null")
    recipe("distill.py", *link, "--teacher", teacher, "--name", name, "--evaluation.heldout_count", HELDOUT)
    model = Dinov2Model.from_pretrained(teacher)
    runs = Path(str(common[common.index("--runs") + 1]))
    torch.manual_seed(0)
    untrained = Dinov2Model(replace(model_config("vitti14_reg4"), img_size=SIZE)).eval()
    students = {"untrained": untrained, "distilled": Dinov2Model.from_pretrained(runs / name / "student")}
    students |= {label: Dinov2Model.from_pretrained(folder) for label, folder in alone.items()}
    print(f"agreement with {title}")
    for label, student in students.items():
        figures = agreement_with(model, student, data)
        print(f"  {label:16}" + "  ".join(f"{k} {v:.3f}" for k, v in figures.items()))


if __name__ == "__main__":
    main()
