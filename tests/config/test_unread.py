"""A setting that nothing would read is refused instead of ignored."""

import pytest

from dinov2_zoo.arguments import parse
from dinov2_zoo.config import DistillConfig, PretrainConfig
from dinov2_zoo.errors import ConfigError


@pytest.mark.parametrize(
    "option", ["--evaluation.pictures=3", "--evaluation.heldout_count=4", "--losses.patch_share=0.5"]
)
def test_pretraining_has_no_setting_of_distillation_alone(option):
    with pytest.raises(ConfigError, match="Unknown option"):
        parse(PretrainConfig, [option])


def test_patches_are_sampled_for_prototypes_only():
    with pytest.raises(ConfigError, match=r"objective\.patch_share samples patches for iBOT"):
        parse(DistillConfig, ["--objective.patch_share=0.5"])
    config, _ = parse(DistillConfig, ["--objective.patch_share=0.5", "--objective.kind=prototypes"])
    assert config.objective.patch_share == 0.5
