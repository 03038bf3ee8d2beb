"""The same weights give the same features here, in transformers and in timm, wherever positions are resampled alike."""

import os
from dataclasses import replace

import pytest
import timm
import torch
import torch.nn.functional as F
from lively_weights import enliven

from dinov2_zoo.models.vision_transformer import VisionTransformer
from dinov2_zoo.models.zoo import model_config
from dinov2_zoo.weights.key_maps import from_ours

os.environ["HF_HUB_OFFLINE"] = "1"
transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-4
STORED = 112
TIMM_NAMES = {"s": "small", "b": "base", "l": "large", "g": "giant"}
# (height, width): the stored size, and shapes at which positions are resampled, up and down, square and not.
SHAPES = [(STORED, STORED), (84, 84), (154, 70)]


def lively(size, registers, **changes):
    """A model whose every parameter is large enough that a mistake anywhere would show."""
    torch.manual_seed(0)
    config = replace(model_config(f"vit{size}14{'_reg4' if registers else ''}"), img_size=STORED, **changes)
    with torch.device("meta"):
        model = VisionTransformer(config).eval()
    model.to_empty(device="cpu")
    return enliven(model, matrices=lambda _: 0.03)


def in_transformers(model):
    config, name = model.config, "Dinov2WithRegisters" if model.num_registers else "Dinov2"
    registers = {"num_register_tokens": model.num_registers} if model.num_registers else {}
    their_config = getattr(transformers, f"{name}Config")(
        hidden_size=config.embed_dim,
        num_hidden_layers=config.depth,
        num_attention_heads=config.num_heads,
        image_size=config.img_size,
        patch_size=config.patch_size,
        use_swiglu_ffn=config.ffn == "swiglu",
        **registers,
    )
    with torch.device("meta"):
        theirs = getattr(transformers, f"{name}Model")(their_config)
    theirs.load_state_dict(from_ours(model.state_dict(), "transformers-v5"), assign=True)
    return theirs.eval()


def in_timm(model, size):
    reg = "_reg4" if model.num_registers else ""
    with torch.device("meta"):
        theirs = timm.create_model(
            f"vit_{TIMM_NAMES[size]}_patch14{reg}_dinov2",
            img_size=model.config.img_size,
            depth=model.config.depth,
            dynamic_img_size=True,
            num_classes=0,
        )
    theirs.load_state_dict(from_ours(model.state_dict(), "timm"), assign=True)
    return theirs.eval()


def images(height, width):
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(height * width))


@torch.inference_mode()
def assert_same(model, tokens_of, shapes):
    for shape in shapes:
        x = images(*shape)
        ours, theirs = model.forward_features(x), tokens_of(x)
        first = 1 + model.num_registers
        torch.testing.assert_close(ours["x_norm_clstoken"], theirs[:, 0], rtol=0, atol=TOLERANCE)
        torch.testing.assert_close(ours["x_norm_regtokens"], theirs[:, 1:first], rtol=0, atol=TOLERANCE)
        torch.testing.assert_close(ours["x_norm_patchtokens"], theirs[:, first:], rtol=0, atol=TOLERANCE)


def compare(size, registers, shapes, **changes):
    """Against both libraries at `shapes`; plain models take on each library's own rule of resampling."""
    rules = {"transformers": {}, "timm": {}}
    if not registers:
        rules["transformers"] = {"position_offset": 0.0, "position_antialias": False}
        rules["timm"] = {"position_offset": 0.0, "position_antialias": True}
    model = lively(size, registers, **changes | rules["transformers"])
    hugging = in_transformers(model)
    assert_same(model, lambda x: hugging(pixel_values=x).last_hidden_state, shapes)
    model = lively(size, registers, **changes | rules["timm"])
    assert_same(model, in_timm(model, size).forward_features, shapes)


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize(("size", "depth"), [("s", 12), ("b", 3), ("l", 2), ("g", 2)])
def test_features_equal_those_of_transformers_and_timm(size, depth, registers):
    compare(size, registers, SHAPES, depth=depth)


