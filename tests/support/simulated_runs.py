"""Small runs for tests of the simulation."""

from dinov2_zoo.config import (
    CropConfig,
    DistillConfig,
    HeadConfig,
    LoaderConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimConfig,
    PretrainConfig,
    RuntimeConfig,
    SelfDistillationConfig,
)

SHAPES = {
    "small": ModelConfig(192, 2, num_heads=3, img_size=518, num_registers=4),
    "large": ModelConfig(384, 2, num_heads=6, img_size=518),
}
"""To be put among the named ones (tests/simulation/conftest.py)."""


def pretraining(drop_path=0.1, prototypes=512, accumulate=1, **runtime):
    return PretrainConfig(
        model="small",
        crops=CropConfig(global_size=112, local_size=56, local_count=2),
        loader=LoaderConfig(batch_size=8),
        dino_head=HeadConfig(prototypes, hidden=96, bottleneck=48),
        ibot_head=HeadConfig(prototypes, hidden=80, bottleneck=32),
        self_distillation=SelfDistillationConfig(drop_path=drop_path),
        optim=OptimConfig(steps=10, warmup_steps=1, accumulate=accumulate),
        runtime=RuntimeConfig(precision="fp32", threads=1, cpu=True, **runtime),
    )


def distillation(kind="features", batch=8, **settings):
    return DistillConfig(
        teacher="large",
        student="small",
        crops=CropConfig(global_size=112, local_size=56, local_count=2),
        loader=LoaderConfig(batch_size=batch),
        dino_head=HeadConfig(512, hidden=96, bottleneck=48),
        ibot_head=HeadConfig(512, hidden=80, bottleneck=32),
        objective=ObjectiveConfig(kind=kind),
        optim=OptimConfig(steps=10, warmup_steps=1),
        runtime=RuntimeConfig(precision="fp32", threads=1, cpu=True),
        **settings,
    )
