"""Train a teacher with its heads, from images alone: DINO + iBOT + KoLeo on a student and its own average.

Paper     Oquab et al. 2023, "DINOv2: Learning Robust Visual Features without Supervision", section 4 and Table 16.
Try it    dinov2-zoo pretrain
          A ViT-Ti/14 on the photos that three Python packages ship: minutes on 2 CPU cores.
Your own  dinov2-zoo pretrain PHOTOS
Presets   --config FILE, from recipes/configs/: pretrain_demo.yaml (read without images), own_teacher.yaml (read with
          images), vits14_single_gpu.yaml, vitl16_short.yaml, vitl14.yaml, vitg14.yaml; further options override it.
Result    runs/<name>/teacher: the average's backbone, which Dinov2Model, timm and transformers load, and
          heads.safetensors: what `dinov2-zoo distill --objective.kind prototypes --teacher runs/<name>/teacher` needs.
"""

from dinov2_zoo.arguments import answer_early, run
from dinov2_zoo.recipes import pretrain_arguments

if __name__ == "__main__":
    answer_early(pretrain_arguments)  # before torch is imported

import functools
import json
from collections.abc import Sequence

from rich.console import Console

from dinov2_zoo.config import PretrainConfig, to_dict
from dinov2_zoo.config.settle import settle_data
from dinov2_zoo.data.loader import train_loader
from dinov2_zoo.data.sources import describe, open_source
from dinov2_zoo.evaluation.distilled.heldout import Examiner
from dinov2_zoo.evaluation.table import terminal_table
from dinov2_zoo.hub.build import build_self_distillation
from dinov2_zoo.hub.student import save_branch
from dinov2_zoo.initialisation.heads import standardise_heads
from dinov2_zoo.progress import track
from dinov2_zoo.reports.pretraining import pretraining_report, pretraining_table
from dinov2_zoo.training.plan import announce, check_run, hardware, settle
from dinov2_zoo.training.run_folder import claim_run_folder
from dinov2_zoo.training.runtime import Runtime
from dinov2_zoo.training.session import Run, train_runs


def pretrain(config: PretrainConfig, runtime: Runtime, *, resume: str | None) -> None:
    """The run: settle, measure, train, measure, save the teacher."""
    say = Console(soft_wrap=True).print if runtime.is_main else (lambda *_, **__: None)
    # ---- images and settings
    images = open_source(config.data)
    labelled = open_source(config.evaluation.labelled) if config.evaluation.labelled else None
    asked = config
    config = settle_data(config, len(images), apart=False, hardware=hardware(runtime))
    with runtime.main_first():
        module = runtime.place(build_self_distillation(config))
    read = functools.partial(
        train_loader,
        images,
        config.crops,
        masks=config.masks,
        drop_path=module.drop_path(config.runtime.seed),
        patch_size=module.student.backbone.patch_size,
        rank=runtime.rank,
        world_size=runtime.world_size,
        device=runtime.device,
    )
    folder = config.folder
    if not (folder / "config.json").exists():
        one = functools.partial(read, seed=config.runtime.seed, steps=1)
        config, seconds = settle(asked, config, runtime, [module], one, images=len(images))
        module.config = config.self_distillation
        say(announce(config, describe(images), train=len(images), heldout=0, seconds=seconds))
    batches = functools.partial(read, config.loader, accumulate=config.optim.accumulate)
    examine = Examiner(
        None, labelled, config=config.evaluation, device=runtime.device, autocast=runtime.autocast, fit_batches=list
    )
    if runtime.is_main:
        claim_run_folder(folder, to_dict(config))
    runtime.barrier()

    # ---- before
    def measure() -> dict[str, float]:
        knn = examine.knn(module.ema)
        return {} if knn is None else {"knn": knn}

    if config.freeze_backbone:
        count = max(1, config.evaluation.fit_images // config.loader.batch_size)
        some = track(batches(seed=config.runtime.seed + 1, steps=count), count, "Looking at tokens", runtime.console)
        standardise_heads(module, some, device=runtime.device, autocast=runtime.autocast)
    stages = {"start": measure()}

    # ---- training
    train_runs([Run(config, module, measure)], runtime, batches, images=len(images), resume=resume)

    # ---- after: the average is the teacher
    stages["trained"] = measure()
    weights = runtime.full_state_dict(module.ema)
    if runtime.is_main:
        about = {"data": config.data, "init": config.init, "steps": str(config.optim.steps)}
        save_branch(folder / "teacher", module.ema, weights, **about)
        (folder / "measured.json").write_text(json.dumps(stages, indent=2) + "\n")
        table = pretraining_table(stages, folder / "metrics.jsonl")
        pretraining_report(folder, table)
        say(terminal_table(table))
        say(f"Teacher   {folder}/teacher\nReport    {folder}/report.html")


def launch(config: PretrainConfig, *, resume: str | None) -> None:
    """Check the run folder, run."""
    config = check_run(config, resume=resume)
    with Runtime(config.runtime, trackers=config.log.trackers, run_dir=config.folder) as runtime:
        pretrain(config, runtime, resume=resume)


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line, run."""
    config, options = pretrain_arguments(argv)
    launch(config, resume=options.resume)


if __name__ == "__main__":
    run(main)
