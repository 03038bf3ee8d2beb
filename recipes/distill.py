"""Distil a frozen teacher into a small student.

Paper     Oquab et al. 2023, "DINOv2: Learning Robust Visual Features without Supervision", section 5.
Try it    dinov2-zoo distill: a ViT-S/14 into a ViT-Ti/14 on the photos of three Python packages, minutes on 2 CPU cores
Your own  dinov2-zoo distill PHOTOS --student vits14_reg4
          dinov2-zoo distill PHOTOS --students vitti14 vits14 --teacher dino=facebook/dinov2-base,other=timm:NAME
Presets   --config FILE, from recipes/configs/: demo.yaml (read without images), own_images.yaml (read with images) or
          paper_vits14.yaml; further options override it.
Result    runs/<name>/student loads with Dinov2Model, timm and transformers; runs/<name>/report.html shows it.
"""

from dinov2_zoo.arguments import answer_early, run
from dinov2_zoo.recipes import distill_arguments

if __name__ == "__main__":
    answer_early(distill_arguments)  # before torch is imported

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from rich.console import Console

from dinov2_zoo.config import DistillConfig, to_dict
from dinov2_zoo.config.distill import INITS
from dinov2_zoo.data.batch import Batch
from dinov2_zoo.data.loader import train_loader
from dinov2_zoo.data.sources import describe, open_source
from dinov2_zoo.evaluation.distilled.heldout import Examiner, StudentMetrics, load_images
from dinov2_zoo.hub.build import build_distillations
from dinov2_zoo.hub.teacher import network_of_stored
from dinov2_zoo.initialisation.projector import fit_projector
from dinov2_zoo.initialisation.student import first_weights
from dinov2_zoo.models.vision_transformer import VisionTransformer
from dinov2_zoo.objectives.distillation import Distillation
from dinov2_zoo.progress import progress, track
from dinov2_zoo.reports.release import Stages, release_student
from dinov2_zoo.targets.checks import needs_local
from dinov2_zoo.training.plan import announce, check_run, open_run, settle
from dinov2_zoo.training.preconditioning import measure_coordinates
from dinov2_zoo.training.run_folder import claim_run_folder
from dinov2_zoo.training.runtime import Runtime
from dinov2_zoo.training.session import Run, train_runs
from dinov2_zoo.training.stored_targets import take_targets


def distil(config: DistillConfig, runtime: Runtime, *, resume: str | None) -> None:
    """The run, or those of several students: settle, measure, start, measure, train, measure, release."""
    say = Console(soft_wrap=True).print if runtime.is_main else (lambda *_, **__: None)
    # ---- images and settings
    asked, (config, source, images, heldout) = config, open_run(config, runtime)
    store = take_targets(config, runtime, images, heldout)
    with runtime.main_first():
        modules = [runtime.place(module) for module in build_distillations(config, store)]
    reader = store.reader(config.crops.local_count if needs_local(config) else 0) if store else None
    where = {"rank": runtime.rank, "world_size": runtime.world_size, "device": runtime.device}
    shapes = {"patch_size": modules[0].patch_size, "patch_share": config.objective.patch_share}
    read = functools.partial(train_loader, images, config.crops, targets=reader, **where, **shapes)
    seed = config.runtime.seed
    finishing = functools.partial(modules[0].finishing, config.finish, config.crops.global_size, seed=seed)
    if not any((one.folder / "config.json").exists() for one in config.each()):
        one = functools.partial(read, seed=seed, steps=1)
        config, seconds = settle(asked, config, runtime, modules, one, images=len(images), stage=finishing(steps=1))
        say(announce(config, describe(source), train=len(images), heldout=len(heldout or ()), seconds=seconds))
        if store:
            say(store.announce(config.optim.steps * config.loader.batch_size / len(images)))
    evaluation, configs, stage = config.evaluation, config.each(), finishing(steps=config.optim.steps)
    for module in modules:
        module.stage = stage
    batches = functools.partial(read, config.loader, accumulate=config.optim.accumulate)

    def some_batches(count: int, what: str) -> Iterable[Batch]:
        steps = math.ceil(count / config.loader.batch_size)
        other = seed + (store is None)  # other crops than in training, unless they must be stored ones
        return track(batches(seed=other, steps=steps), steps, what, runtime.console)

    fits = functools.partial(some_batches, evaluation.fit_images, "Comparing student and teacher")
    examine = Examiner(
        load_images(heldout, evaluation.size) if heldout else None,
        open_source(evaluation.labelled) if evaluation.labelled else None,
        config=evaluation,
        device=runtime.device,
        autocast=runtime.autocast,
        fit_batches=fits,
    )
    if store and heldout:
        examine.teacher = store.heldout(runtime.device)
    for one in configs if runtime.is_main else ():
        claim_run_folder(one.folder, to_dict(one))
    runtime.barrier()

    # ---- before: as drawn, and as it starts. All of it follows from the seed, so a resumed run repeats it.
    def measure_start(module: Distillation) -> StudentMetrics:
        if config.objective.kind == "features":
            for lesson in module.lessons():
                fit_projector(module, fits(), device=runtime.device, autocast=runtime.autocast, lesson=lesson)
        return examine(module)

    def start(module: Distillation, student: str) -> Stages:
        stages: Stages = {"random" if config.init in INITS else "before": measure_start(module)}
        if config.init in ("fitted", "selected") and isinstance(module.student.backbone, VisionTransformer):
            some = some_batches(config.init_images, f"Reading images for the first weights of {student}")
            network = runtime.place(network_of_stored(config.teacher, store)) if store else None
            blocks = len(module.student.backbone.blocks)
            with progress(f"Fitting the first weights of {student}", blocks, console=runtime.console) as advance:
                first_weights(module, config.init, some, runtime.autocast, lambda *_: advance(), network=network)
            stages["start"] = measure_start(module)
        return stages

    stages = [start(module, one.network) for module, one in zip(modules, configs, strict=True)]

    # ---- training
    def as_run(one: DistillConfig, module: Distillation, measured: Stages) -> Run:
        start, coordinates = list(measured.values())[-1].score, None
        if one.preconditions:
            one = replace(one, optim=replace(one.optim, base_lr=one.relative_lr))
            coordinates = measure_coordinates(module.student, fits(), device=runtime.device, autocast=runtime.autocast)
        guard = (lambda: examine.score(module), start) if config.guard and start is not None else None
        return Run(one, module, lambda: examine(module).scalars(), coordinates, guard)

    runs = [as_run(*parts) for parts in zip(configs, modules, stages, strict=True)]
    lanes = train_runs(runs, runtime, functools.partial(batches, stage=stage), images=len(images), resume=resume)

    # ---- after: the average is what is released
    for one, module, lane, measured in zip(configs, modules, lanes, stages, strict=True):
        if lane.error is None:
            if lane.state.guard:
                lane.state.guard.finish()
            measured["trained"] = examine(module)
            release_student(one, runtime, lane.state, measured, examine)
    if error := next((lane.error for lane in lanes if lane.error), None):
        raise error


def launch(config: DistillConfig, *, resume: str | None) -> None:
    """Check the run folder, run."""
    config = check_run(config, resume=resume)
    with Runtime(config.runtime, trackers=config.log.trackers, run_dir=config.each()[0].folder) as runtime:
        distil(config, runtime, resume=resume)


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line, run."""
    config, options = distill_arguments(argv)
    launch(config, resume=options.resume)


if __name__ == "__main__":
    run(main)
