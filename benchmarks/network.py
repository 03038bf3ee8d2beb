"""A network and crops of the pretraining recipe's shape, for benchmarks of a forward and backward pass."""

import argparse
from collections.abc import Callable, Sequence

import torch
from paired import Spread

from dinov2_zoo.config import ModelConfig
from dinov2_zoo.models.vision_transformer import VisionTransformer
from dinov2_zoo.models.zoo import SIZES

VIEWS = (2, 8)
"""Global and local crops of an image (official)."""
CROP_SIZES = (224, 98)
"""Their sides, pixels (official)."""


def parser(description: str | None) -> argparse.ArgumentParser:
    """Options that these benchmarks share."""
    found = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--size", choices=list(SIZES), default="s", help="width and heads of the zoo's model, patch 14")
    found.add_argument("--depth", type=int, default=4, help="blocks; a step is proportional to them")
    found.add_argument("--images", type=int, default=5, help="each gives 2 crops of 224 pixels and 8 of 98")
    found.add_argument("--rounds", type=int, default=7)
    found.add_argument("--threads", type=int, default=1, help="of the CPU; more only where no other process runs")
    found.add_argument("--device", default="cpu", help="cpu: fp32; cuda: bf16 autocast")
    return found


def build(options: argparse.Namespace) -> tuple[VisionTransformer, list[torch.Tensor]]:
    """The network, and its two groups of crops (noise)."""
    torch.manual_seed(0)
    width, _, heads = SIZES[options.size]
    config = ModelConfig(width, options.depth, heads, img_size=CROP_SIZES[0], ffn="swiglu" if width > 1024 else "mlp")
    groups = [
        torch.randn(views * options.images, 3, side, side, device=options.device)
        for views, side in zip(VIEWS, CROP_SIZES, strict=True)
    ]
    return VisionTransformer(config).to(options.device), groups


def forward_backward(
    model: VisionTransformer, features: Callable[[], Sequence[dict[str, torch.Tensor]]], device: str
) -> None:
    """Compute features of each group, some scalar of them and its gradient; all of it is done on return."""
    model.zero_grad()
    with torch.autocast("cuda", torch.bfloat16, enabled=device != "cpu"):
        outputs = features()
    sum(output[name].float().sin().mean() for output in outputs for name in OUTPUTS).backward()
    if device != "cpu":
        torch.cuda.synchronize()


OUTPUTS = ("x_norm_clstoken", "x_norm_patchtokens")


def title(options: argparse.Namespace) -> str:
    """What is measured, in words."""
    where = torch.cuda.get_device_name() if options.device != "cpu" else f"CPU, {options.threads} threads"
    return (
        f"ViT-{options.size.upper()}/14, {options.depth} blocks, {options.images} images of 2 x 224 + 8 x 98 pixels, "
        f"{where}, {options.rounds} rounds: median (range)"
    )


def seconds(pairs: list[tuple[float, float]]) -> tuple[Spread, Spread]:
    """Of the one way and the other."""
    return Spread.of([a for a, _ in pairs]), Spread.of([b for _, b in pairs])
