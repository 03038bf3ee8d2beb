"""The demo's student from each first weights, same data, same steps: what the start is worth.

Run  python benchmarks/starts.py [--seeds 0 1] [--steps 90] [--runs FOLDER]
Each run is `recipes/distill.py` as a user would call it (about 4 minutes on 2 CPU cores).
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

from paired import Spread

RECIPE = Path(__file__).parent.parent / "recipes/distill.py"
# From random weights the rate is that of optim.base_lr; from good ones relative_lr, as it is set.
STARTS = (("fitted", None), ("selected", None), ("random", "2e-3"))
FIGURES = ("patch_cosine", "patch_cosine_centred", "class_cosine_centred", "patch_neighbours", "knn")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, default=90)
    parser.add_argument("--runs", type=Path, default=Path("runs/starts"))
    options = parser.parse_args()
    shutil.rmtree(options.runs, ignore_errors=True)
    print(f"{'start':20}" + "".join(f"{name:>28}" for name in FIGURES))
    for start, rate in STARTS:
        found = []
        for seed in options.seeds:
            name = f"{start}-{seed}"
            settings = {"name": name, "runs": options.runs, "init": start, **({"optim.base_lr": rate} if rate else {})}
            settings |= {"optim.steps": options.steps, "runtime.seed": seed, "log.progress": "false"}
            command = [sys.executable, str(RECIPE), *(f"--{key}={value}" for key, value in settings.items())]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            found.append(json.loads((options.runs / name / "measured.json").read_text())["trained"])
        print(
            f"{start:20}" + "".join(f"{Spread.of([f[name] for f in found])!s:>28}" for name in FIGURES),
            flush=True,
        )


if __name__ == "__main__":
    main()
