"""Tiny teacher, student and batches for tests of objectives."""

import torch

from dinov2_zoo.config import HeadConfig, ModelConfig, ObjectiveConfig, PrototypesConfig, SelfDistillationConfig
from dinov2_zoo.data.batch import Batch
from dinov2_zoo.data.drop_path import Share, draw_kept
from dinov2_zoo.models.branch import Branch
from dinov2_zoo.models.heads import FeatureProjector, PrototypeHead
from dinov2_zoo.models.vision_transformer import VisionTransformer
from dinov2_zoo.objectives.distillation import Distillation
from dinov2_zoo.objectives.self_distillation import SelfDistillation

PATCH, GLOBAL, LOCAL = 7, 28, 14


def backbone(dim, depth=2, registers=0):
    config = ModelConfig(
        dim, depth, num_heads=2, patch_size=PATCH, img_size=GLOBAL, num_registers=registers, layer_scale=0.5
    )
    return VisionTransformer(config)


def branch(dim, k=24, registers=0):
    dino, ibot = HeadConfig(k, hidden=20, bottleneck=6), HeadConfig(k + 8, hidden=20, bottleneck=5)
    return Branch(backbone(dim, registers=registers), dino=PrototypeHead(dim, dino), ibot=PrototypeHead(dim, ibot))


def sharpened(side):
    """A branch whose prototypes have lengths other than 1, or a mistake in them would not show."""
    for head in (side.dino, side.ibot):
        torch.nn.init.uniform_(head.last_layer.weight_g, 0.8, 1.2)
        for layer in head.mlp[::2]:
            torch.nn.init.normal_(layer.weight, std=0.3)
    return side


def prototypes(config=None, seed=0):
    torch.manual_seed(seed)
    return Distillation(
        sharpened(branch(16, registers=4)), sharpened(branch(24)), config or ObjectiveConfig(kind="prototypes")
    )


def features(config=None, seed=0):
    torch.manual_seed(seed)
    student = Branch(backbone(16), projector=FeatureProjector(16, 16, 24))
    return Distillation(student, Branch(backbone(24)), config or ObjectiveConfig())


def self_distillation(losses=None, config=None, seed=0, tied=False):
    """A student whose average has drifted away from it, as in the middle of a run."""
    torch.manual_seed(seed)
    whole = sharpened(branch(16))
    student = Branch(whole.backbone, dino=whole.dino, ibot=None if tied else whole.ibot, tied=tied)
    torch.nn.init.normal_(student.backbone.mask_token)
    config = config or SelfDistillationConfig(drop_path=0.0, temperature_warmup_steps=0)
    module = SelfDistillation(student, losses or PrototypesConfig(), config)
    with torch.no_grad():
        for parameter in module.ema.parameters():
            parameter.add_(0.1 * parameter.std().nan_to_num(0.1) * torch.randn_like(parameter))
    return module


def masked_batch(share=0.4, **options):
    """A batch in which about half of the crops have masks; the first view's first crop surely has, its second not."""
    whole = batch(**options)
    cells = (GLOBAL // 7) ** 2
    generator = torch.Generator().manual_seed(1)
    masks = torch.rand(2, len(whole.seeds), cells, generator=generator) < share
    masks &= torch.rand(2, len(whole.seeds), 1, generator=generator) < 0.5
    masks[0, 0, :3], masks[0, 1] = True, False
    return whole.hiding(masks)


def batch(images=5, local=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Batch(
        torch.randn(2, images, 3, GLOBAL, GLOBAL, generator=generator).to(torch.get_default_dtype()),
        torch.randn(local, images, 3, LOCAL, LOCAL, generator=generator).to(torch.get_default_dtype()),
        torch.arange(images),
        torch.arange(images),
    )


def rows(whole, rank, world, drop_path=None):
    """The part of a batch that one of several processes sees, or one of several micro-batches is."""
    share, views = len(whole.sample_ids) // world, [len(group) for group in whole.groups()]
    first = rank * share
    mine = slice(first, first + share)
    part = Batch(
        whole.global_crops[:, mine],
        whole.local_crops[:, mine],
        whole.sample_ids[mine],
        whole.seeds[mine],
        whole.step,
        drop_path=drop_path and draw_kept(drop_path, views, Share(whole.step, first, share, share * world)),
    )
    return part if whole.masks is None else part.hiding(whole.masks[:, mine])
