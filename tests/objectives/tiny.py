"""Tiny teacher, student and batches for tests of objectives."""

import torch

from dinov2_zoo.config import HeadConfig, ModelConfig, ObjectiveConfig
from dinov2_zoo.data.batch import Batch
from dinov2_zoo.models.branch import Branch
from dinov2_zoo.models.heads import FeatureProjector, PrototypeHead
from dinov2_zoo.models.vision_transformer import VisionTransformer
from dinov2_zoo.objectives.distillation import Distillation

PATCH, GLOBAL, LOCAL = 7, 28, 14


def backbone(dim, depth=2, registers=0):
    config = ModelConfig(
        dim, depth, num_heads=2, patch_size=PATCH, img_size=GLOBAL, num_registers=registers, layer_scale=0.5
    )
    return VisionTransformer(config)


def branch(dim, k=24, registers=0):
    dino, ibot = HeadConfig(k, hidden=20, bottleneck=6), HeadConfig(k + 8, hidden=20, bottleneck=5)
    return Branch(backbone(dim, registers=registers), dino=PrototypeHead(dim, dino), ibot=PrototypeHead(dim, ibot))


def prototypes(config=None, seed=0):
    torch.manual_seed(seed)
    student, teacher = branch(16, registers=4), branch(24)
    for side in (student, teacher):  # lengths other than 1, or a mistake in them would not show
        for head in (side.dino, side.ibot):
            torch.nn.init.uniform_(head.last_layer.weight_g, 0.8, 1.2)
            for layer in head.mlp[::2]:
                torch.nn.init.normal_(layer.weight, std=0.3)
    return Distillation(student, teacher, config or ObjectiveConfig(kind="prototypes"))


def features(config=None, seed=0):
    torch.manual_seed(seed)
    student = Branch(backbone(16), projector=FeatureProjector(16, 16, 24))
    return Distillation(student, Branch(backbone(24)), config or ObjectiveConfig())


def batch(images=5, local=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Batch(
        torch.randn(2, images, 3, GLOBAL, GLOBAL, generator=generator).to(torch.get_default_dtype()),
        torch.randn(local, images, 3, LOCAL, LOCAL, generator=generator).to(torch.get_default_dtype()),
        torch.arange(images),
        [],
    )


def rows(whole, rank, world):
    """The part of a batch that one of several processes sees."""
    share = len(whole.sample_ids) // world
    mine = slice(rank * share, (rank + 1) * share)
    return Batch(whole.global_crops[:, mine], whole.local_crops[:, mine], whole.sample_ids[mine], [])
