import pytest
import torch
from torch import nn

from dinov2_zoo.config import OptimConfig
from dinov2_zoo.training.parameter_groups import parameter_groups

# Names of the official student with heads: (name, shape, decays).
OFFICIAL = [
    ("backbone.cls_token", (1, 1, 8), True),
    ("backbone.pos_embed", (1, 5, 8), True),
    ("backbone.mask_token", (1, 8), True),
    ("backbone.reg_token", (1, 4, 8), True),
    ("backbone.patch_embed.proj.weight", (8, 3, 2, 2), True),
    ("backbone.patch_embed.proj.bias", (8,), False),
    *[
        (f"backbone.blocks.{i}.{rest}", shape, decays)
        for i in range(3)
        for rest, shape, decays in [
            ("norm1.weight", (8,), False),
            ("attn.qkv.weight", (24, 8), True),
            ("attn.qkv.bias", (24,), False),
            ("ls1.gamma", (8,), False),
            ("mlp.fc1.weight", (32, 8), True),
        ]
    ],
    ("backbone.norm.weight", (8,), False),
    ("dino.mlp.0.weight", (16, 8), True),
    ("dino.last_layer.weight_g", (10, 1), True),
    ("dino.last_layer.weight_v", (10, 4), True),
    ("projector.cls.bias", (8,), False),
]


def branch(entries):
    root = nn.Module()
    for name, shape, *_ in entries:
        *path, leaf = name.split(".")
        module = root
        for part in path:
            if part not in dict(module.named_children()):
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        module.register_parameter(leaf, nn.Parameter(torch.zeros(shape)))
    return root


def settings(module, **changes):
    """(lr factor, wd factor, last layer) by parameter name."""
    config = OptimConfig(steps=1, warmup_steps=0, **changes)
    names = {id(p): name for name, p in module.named_parameters()}
    return {
        names[id(p)]: (g["lr_multiplier"], g["wd_multiplier"], g["is_last_layer"])
        for g in parameter_groups(module, config)
        for p in g["params"]
    }


def test_decay_can_spare_tokens_positions_and_prototype_lengths_too():
    official, spared = settings(branch(OFFICIAL)), settings(branch(OFFICIAL), decay_tokens=False)
    changed = {name for name in official if official[name] != spared[name]}
    tokens = {f"backbone.{name}" for name in ("cls_token", "pos_embed", "mask_token", "reg_token")}
    assert changed == tokens | {"dino.last_layer.weight_g"}
    assert all(spared[name][1] == 0 for name in changed)


def test_decay_spares_what_the_official_code_spares():
    found = settings(branch(OFFICIAL))
    assert {name: wd == 1.0 for name, (_, wd, _) in found.items()} == {name: decays for name, _, decays in OFFICIAL}


def test_only_prototypes_are_the_last_layer():
    last = {name for name, (_, _, is_last) in settings(branch(OFFICIAL)).items() if is_last}
    assert last == {"dino.last_layer.weight_g", "dino.last_layer.weight_v"}


def test_patch_embedding_learns_slower_and_nothing_else_by_default():
    lr = {name: lr for name, (lr, _, _) in settings(branch(OFFICIAL)).items()}
    assert {name for name, value in lr.items() if value != 1.0} == {n for n in lr if "patch_embed" in n}
    assert lr["backbone.patch_embed.proj.weight"] == 0.2


def test_layer_decay_counts_from_the_end_and_leaves_heads_alone():
    lr = {name: lr for name, (lr, _, _) in settings(branch(OFFICIAL), layer_decay=0.5).items()}
    assert lr["backbone.norm.weight"] == 1.0
    assert [lr[f"backbone.blocks.{i}.attn.qkv.weight"] for i in range(3)] == [0.125, 0.25, 0.5]
    assert lr["backbone.pos_embed"] == lr["backbone.cls_token"] == 0.0625
    assert lr["backbone.patch_embed.proj.weight"] == pytest.approx(0.0625 * 0.2)
    assert lr["dino.mlp.0.weight"] == lr["projector.cls.bias"] == 1.0


def test_frozen_parameters_are_in_no_group():
    module = branch(OFFICIAL)
    module.get_submodule("backbone").mask_token.requires_grad_(False)
    assert settings(module).keys() == {name for name, *_ in OFFICIAL} - {"backbone.mask_token"}


def test_convolutional_students_decay_no_batch_norm_and_layer_decay_by_stage():
    import timm

    module = nn.Module()
    module.backbone = nn.Module()
    module.backbone.net = timm.create_model("test_efficientnet", num_classes=0)
    found = settings(module, layer_decay=0.5)
    assert {name for name, p in module.named_parameters() if p.ndim == 1} == {
        n for n, (_, wd, _) in found.items() if not wd
    }
    assert found["backbone.net.conv_stem.weight"][0] < found["backbone.net.blocks.1.0.conv_pwl.weight"][0] < 1
