"""Accumulated micro-batches against one large batch: the gradient's direction, and what exactness costs.

Run  python benchmarks/accumulation.py [--images 16] [--parts 2 4 8] [--size ti] [--depth 4] [--side 112]
Two ways to split a step: `together`, with the loss of the whole step (this package); `apart`, with the loss of each
micro-batch, as accumulation is often written. Cosines are with the gradient of the same step in one piece.
"""

import argparse
import copy
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from paired import Spread, paired_seconds, ratio
from torch import Tensor

from dinov2_zoo.config import HeadConfig, MaskConfig, ModelConfig, PrototypesConfig, SelfDistillationConfig
from dinov2_zoo.data.batch import Batch
from dinov2_zoo.data.masks import block_mask, stratified_ratios
from dinov2_zoo.models.branch import Branch
from dinov2_zoo.models.heads import PrototypeHead
from dinov2_zoo.models.vision_transformer import VisionTransformer
from dinov2_zoo.models.zoo import SIZES
from dinov2_zoo.objectives.self_distillation import SelfDistillation
from dinov2_zoo.training.accumulation import CachedStep


def build(options: argparse.Namespace, centering: str) -> SelfDistillation:
    """A student, and its average a little apart from it; no dropped paths."""
    torch.manual_seed(0)
    width, _, heads = SIZES[options.size]
    backbone = VisionTransformer(ModelConfig(width, options.depth, heads, img_size=options.side, layer_scale=1.0))
    head = HeadConfig(options.prototypes)
    branch = Branch(backbone, dino=PrototypeHead(width, head), ibot=PrototypeHead(width, head))
    losses = PrototypesConfig(centering=centering)  # pyright: ignore[reportArgumentType]
    module = SelfDistillation(branch, losses, SelfDistillationConfig(drop_path=0.0))
    with torch.no_grad():
        for parameter in module.ema.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return module


def make_parts(options: argparse.Namespace, count: int) -> list[Batch]:
    """The same step, in `count` micro-batches."""
    source, images, side = torch.Generator().manual_seed(1), options.images, options.side
    ratios = stratified_ratios(2 * images, MaskConfig(), source).tolist()
    hidden = torch.stack([block_mask(side // 14, r, MaskConfig(), source) for r in ratios]).view(2, images, -1)
    large = torch.randn(2, images, 3, side, side, generator=source)
    small = torch.randn(4, images, 3, side // 2, side // 2, generator=source)
    ids = torch.arange(images).chunk(count)
    return [Batch(large[:, i], small[:, i], i, i, 0, hidden[:, i]) for i in ids]


def apart(module: SelfDistillation, parts: list[Batch]) -> None:
    """A loss of each micro-batch."""
    for batch in parts:
        (module(batch)["loss"] / len(parts)).backward()


def together(module: SelfDistillation, parts: list[Batch]) -> None:
    """One loss of them all."""
    step = CachedStep(module, torch.enable_grad)
    for batch in parts:
        step.add(batch, module.teach(batch))
    step.backward(lambda _: None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=16, help="of a step")
    parser.add_argument("--parts", type=int, nargs="+", default=[2, 4, 8], help="micro-batches")
    parser.add_argument("--size", choices=list(SIZES), default="ti")
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--side", type=int, default=112, help="of the global crops, pixels; local ones have half")
    parser.add_argument("--prototypes", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for centering in ("sinkhorn", "ema"):
        first = build(options, centering)

        def gradient(
            way: Callable[[SelfDistillation, list[Batch]], None], count: int, module: SelfDistillation = first
        ) -> Tensor:
            module = copy.deepcopy(module)  # the centre moves
            way(module, make_parts(options, count))
            return torch.cat([p.grad.flatten().double() for p in module.student.parameters() if p.grad is not None])

        # The centre is zero before the first step; a step makes it what micro-batches then move.
        together(first, make_parts(options, 1))
        first.zero_grad()
        whole = gradient(apart, 1)
        for count in options.parts:
            cosines = [float(F.cosine_similarity(gradient(way, count), whole, dim=0)) for way in (together, apart)]
            parts, module = make_parts(options, count), copy.deepcopy(first)
            pairs = paired_seconds(partial(apart, module, parts), partial(together, module, parts), options.rounds)
            costs: Spread = ratio(pairs)
            print(
                f"{centering:8} {count} micro-batches: cosine {cosines[0]:.6f} together, {cosines[1]:.4f} apart; "
                f"seconds together over apart {costs}"
            )


if __name__ == "__main__":
    main()
