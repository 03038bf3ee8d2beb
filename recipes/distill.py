"""Distil a frozen teacher into a small student.

Paper     Oquab et al. 2023, "DINOv2: Learning Robust Visual Features without Supervision", section 5.
Try it    dinov2-zoo distill: a ViT-S/14 into a ViT-Ti/14 on the photos of three Python packages, minutes on 2 CPU cores
Your own  dinov2-zoo distill PHOTOS --student vits14_reg4
          dinov2-zoo distill PHOTOS --students vitti14 vits14: several at once, the teacher is asked once for all
          dinov2-zoo distill PHOTOS --teacher dino=facebook/dinov2-base,other=timm:NAME: several teachers
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

from rich.console import Console

from dinov2_zoo.config import DistillConfig, to_dict
from dinov2_zoo.config.distill import INITS
from dinov2_zoo.config.settle import settle_data
from dinov2_zoo.data.batch import Batch
from dinov2_zoo.data.heldout import open_images, split_heldout
from dinov2_zoo.data.loader import train_loader
from dinov2_zoo.data.sources import describe, open_source
from dinov2_zoo.evaluation.distilled.heldout import Examiner, StudentMetrics, load_images
from dinov2_zoo.evaluation.table import terminal_table
from dinov2_zoo.hub.build import build_distillations
from dinov2_zoo.hub.student import save_student
from dinov2_zoo.hub.teacher import network_of_stored
from dinov2_zoo.initialisation.projector import fit_projector
from dinov2_zoo.initialisation.student import first_weights
from dinov2_zoo.models.vision_transformer import VisionTransformer
from dinov2_zoo.objectives.distillation import Distillation
from dinov2_zoo.progress import progress, track
from dinov2_zoo.reports.distillation import distillation_report, distillation_table
from dinov2_zoo.targets.checks import needs_local
from dinov2_zoo.training.plan import announce, check_run, hardware, settle
from dinov2_zoo.training.preconditioning import Coordinates, measure_coordinates
from dinov2_zoo.training.run_folder import claim_run_folder
from dinov2_zoo.training.runtime import Runtime
from dinov2_zoo.training.session import Run, train_runs
from dinov2_zoo.training.stored_targets import take_targets

Stages = dict[str, StudentMetrics]


def distil(config: DistillConfig, runtime: Runtime, *, resume: str | None) -> None:
    """The run, or those of several students: settle, measure, start, measure, train, measure, release."""
    say = Console(soft_wrap=True).print if runtime.is_main else (lambda *_, **__: None)
    # ---- images and settings
    source, heldout = open_images(config.data, config.evaluation.heldout)
    asked, images = config, source
    config = settle_data(config, len(source), apart=heldout is not None, hardware=hardware(runtime))
    evaluation = config.evaluation
    if heldout is None and evaluation.heldout_count:
        images, heldout = split_heldout(source, evaluation.heldout_count, config.runtime.seed)
    labelled = open_source(evaluation.labelled) if evaluation.labelled else None
    store = take_targets(config, runtime, images, heldout)
    with runtime.main_first():
        modules = [runtime.place(module) for module in build_distillations(config, store)]
    read = functools.partial(train_loader, images, config.crops, rank=runtime.rank, world_size=runtime.world_size)
    if store:
        read = functools.partial(read, targets=store.reader(config.crops.local_count if needs_local(config) else 0))
    finishing = functools.partial(
        modules[0].finishing, config.finish, config.crops.global_size, seed=config.runtime.seed
    )
    if not any((one.folder / "config.json").exists() for one in config.each()):
        one = functools.partial(read, seed=config.runtime.seed, steps=1)
        config, seconds = settle(asked, config, runtime, modules, one, images=len(images), stage=finishing(steps=1))
        kept = 0 if heldout is None else len(heldout)
        say(announce(config, describe(source), train=len(images), heldout=kept, seconds=seconds))
        if store:
            say(store.announce(config.optim.steps * config.loader.batch_size / len(images)))
    evaluation, configs = config.evaluation, config.each()
    stage = finishing(steps=config.optim.steps)
    for module in modules:
        module.stage = stage
    batches = functools.partial(read, config.loader, accumulate=config.optim.accumulate)

    def some_batches(count: int, what: str) -> Iterable[Batch]:
        steps = math.ceil(count / config.loader.batch_size)
        seed = config.runtime.seed + (store is None)  # other crops than in training, unless they must be stored ones
        return track(batches(seed=seed, steps=steps), steps, what, runtime.console)

    examine = Examiner(
        load_images(heldout, evaluation.size) if heldout else None,
        labelled,
        config=evaluation,
        device=runtime.device,
        autocast=runtime.autocast,
        fit_batches=lambda: some_batches(evaluation.fit_images, "Comparing student and teacher"),
    )
    if store and heldout:
        examine.teacher = store.heldout(runtime.device)
    if runtime.is_main:
        for one in configs:
            claim_run_folder(one.folder, to_dict(one))
    runtime.barrier()

    # ---- before: as drawn, and as it starts. All of it follows from the seed, so a resumed run repeats it.
    def measure_start(module: Distillation) -> StudentMetrics:
        if config.objective.kind == "features":
            for lesson in module.lessons():
                fits = some_batches(evaluation.fit_images, "Comparing student and teacher")
                fit_projector(module, fits, device=runtime.device, autocast=runtime.autocast, lesson=lesson)
        return examine(module)

    def start(module: Distillation, student: str) -> Stages:
        stages: Stages = {"random" if config.init in INITS else "before": measure_start(module)}
        if config.init in ("fitted", "selected") and isinstance(module.student.backbone, VisionTransformer):
            some = some_batches(config.init_images, f"Reading images for the first weights of {student}")
            teacher = runtime.place(network_of_stored(config.teacher, store)) if store else None
            blocks = len(module.student.backbone.blocks)
            with progress(f"Fitting the first weights of {student}", blocks, console=runtime.console) as advance:
                first_weights(module, config.init, some, runtime.autocast, lambda *_: advance(), network=teacher)
            del teacher
            stages["start"] = measure_start(module)
        return stages

    stages = [start(module, one.network) for module, one in zip(modules, configs, strict=True)]

    # ---- training
    def coordinates(module: Distillation) -> Coordinates | None:
        if not config.precondition:
            return None
        some = some_batches(evaluation.fit_images, "Looking at the student's layers")
        return measure_coordinates(module.student, some, device=runtime.device, autocast=runtime.autocast)

    def as_run(one: DistillConfig, module: Distillation, measured: Stages) -> Run:
        start = list(measured.values())[-1].score
        guard = (lambda: examine.score(module), start) if config.guard and start is not None else None
        return Run(one, module, lambda: examine(module).scalars(), coordinates(module), guard)

    runs = [as_run(*parts) for parts in zip(configs, modules, stages, strict=True)]
    stream = functools.partial(batches, stage=stage)
    lanes = train_runs(runs, runtime, stream, images=len(images), resume=resume)

    # ---- after: the average is what is released
    for one, module, lane, measured in zip(configs, modules, lanes, stages, strict=True):
        if lane.error is None:
            if lane.state.guard:
                lane.state.guard.finish()
                say(lane.state.guard.remark or "", end="")
            measured["trained"] = examine(module)
            release(one, runtime, module, measured, examine)
    if error := next((lane.error for lane in lanes if lane.error), None):
        raise error


def release(config: DistillConfig, runtime: Runtime, module: Distillation, stages: Stages, examine: Examiner) -> None:
    """Write a trained student and its report into its run folder, and show its table."""
    folder = config.folder
    table = distillation_table(stages, examine, module, metrics=folder / "metrics.jsonl")
    weights = runtime.full_state_dict(module.ema)
    if runtime.is_main:
        save_student(folder / "student", module, weights)
        distillation_report(folder, table, stages, examine, pictures=config.evaluation.pictures)
        places = f"Student   {folder}/student\nReport    {folder}/report.html\nPictures  {folder}/features.jpg"
        Console(soft_wrap=True).print(terminal_table(table), places, sep="\n")


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
