"""A whole pretraining step, ViT-S to ViT-g: images/s, peak memory, and share of this chip's own bf16 matmul rate.

Run  python benchmarks/step.py --sizes s b l g --images 32 --device cuda      (not yet run by us on a GPU)
     python benchmarks/step.py --sizes s --images 4 --prototypes 4096         on a CPU
A step is the paper's: 2 crops of 224 pixels and 8 of 98 per image, masks, stochastic depth 0.4, both heads, AdamW, EMA.
Operations are counted by torch's flop counter; the chip's rate is that of one large square product, measured here.
"""

import argparse
import resource
import time
from collections.abc import Callable

import torch
from paired import Spread
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dinov2_zoo.config import (
    CropConfig,
    HeadConfig,
    MaskConfig,
    ModelConfig,
    OptimConfig,
    PrototypesConfig,
    SelfDistillationConfig,
)
from dinov2_zoo.data.batch import Batch
from dinov2_zoo.data.drop_path import Share, draw_kept
from dinov2_zoo.data.masks import block_mask, stratified_ratios
from dinov2_zoo.models.branch import Branch
from dinov2_zoo.models.heads import PrototypeHead
from dinov2_zoo.models.vision_transformer import VisionTransformer
from dinov2_zoo.models.zoo import SIZES
from dinov2_zoo.objectives.self_distillation import SelfDistillation
from dinov2_zoo.training.ema import update_ema
from dinov2_zoo.training.state import TrainState


def build(size: str, prototypes: int, recompute: bool) -> SelfDistillation:
    dim, depth, heads = SIZES[size]
    config = ModelConfig(dim, depth, heads, img_size=224, ffn="swiglu" if size == "g" else "mlp")
    backbone = VisionTransformer(config)
    backbone.checkpoint_blocks = recompute
    dino, ibot = HeadConfig(prototypes, bottleneck=384), HeadConfig(prototypes)
    branch = Branch(backbone, dino=PrototypeHead(dim, dino), ibot=PrototypeHead(dim, ibot))
    return SelfDistillation(branch, PrototypesConfig(), SelfDistillationConfig())


def make_batch(module: SelfDistillation, images: int) -> Batch:
    crops, masks, source = CropConfig(), MaskConfig(), torch.Generator().manual_seed(0)
    ratios = stratified_ratios(2 * images, masks, source).tolist()
    hidden = torch.stack([block_mask(crops.global_size // 14, ratio, masks, source) for ratio in ratios])
    large = torch.randn(2, images, 3, crops.global_size, crops.global_size, generator=source)
    drop_path = module.drop_path(0)
    kept = drop_path and draw_kept(drop_path, [2, crops.local_count], Share(0, 0, images, images))
    small = torch.randn(crops.local_count, images, 3, crops.local_size, crops.local_size, generator=source)
    batch = Batch(large, small, torch.arange(images), torch.arange(images), drop_path=kept)
    return batch.hiding(hidden.view(2, images, -1))


def stepper(module: nn.Module, batch: Batch, device: torch.device, half: bool) -> Callable[[], Tensor]:
    state = TrainState.start(module, OptimConfig(steps=100, warmup_steps=1), global_batch=len(batch.seeds))
    state.schedules.apply(state.optimizer, 1)

    def step() -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            loss = module(batch)["loss"]
        loss.backward()
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        update_ema(state.ema, state.student, 0.99)
        return loss.detach()

    return step


def seconds(work: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def matmul_rate(device: torch.device, half: bool) -> float:
    """Operations per second of one large product."""
    side = 8192 if device.type == "cuda" else 1024
    a = torch.randn(side, side, device=device, dtype=torch.bfloat16 if half else torch.float32)
    return 2 * side**3 / min(seconds(lambda: a @ a, device) for _ in range(10))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["s"], choices=list(SIZES))
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--prototypes", type=int, default=131072)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--recompute", action="store_true", help="activation checkpointing")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    half = device.type == "cuda"
    rate = matmul_rate(device, half)
    name = torch.cuda.get_device_name() if half else f"CPU, {options.threads} threads"
    print(f"{name}: {rate / 1e12:.2f} T operations/s in one {'bf16' if half else 'fp32'} product")
    for size in options.sizes:
        if half:
            torch.cuda.reset_peak_memory_stats()
        module = build(size, options.prototypes, options.recompute).to(device)
        step = stepper(module, make_batch(module, options.images).to(device), device, half)
        with FlopCounterMode(display=False) as counter:
            step()
        times = [seconds(step, device) for _ in range(options.rounds)]
        peak = torch.cuda.max_memory_allocated() if half else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        share = Spread.of([counter.get_total_flops() / t / rate for t in times])
        print(f"ViT-{size}/14  {options.images} images  images/s {Spread.of([options.images / t for t in times])}  "
              f"share of the product's rate {share}  peak {peak / 2**30:.1f} GiB")  # fmt: skip
        del module, step


if __name__ == "__main__":
    main()
