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
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from dinov2_zoo.cli import parse, run
from dinov2_zoo.config import DistillConfig, to_dict
from dinov2_zoo.data.batch import Batch
from dinov2_zoo.data.heldout import open_split
from dinov2_zoo.data.loader import train_loader
from dinov2_zoo.data.sources import open_source
from dinov2_zoo.evaluation.distilled.heldout import Examiner, StudentMetrics, load_images
from dinov2_zoo.evaluation.table import terminal_table
from dinov2_zoo.hub.model import Dinov2Model
from dinov2_zoo.hub.student import save_student
from dinov2_zoo.hub.teacher import heads_beside, load_teacher, load_teacher_with_heads
from dinov2_zoo.initialisation.fitted import fit_student
from dinov2_zoo.initialisation.projector import fit_projector
from dinov2_zoo.initialisation.selected import check_fits, select_weights
from dinov2_zoo.models.branch import Branch
from dinov2_zoo.models.heads import FeatureProjector, PrototypeHead
from dinov2_zoo.models.students import TimmStudent, build_student
from dinov2_zoo.objectives.distillation import Distillation
from dinov2_zoo.reports.distillation import distillation_report, distillation_table
from dinov2_zoo.training.run_folder import check_run_folder, claim_run_folder
from dinov2_zoo.training.runtime import Runtime
from dinov2_zoo.training.session import train_run
from dinov2_zoo.weights.heads import load_heads


def build(config: DistillConfig) -> Distillation:
    """Teacher, student with random weights, and the objective between them."""
    size = config.crops.global_size
    student = (
        Dinov2Model.from_pretrained(config.init, img_size=size) if config.init else build_student(config.student, size)
    )
    dim = student.embed_dim
    if config.objective.kind == "prototypes":
        teacher = load_teacher_with_heads(config.teacher, config.heads, dino=config.dino_head, ibot=config.ibot_head)
        assert teacher.dino is not None and teacher.ibot is not None
        dino = PrototypeHead(dim, replace(config.dino_head, prototypes=teacher.dino.count))
        ibot = PrototypeHead(dim, replace(config.ibot_head, prototypes=teacher.ibot.count))
        if file := heads_beside(config.init) if config.init else None:
            dino, ibot = load_heads(file, dim, student.state_dict())
        branch = Branch(student, dino=dino, ibot=ibot)
    else:
        teacher = load_teacher(config.teacher)
        if isinstance(student, TimmStudent) and config.crops.local_count:
            student.try_size(config.crops.local_size, "set --crops.local_count 0")
        branch = Branch(student, projector=FeatureProjector(student.class_dim, dim, teacher.backbone.embed_dim))
    if config.start != "random" and not config.init and not isinstance(student, TimmStudent):
        check_fits(teacher.backbone, student)
    config.check_patch(teacher.backbone.patch_size)
    return Distillation(branch, teacher, config.objective)


def distil(config: DistillConfig, runtime: Runtime, folder: Path, *, resume: str | None) -> None:
    """The run: measure, start, measure, train, measure, release."""
    say = Console(soft_wrap=True).print if runtime.is_main else (lambda *_, **__: None)
    evaluation = config.evaluation
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
    # Settings that cannot work fail here, before anything is written.
    batches(seed=config.runtime.seed, steps=config.optim.steps)
    if runtime.is_main:
        claim_run_folder(folder, to_dict(config))
    runtime.barrier()

    # ---- before: as drawn, and as it starts. All of it follows from the seed, so a resumed run repeats it.
    def measure_start() -> StudentMetrics:
        if config.objective.kind == "features":
            fit_projector(module, some_batches(evaluation.fit_images), device=runtime.device, autocast=runtime.autocast)
        return examine(module)

    say("Measuring the student as it is")
    stages = {"before" if config.init else "random": measure_start()}
    student, teacher = module.student.backbone, module.teacher.backbone
    if config.start != "random" and not config.init and not isinstance(student, TimmStudent):
        say("Starting the student from its teacher")
        if config.start == "selected":
            select_weights(teacher, student)
        else:
            crops = torch.cat([b.global_crops.flatten(0, 1) for b in some_batches(config.start_images)])
            fit_student(teacher, student, crops, autocast=runtime.autocast)
        module.reset_average()
        stages["start"] = measure_start()

    # ---- training
    train_run(
        config, runtime, folder, module, batches,
        images=len(images), resume=resume, measure=lambda: examine(module).scalars(),
    )  # fmt: skip

    # ---- after: the average is what is released
    stages["trained"] = examine(module)
    table = distillation_table(stages, examine, module, metrics=folder / "metrics.jsonl")
    weights = runtime.full_state_dict(module.ema)
    if runtime.is_main:
        save_student(folder / "student", module, weights)
        distillation_report(folder, table, stages, examine, pictures=evaluation.pictures)
        say(terminal_table(table))
        say(f"Student   {folder}/student\nReport    {folder}/report.html\nPictures  {folder}/features.jpg")


def launch(config: DistillConfig, *, resume: str | None) -> None:
    """Check the run folder, run."""
    folder = Path(config.runs) / config.name
    check_run_folder(folder, to_dict(config), resume=resume)
    with Runtime(config.runtime, trackers=config.log.trackers, run_dir=folder) as runtime:
        distil(config, runtime, folder, resume=resume)


def main() -> None:
    """Read the command line, run."""
    demo, own = (Path(__file__).parent / f"configs/{name}.yaml" for name in ("demo", "one_gpu"))
    config, options = parse(DistillConfig, description=__doc__, default_config=demo, own_data_config=own)
    launch(config, resume=options.resume)


if __name__ == "__main__":
    run(main)
