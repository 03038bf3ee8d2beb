"""Every file in recipes/configs is one that its recipe takes, and says the paper's numbers where it claims to."""

from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig
from accelerate.utils import FullyShardedDataParallelPlugin

from dinov2_zoo.arguments import parse
from dinov2_zoo.config import DistillConfig, PretrainConfig
from dinov2_zoo.config.evaluate import EvaluateConfig
from dinov2_zoo.evaluation.suite import TASKS, parse_tasks

CONFIGS = Path(__file__).resolve().parent.parent / "recipes/configs"
DISTILL = {"demo", "own_images", "paper_vits14", "chain_distill"}
PRETRAIN = {"pretrain_demo", "fit_heads", "vits14_single_gpu", "own_teacher", "vitl16_short", "vitl14", "vitg14"}


def read(name):
    kind = DistillConfig if name in DISTILL else PretrainConfig
    return parse(kind, ["--config", str(CONFIGS / f"{name}.yaml")])[0]


def test_no_preset_is_forgotten_here():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == DISTILL | PRETRAIN | {"evaluate_demo"}


def test_the_evaluation_demo_runs_every_task():
    config = parse(EvaluateConfig, ["--config", str(CONFIGS / "evaluate_demo.yaml")], resumes=False)[0]
    assert parse_tasks(config.tasks, config.data) == list(TASKS.values())


@pytest.mark.parametrize("name", sorted(DISTILL | PRETRAIN))
def test_a_preset_is_taken_fits_its_patches_and_bears_its_name(name):
    config = read(name)
    config.check_patch(14 if name != "vitl16_short" else 16)
    assert config.name == {
        "fit_heads": "heads",
        "chain_distill": "student",
        "own_images": "auto",
        "own_teacher": "auto",
    }.get(name, name)


def test_distillation_has_the_papers_numbers():
    config = read("paper_vits14")
    optim = config.optim
    assert optim.peak_lr(config.loader.batch_size) == pytest.approx(1e-3, rel=1e-3)  # Table 16
    assert (config.loader.batch_size, optim.steps, optim.warmup_steps) == (2048, 625_000, 100_000)
    assert (optim.weight_decay, optim.ema_momentum) == ((0.04, 0.2), (0.994, 1.0))
    assert config.objective.kind == "prototypes" and config.objective.patch_share == 1
    assert (config.crops.global_size, config.crops.local_size, config.crops.local_count) == (224, 98, 8)


@pytest.mark.parametrize("name", ["vitl14", "vitg14"])
def test_teachers_have_the_papers_numbers(name):
    config = read(name)
    optim, losses = config.optim, config.losses
    assert optim.peak_lr(config.loader.batch_size) == pytest.approx(3.5e-4, rel=0.02)  # Table 16
    assert (config.loader.batch_size, optim.steps, optim.warmup_steps) == (3072, 625_000, 100_000)
    assert (config.dino_head.prototypes, config.ibot_head.prototypes) == (131_072, 131_072)
    assert (config.dino_head.bottleneck, config.ibot_head.bottleneck) == (384, 256)
    assert config.self_distillation.drop_path == 0.4 and not config.self_distillation.tied_heads
    assert (losses.centering, losses.koleo_weight, losses.teacher_temperature) == ("sinkhorn", 0.1, 0.07)
    assert (config.self_distillation.first_temperature, config.masks.ratios) == (0.04, (0.1, 0.5))


@pytest.mark.parametrize("path", sorted((CONFIGS / "accelerate").glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_knows_every_key_of_its_files(path):
    settings = yaml.safe_load(path.read_text())
    fsdp = settings.pop("fsdp_config", {})
    assert settings.keys() <= ClusterConfig.__dataclass_fields__.keys()
    # What it does not know inside fsdp_config, accelerate drops without a word: compare with the plugin's own names.
    known = set(FullyShardedDataParallelPlugin.__dataclass_fields__)
    aliases = {"version": "fsdp_version", "transformer_layer_cls_to_wrap": "transformer_cls_names_to_wrap"}
    aliases |= {"offload_params": "cpu_offload"}
    for key in fsdp:
        name = key.removeprefix("fsdp_")
        assert aliases.get(name, name) in known, key