@pytest.mark.slow
@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("size", ["b", "l", "g"])
def test_features_equal_at_full_depth(size, registers):
    compare(size, registers, SHAPES[1:3])


def test_plain_models_equal_both_at_the_stored_size_under_the_released_rule():
    model = lively("s", 0, depth=2)
    assert (model.config.position_offset, model.config.position_antialias) == (0.1, False)
    hugging = in_transformers(model)
    assert_same(model, lambda x: hugging(pixel_values=x).last_hidden_state, [(STORED, STORED)])
    assert_same(model, in_timm(model, "s").forward_features, [(STORED, STORED)])


@pytest.mark.parametrize("library", ["transformers", "timm"])
def test_plain_models_differ_elsewhere_under_the_released_rule(library):
    # Or else the comparisons above could not tell one rule from another.
    model, x = lively("s", 0, depth=2), images(84, 84)
    with torch.inference_mode():
        if library == "timm":
            theirs = in_timm(model, "s").forward_features(x)
        else:
            theirs = in_transformers(model)(pixel_values=x).last_hidden_state
        assert (model.forward_features(x)["x_norm_patchtokens"] - theirs[:, 1:]).abs().max() > 100 * TOLERANCE


@pytest.mark.parametrize(("height", "width"), [(98, 98), (112, 154), (224, 224)])
@torch.inference_mode()
def test_the_released_rule_is_a_scale_factor_with_an_offset_of_a_tenth(height, width):
    model, x = lively("s", 0, depth=2), images(height, width)
    side, rows, columns = STORED // 14, height // 14, width // 14
    grid = model.pos_embed[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    resampled = F.interpolate(grid, scale_factor=((rows + 0.1) / side, (columns + 0.1) / side), mode="bicubic")
    positions = resampled.permute(0, 2, 3, 1).reshape(1, rows * columns, -1)
    patches = F.conv2d(x, model.patch_embed.proj.weight, model.patch_embed.proj.bias, stride=14)
    patches = patches.flatten(2).transpose(1, 2) + positions
    expected = torch.cat([(model.cls_token + model.pos_embed[:, :1]).expand(2, -1, -1), patches], dim=1)
    torch.testing.assert_close(model.prepare_tokens(x), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("registers", [0, 4])
@torch.inference_mode()
def test_intermediate_layers_equal_timms_and_transformers(registers):
    model, x, first = lively("s", registers, depth=4), images(STORED, STORED), 1 + registers
    ours = model.get_intermediate_layers(x, n=[1, 3], reshape=True, return_class_token=True)
    theirs = in_timm(model, "s").forward_intermediates(
        x, indices=[1, 3], norm=True, return_prefix_tokens=True, intermediates_only=True
    )
    for (patches, class_token), (their_patches, their_prefix) in zip(ours, theirs, strict=True):
        torch.testing.assert_close(patches, their_patches, rtol=0, atol=TOLERANCE)
        torch.testing.assert_close(class_token, their_prefix[:, 0], rtol=0, atol=TOLERANCE)
    hidden = in_transformers(model)(pixel_values=x, output_hidden_states=True).hidden_states
    for number, patches in enumerate(model.get_intermediate_layers(x, n=4, norm=False), start=1):
        torch.testing.assert_close(patches, hidden[number][:, first:], rtol=0, atol=TOLERANCE)


@torch.inference_mode()
def test_the_mask_token_stands_where_transformers_puts_it():
    model, x = lively("s", 0, depth=2), images(STORED, STORED)
    masks = torch.rand(2, 64, generator=torch.Generator().manual_seed(0)) < 0.5
    theirs = in_transformers(model)(pixel_values=x, bool_masked_pos=masks).last_hidden_state
    ours = model.forward_features(x, masks=masks)["x_norm_patchtokens"]
    torch.testing.assert_close(ours, theirs[:, 1:], rtol=0, atol=TOLERANCE)
