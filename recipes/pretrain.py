"""Train a teacher with its heads, from images alone: DINO + iBOT + KoLeo on a student and its own average.

Paper     Oquab et al. 2023, "DINOv2: Learning Robust Visual Features without Supervision", section 4 and Table 16.
Try it    accelerate launch recipes/pretrain.py
          A ViT-Ti/14 on the photos that three Python packages ship: minutes on 2 CPU cores.
Your own  accelerate launch recipes/pretrain.py --data /your/folder
Presets   --config FILE, from recipes/configs/: pretrain_demo.yaml (read without --data), vits14_single_gpu.yaml (read
          with --data), vitl16_short.yaml, vitl14.yaml, vitg14.yaml; further options override it.
Result    runs/<name>/teacher: the average's backbone, which Dinov2Model, timm and transformers load, and
          heads.safetensors: what `recipes/distill.py --objective.kind prototypes --teacher runs/<name>/teacher` needs.
"""

import functools
import json
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from dinov2_zoo.cli import parse, run
from dinov2_zoo.config import PretrainConfig, to_dict
from dinov2_zoo.data.loader import train_loader
from dinov2_zoo.data.sources import open_source
from dinov2_zoo.evaluation.distilled.heldout import Examiner
from dinov2_zoo.evaluation.table import terminal_table
from dinov2_zoo.hub.model import Dinov2Model
from dinov2_zoo.hub.student import save_branch
from dinov2_zoo.hub.teacher import heads_beside
from dinov2_zoo.initialisation.heads import standardise_heads
from dinov2_zoo.models.branch import Branch
from dinov2_zoo.models.heads import PrototypeHead
from dinov2_zoo.models.vision_transformer import VisionTransformer
from dinov2_zoo.models.zoo import model_config
from dinov2_zoo.objectives.self_distillation import SelfDistillation
from dinov2_zoo.reports.pretraining import pretraining_report, pretraining_table
from dinov2_zoo.training.run_folder import check_run_folder, claim_run_folder
from dinov2_zoo.training.runtime import Runtime
from dinov2_zoo.training.session import train_run
from dinov2_zoo.weights.heads import load_heads


def build(config: PretrainConfig) -> SelfDistillation:
    """Student, its average, and the losses between them."""
    heads = None
    if config.init:
        # A frozen backbone keeps the positions it has; another grows or shrinks them to its new size once.
        size = None if config.freeze_backbone else config.crops.global_size
        backbone = Dinov2Model.from_pretrained(config.init, img_size=size)
        file = heads_beside(config.init)
        heads = load_heads(file, backbone.embed_dim, backbone.state_dict()) if file else None
    else:
        shape = model_config(config.model)
        ffn = config.ffn or shape.ffn
        shape = replace(shape, patch_size=config.patch_size, img_size=config.crops.global_size, ffn=ffn)
        backbone = VisionTransformer(shape)
    config.check_patch(backbone.patch_size)
    backbone.requires_grad_(not config.freeze_backbone)
    dino, ibot = heads or (PrototypeHead(backbone.embed_dim, head) for head in (config.dino_head, config.ibot_head))
    tied = config.self_distillation.tied_heads
    branch = Branch(backbone, dino=dino, ibot=None if tied else ibot, tied=tied)
    return SelfDistillation(branch, config.losses, config.self_distillation)


def pretrain(config: PretrainConfig, runtime: Runtime, folder: Path, *, resume: str | None) -> None:
    """The run: measure, train, measure, save the teacher."""
    say = Console(soft_wrap=True).print if runtime.is_main else (lambda *_, **__: None)
    images = open_source(config.data)
    labelled = open_source(config.evaluation.labelled) if config.evaluation.labelled else None
    with runtime.main_first():
        module = runtime.place(build(config))
    batches = functools.partial(
        train_loader, images, config.crops, config.loader, masks=config.masks,
        patch_size=module.student.backbone.patch_size, accumulate=config.optim.accumulate,
        rank=runtime.rank, world_size=runtime.world_size,
    )  # fmt: skip
    batches(seed=config.runtime.seed, steps=config.optim.steps)  # settings that cannot work fail here
    examine = Examiner(
        None, labelled, config=config.evaluation, device=runtime.device, autocast=runtime.autocast, fit_batches=list
    )
    if runtime.is_main:
        claim_run_folder(folder, to_dict(config))
    runtime.barrier()

    def measure() -> dict[str, float]:
        knn = examine.knn(module.ema)
        return {} if knn is None else {"knn": knn}

    if config.freeze_backbone:
        some = batches(
            seed=config.runtime.seed + 1, steps=max(1, config.evaluation.fit_images // config.loader.batch_size)
        )
        standardise_heads(module, some, device=runtime.device, autocast=runtime.autocast)
    stages = {"start": measure()}
    train_run(config, runtime, folder, module, batches, images=len(images), resume=resume, measure=measure)
    stages["trained"] = measure()

    weights = runtime.full_state_dict(module.ema)
    if runtime.is_main:
        about = {"data": config.data, "init": config.init or "random weights", "steps": str(config.optim.steps)}
        save_branch(folder / "teacher", module.ema, weights, **about)
        (folder / "measured.json").write_text(json.dumps(stages, indent=2) + "\n")
        table = pretraining_table(stages, folder / "metrics.jsonl")
        pretraining_report(folder, table)
        say(terminal_table(table))
        say(f"Teacher   {folder}/teacher\nReport    {folder}/report.html")


def launch(config: PretrainConfig, *, resume: str | None) -> None:
    """Check the run folder, run."""
    folder = Path(config.runs) / config.name
    check_run_folder(folder, to_dict(config), resume=resume)
    with Runtime(config.runtime, trackers=config.log.trackers, run_dir=folder) as runtime:
        pretrain(config, runtime, folder, resume=resume)


def main() -> None:
    """Read the command line, run."""
    demo, own = (Path(__file__).parent / f"configs/{name}.yaml" for name in ("pretrain_demo", "vits14_single_gpu"))
    config, options = parse(PretrainConfig, description=__doc__, default_config=demo, own_data_config=own)
    launch(config, resume=options.resume)


if __name__ == "__main__":
    run(main)
