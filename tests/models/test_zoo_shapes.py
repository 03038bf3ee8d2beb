"""The named models have the shapes and the parameter counts of the released ones."""

import pytest
import torch

import dinov2_zoo
from dinov2_zoo.errors import ConfigError
from dinov2_zoo.models.vision_transformer import VisionTransformer
from dinov2_zoo.models.zoo import list_models, model_config, nearest_model


def parameters(name):
    with torch.device("meta"):
        return sum(p.numel() for p in VisionTransformer(model_config(name)).parameters())


def test_models_are_listed_small_to_large():
    names = list_models()
    assert names == [f"vit{size}14{suffix}" for size in ("ti", "s", "b", "l", "g") for suffix in ("", "_reg4")]
    assert dinov2_zoo.list_models() == names
    counts = [parameters(name) for name in names]
    assert counts == sorted(counts)


@pytest.mark.parametrize(
    ("size", "shape"),
    # Width, blocks, heads (paper, Table 17, but for ViT-B's 18 blocks; ti: DeiT), hidden width of the feed-forward.
    [
        ("ti", (192, 12, 3, 768)),
        ("s", (384, 12, 6, 1536)),
        ("b", (768, 12, 12, 3072)),
        ("l", (1024, 24, 16, 4096)),
        ("g", (1536, 40, 24, 4096)),
    ],
)
def test_shapes_are_the_papers(size, shape):
    for suffix, registers in (("", 0), ("_reg4", 4)):
        config = model_config(f"vit{size}14{suffix}")
        assert (config.embed_dim, config.depth, config.num_heads, config.ffn_hidden) == shape
        assert (config.patch_size, config.img_size, config.num_registers) == (14, 518, registers)


@pytest.mark.parametrize(
    ("name", "count"),
    # Of the released files, mask token included; the official README rounds them to 21, 86, 300 and 1,100 million.
    [
        ("vits14", 22_056_576),
        ("vitb14", 86_580_480),
        ("vitl14", 304_368_640),
        ("vitg14", 1_136_480_768),
    ],
)
def test_parameter_counts_are_those_of_the_released_weights(name, count):
    assert parameters(name) == count
    # Four registers more; their class position is part of the class token.
    assert parameters(f"{name}_reg4") == count + (4 - 1) * model_config(name).embed_dim


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="no model `vit_s14`: did you mean `vits14`"):
        model_config("vit_s14")
    with pytest.raises(ConfigError, match=r"no model `resnet`: use one of vitti14, .*timm:<name>"):
        model_config("resnet")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("vits41", "vits14"),
        ("dinov2_vitb14", "vitb14"),
        ("dinov2_vitl14_reg", "vitl14_reg4"),
        ("facebook/dinov2-with-registers-giant", "vitg14_reg4"),
        ("vit_small_patch14_dinov2.lvd142m", "vits14"),
        ("vit_base_patch14_reg4_dinov2.lvd142m", "vitb14_reg4"),
        ("photos", None),
    ],
)
def test_a_name_misspelt_or_of_another_library_finds_ours(name, meant):
    assert nearest_model(name) == meant
