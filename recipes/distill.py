"""Distil a frozen teacher into a small student.

Paper     Oquab et al. 2023, "DINOv2: Learning Robust Visual Features without Supervision", section 5.
Try it    accelerate launch recipes/distill.py
          A ViT-S/14 into a ViT-Ti/14 on the photos that three Python packages ship: minutes on 2 CPU cores.
Your own  accelerate launch recipes/distill.py --teacher facebook/dinov2-base --data /your/folder --student vits14_reg4
Presets   --config FILE, from recipes/configs/: demo.yaml (read without --data), one_gpu.yaml (read with --data) or
          paper_vits14.yaml; further options override it.
Result    runs/<name>/student loads with Dinov2Model, timm and transformers; runs/<name>/report.html shows it.
"""

import functools
import math
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from rich.console import Console

from dinov2_zoo.checkpoints.resume import latest_checkpoint, load_checkpoint, save_checkpoint
from dinov2_zoo.cli import parse, run
from dinov2_zoo.config import DistillConfig, to_dict
from dinov2_zoo.data.batch import Batch
from dinov2_zoo.data.holdout import open_split
from dinov2_zoo.data.loader import train_loader
from dinov2_zoo.data.skips import SkipLedger, guarded
from dinov2_zoo.data.sources import open_source
from dinov2_zoo.evaluation.heldout import Examiner, Measured, load_images
from dinov2_zoo.evaluation.table import terminal_table
from dinov2_zoo.hub.student import save_student
from dinov2_zoo.hub.teacher import load_teacher, load_teacher_with_heads
from dinov2_zoo.models.branch import Branch
from dinov2_zoo.models.heads import FeatureProjector, PrototypeHead
from dinov2_zoo.models.students import TimmStudent, build_student
from dinov2_zoo.models.weight_selection import select_weights
from dinov2_zoo.objectives.distillation import Distillation
from dinov2_zoo.objectives.layerwise_start import LayerwiseStart
from dinov2_zoo.reports.distillation import distillation_report, distillation_table
from dinov2_zoo.training.log import RunLog
from dinov2_zoo.training.loop import train
from dinov2_zoo.training.run_folder import check_run_folder, claim_run_folder
from dinov2_zoo.training.runtime import Runtime
from dinov2_zoo.training.state import TrainState


def build(config: DistillConfig) -> Distillation:
    """Teacher, student with random weights, and the objective between them."""
    student = build_student(config.student, config.crops.global_size)
    dim = student.embed_dim
    if config.objective.kind == "prototypes":
        teacher = load_teacher_with_heads(config.teacher, config.heads, dino=config.dino_head, ibot=config.ibot_head)
        branch = Branch(student, dino=PrototypeHead(dim, config.dino_head), ibot=PrototypeHead(dim, config.ibot_head))
    else:
        teacher = load_teacher(config.teacher)
        branch = Branch(student, projector=FeatureProjector(student.class_dim, dim, teacher.backbone.embed_dim))
    config.check_patch(teacher.backbone.patch_size)
    return Distillation(branch, teacher, config.objective)


def distil(config: DistillConfig, runtime: Runtime, folder: Path, *, resume: bool) -> None:
    """The run: measure, start, measure, train, measure, release."""
    say = Console(soft_wrap=True).print if runtime.is_main else (lambda *_, **__: None)
    evaluation, steps = config.evaluation, config.optim.steps
    images, heldout = open_split(config.data, evaluation.heldout, evaluation.heldout_count, config.runtime.seed)
    labelled = open_source(evaluation.labelled) if evaluation.labelled else None
    with runtime.main_first():
        module = build(config).to(runtime.device)
    batches = functools.partial(
        train_loader, images, config.crops, config.loader,
        accumulate=config.optim.accumulate, rank=runtime.rank, world_size=runtime.world_size,
    )  # fmt: skip

    def some_batches(count: int) -> Iterable[Batch]:
        return batches(seed=config.runtime.seed + 1, steps=math.ceil(count / config.loader.batch_size))

    examine = Examiner(
        load_images(heldout, evaluation.size) if heldout else None, labelled, config=evaluation,
        device=runtime.device, autocast=runtime.autocast, fit_batches=lambda: some_batches(evaluation.fit_images),
    )  # fmt: skip
    batches(seed=config.runtime.seed, steps=steps)  # settings that cannot work fail here, before anything is written
    if runtime.is_main:
        claim_run_folder(folder, to_dict(config))
    runtime.barrier()

    # ---- before: as drawn, and as it starts. All of it follows from the seed, so a resumed run repeats it.
    def measure_start() -> Measured:
        if config.objective.kind == "features":
            module.fit_projector(some_batches(evaluation.fit_images), device=runtime.device, autocast=runtime.autocast)
        return examine(module)

    say("Measuring the student with random weights")
    stages = {"random": measure_start()}
    student, teacher = module.student.backbone, module.teacher.backbone
    if config.start != "random" and not isinstance(student, TimmStudent):
        say("Starting the student from its teacher")
        if config.start == "selected":
            select_weights(teacher, student)
        else:
            crops = torch.cat([b.global_crops.flatten(0, 1) for b in some_batches(config.start_images)])
            LayerwiseStart(teacher, student, crops, runtime.autocast).run()
        module.reset_average()
        stages["start"] = measure_start()

    # ---- training
    state = TrainState.start(runtime.shard(module), config.optim, global_batch=config.loader.batch_size)
    if resume and (checkpoint := latest_checkpoint(folder)):
        load_checkpoint(checkpoint, state)
    runtime.start_trackers(config.name, to_dict(config))

    def save(state: TrainState, _: object) -> None:
        if state.step == steps or (config.checkpoint.every and state.step % config.checkpoint.every == 0):
            save_checkpoint(folder, state, keep=config.checkpoint.keep)

    def evaluate(state: TrainState, _: object) -> None:
        if evaluation.every and state.step % evaluation.every == 0 and state.step < steps:
            log.write(state.step, {f"heldout/{name}": figure for name, figure in examine(module).figures().items()})

    say(f"Training, step {state.step} to {steps}")
    log = RunLog(folder, config.log, steps=steps, start=state.step, main=runtime.is_main, track=runtime.track)
    with log:
        ledger = SkipLedger(len(images), config.loader.max_bad_share)
        stream = batches(seed=config.runtime.seed, start_step=state.step, steps=steps)
        train(runtime, state, guarded(stream, ledger), log, [save, evaluate])

    # ---- after: the average is what is released
    stages["trained"] = examine(module)
    table = distillation_table(stages, examine, module, metrics=folder / "metrics.jsonl")
    weights = runtime.full_state_dict(module.ema)
    if runtime.is_main:
        save_student(folder / "student", module, weights)
        distillation_report(folder, table, stages, examine, pictures=evaluation.pictures)
        say(terminal_table(table))
        say(f"Student   {folder}/student\nReport    {folder}/report.html\nPictures  {folder}/features.jpg")


def main() -> None:
    """Read the command line, run."""
    own_images = any(argument.split("=")[0] == "--data" for argument in sys.argv)
    preset = Path(__file__).parent / "configs" / ("one_gpu.yaml" if own_images else "demo.yaml")
    config, options = parse(DistillConfig, description=__doc__, default_config=preset)
    folder = Path(config.runs) / config.name
    check_run_folder(folder, to_dict(config), resume=options.resume)
    with Runtime(config.runtime, trackers=config.log.trackers, run_dir=folder) as runtime:
        distil(config, runtime, folder, resume=options.resume)


if __name__ == "__main__":
    run(main)
