"""Three ways to distil the demo's teacher, on the same photos for the same steps, side by side.

    features                  its tokens through a linear projector
    prototypes, fitted heads  the paper's losses, with heads from recipes/fit_heads.py
    prototypes, random heads  the same with untrained heads: what the fitting is worth

Run  python benchmarks/objectives.py [--seeds 0] [--steps 60] [--init fitted] [--runs FOLDER]
Agreement with the teacher on photos kept out of training, through a linear map fitted afterwards for all alike; k-NN on
digits. About 4 minutes a run on 2 CPU cores.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

from paired import Spread

RECIPES = Path(__file__).parent.parent / "recipes"
FIGURES = ("patch_cosine", "patch_cosine_centred", "class_cosine_centred", "patch_neighbours", "knn")
STUDENT_HEADS = {
    f"{head}.{k}": v for head in ("dino_head", "ibot_head") for k, v in (("hidden", 512), ("bottleneck", 128))
}


def recipe(name: str, settings: dict[str, object]) -> None:
    arguments = [f"--{key}={value}" for key, value in {**settings, "log.progress": "false"}.items()]
    subprocess.run([sys.executable, str(RECIPES / name), *arguments], check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--init", default="fitted", choices=["random", "selected", "fitted"])
    parser.add_argument("--lr", nargs="+", default=["1.75e-3"], help="rates to try for each way")
    parser.add_argument("--runs", type=Path, default=Path("runs/objectives"))
    options = parser.parse_args()
    shutil.rmtree(options.runs, ignore_errors=True)
    recipe("fit_heads.py", {"runs": options.runs, "name": "heads"})
    fitted = options.runs / "heads/teacher"
    ways: dict[str, dict[str, object]] = {
        "features": {"objective.kind": "features"},
        "prototypes, fitted heads": {"objective.kind": "prototypes", "teacher": fitted, **STUDENT_HEADS},
        "prototypes, random heads": {
            "objective.kind": "prototypes", "heads": "random", **STUDENT_HEADS,
            "dino_head.prototypes": 1024, "ibot_head.prototypes": 1024,
        },
    }  # fmt: skip
    print(f"{'':32}" + "".join(f"{name:>24}" for name in FIGURES))
    for way, settings in ways.items():
        for rate in options.lr:
            found = []
            for seed in options.seeds:
                name = f"{way.replace(', ', '-').replace(' ', '-')}-{rate}-{seed}"
                setting = "optim.base_lr" if options.init == "random" else "relative_lr"
                fixed = {"name": name, "runs": options.runs, "init": options.init, setting: rate}
                recipe("distill.py", {**fixed, "optim.steps": options.steps, "runtime.seed": seed, **settings})
                found.append(json.loads((options.runs / name / "measured.json").read_text())["trained"])
            print(f"{way + ', ' + rate:32}" + "".join(f"{Spread.of([f[n] for f in found])!s:>24}" for n in FIGURES))


if __name__ == "__main__":
    main()
