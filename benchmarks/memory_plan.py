"""What a preset of `recipes/pretrain.py` needs per GPU, and which cards hold it: computed from shapes, not measured.

Run  python benchmarks/memory_plan.py [--config recipes/configs/vitg14.yaml] [--gpus 8 16 32 64 128] [--reshard]
The network is built on the meta device, so ViT-g takes seconds on any machine. The parts are not all there at once:
"most" is the need at the fullest moment, which the last column names.
Gradients stand as shards and, "(whole)", as what waits to be reduced; "a block" is its backward pass.
"""

import argparse
from pathlib import Path

import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from dinov2_zoo.arguments import parse, run
from dinov2_zoo.config import PretrainConfig
from dinov2_zoo.hub.build import build_self_distillation
from dinov2_zoo.recipes import PRESETS
from dinov2_zoo.training.memory_plan import MemoryPlan, memory_plan

GIB = 2**30
# GiB that torch sees of a card: H100 and H200 as they report it, A100 of 40 GB in proportion.
CARDS = {"40 GB": 39.0, "80 GB": 78.0, "141 GB": 139.0}
# CUDA context, cuBLAS, NCCL, fragmentation: chosen here, not measured.
HEADROOM = 4.0
WIDTH = 160  # characters; a narrower terminal wraps


def parts(plan: MemoryPlan) -> dict[str, int]:
    """Columns of the table, bytes."""
    return {
        "student": plan.parameters,
        "EMA": plan.average,
        "AdamW": plan.optimizer,
        "gradients": plan.gradients,
        "(whole)": plan.accumulated or plan.unreduced,
        "gathered": plan.gathered + plan.gathered_average + plan.copies,
        "activations": plan.activations + plan.final_norm,
        "a block": plan.block,
        "heads": plan.heads + plan.outputs,
        "chunks": plan.chunks,
    }


def table(plans: dict[int, MemoryPlan], title: str) -> Table:
    """One line per number of GPUs."""
    grid = Table(
        title=title, caption=f"GiB per GPU; a card has {HEADROOM:g} GiB to spare for what is no tensor", box=SIMPLE
    )
    first = next(iter(plans.values()))
    for name in ("GPUs", "images", *parts(first), "most", *CARDS, "at"):
        grid.add_column(name, justify="left" if name == "at" else "right", no_wrap=True)
    for gpus, plan in plans.items():
        moment = max(plan.moments, key=lambda name: plan.moments[name])
        sizes = [f"{size / GIB:.1f}" for size in (*parts(plan).values(), plan.total)]
        fits = ["yes" if plan.total / GIB + HEADROOM <= card else "no" for card in CARDS.values()]
        grid.add_row(str(gpus), str(plan.images), *sizes, *fits, moment)
    return grid


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=PRESETS / "vitg14.yaml")
    parser.add_argument("--gpus", type=int, nargs="+", default=[8, 16, 32, 64, 128])
    parser.add_argument("--reshard", action="store_true", help="as with recipes/configs/accelerate/fsdp.yaml")
    options = parser.parse_args()
    config, _ = parse(PretrainConfig, ["--config", str(options.config), "--data", "x"])
    with torch.device("meta"):
        module = build_self_distillation(config)
    plans = {gpus: memory_plan(module, config, gpus, reshard=options.reshard) for gpus in options.gpus}
    title = f"{config.name}: {config.loader.batch_size} images a step" + (
        ", blocks resharded" if options.reshard else ""
    )
    Console(width=max(WIDTH, Console().width)).print(table(plans, title))


if __name__ == "__main__":
    run(main)
