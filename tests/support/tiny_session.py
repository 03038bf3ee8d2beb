"""The tiny run as a process of its own, through the same session as the recipes, so that tests may harm it.

Usage: tiny_session.py [--resume] [--option VALUE ...], settings as of recipes/distill.py; the average's weights end up
in RUNS/NAME/weights.safetensors. In the environment, PACE is seconds per step, and BREAK_TRACKER breaks the tracker.
"""

import os
import time
from pathlib import Path

import tiny_run
import torch
from accelerate import Accelerator
from safetensors.torch import save_file

from dinov2_zoo.arguments import parse, run
from dinov2_zoo.config import DistillConfig, to_dict
from dinov2_zoo.training.run_folder import check_run_folder, claim_run_folder
from dinov2_zoo.training.runtime import Runtime
from dinov2_zoo.training.session import Run, train_runs

DEFAULTS = [
    "--optim.warmup_steps=2",
    "--optim.base_lr=0.1",
    "--optim.freeze_last_layer_steps=0",
    "--loader.batch_size=8",
    "--loader.workers=0",
    "--log.every=1",
    "--runtime.threads=1",
    "--runtime.precision=fp32",
    "--runtime.cpu=true",
    "--checkpoint.every=3",
    "--evaluation.labelled=null",
    "--evaluation.every=0",
]


def main():
    config, options = parse(DistillConfig, DEFAULTS + os.sys.argv[1:])
    folder = Path(config.runs) / config.name
    check_run_folder(folder, to_dict(config), resume=options.resume)
    with Runtime(config.runtime, trackers=config.log.trackers, run_dir=folder) as runtime:
        if runtime.is_main:
            claim_run_folder(folder, to_dict(config))
        runtime.barrier()

        def batches(*, seed, start_step, steps):
            share = {"rank": runtime.rank, "world": runtime.world_size}
            for batch in tiny_run.batches(steps, start=start_step, **share):
                time.sleep(float(os.environ.get("PACE", "0")))
                yield batch

        torch.manual_seed(0)
        runs = [Run(config, tiny_run.Match(), dict)]
        (lane,) = train_runs(runs, runtime, batches, images=10**6, resume=options.resume)
        weights = runtime.full_state_dict(lane.state.ema)
        if runtime.is_main:
            save_file(weights, folder / "weights.safetensors")


def unreachable(*_, **__):
    raise ConnectionError("no route to tracker")


if __name__ == "__main__":
    if "BREAK_TRACKER" in os.environ:
        Accelerator.log = unreachable
    run(main)
