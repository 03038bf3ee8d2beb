"""Fit DINO and iBOT heads on a released backbone, so that it can be distilled by prototypes.

Why       Meta published DINOv2's backbones without their heads, and the paper's distillation needs both.
How       The pretraining losses, with the backbone frozen: the heads learn to say the same of two views of an image,
          and of a patch seen and hidden, while Sinkhorn-Knopp keeps all prototypes in use. Chosen here: no paper does.
Try it    dinov2-zoo fit-heads
          On the demo's teacher: a minute or two on 2 CPU cores.
Your own  dinov2-zoo fit-heads PHOTOS --init facebook/dinov2-base --dino_head.prototypes 65536
          --ibot_head.prototypes 65536 --loader.batch_size 256 --optim.steps 10000
Result    runs/<name>/teacher: the backbone unchanged, and heads.safetensors beside it, with its provenance. Then
          dinov2-zoo distill --objective.kind prototypes --teacher runs/<name>/teacher
"""

from collections.abc import Sequence
from pathlib import Path

from dinov2_zoo.arguments import parse, run
from dinov2_zoo.config import PretrainConfig


def main(argv: Sequence[str] | None = None) -> None:
    """The pretraining recipe under another preset: `freeze_backbone` is what makes the difference."""
    preset = Path(__file__).parent / "configs" / "fit_heads.yaml"
    config, options = parse(PretrainConfig, argv, script=Path(__file__), position="data", default_config=preset)

    from dinov2_zoo.recipes.pretrain import launch

    launch(config, resume=options.resume)


if __name__ == "__main__":
    run(main)
