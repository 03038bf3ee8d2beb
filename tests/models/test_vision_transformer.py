"""Outputs bear Meta's names and shapes for any image size; what cannot be taken is refused with the remedy."""

import pytest
import torch

from dinov2_zoo.config import ModelConfig
from dinov2_zoo.errors import ConfigError
from dinov2_zoo.models.vision_transformer import VisionTransformer

REGISTERS = pytest.mark.parametrize("registers", [0, 4])
DIM, DEPTH, PATCH, ROWS, COLUMNS = 24, 4, 7, 3, 5


def config(registers=0, **changes):
    return ModelConfig(DIM, DEPTH, 3, patch_size=PATCH, img_size=28, num_registers=registers, **changes)


def images(count=2, rows=ROWS, columns=COLUMNS):
    return torch.randn(count, 3, rows * PATCH, columns * PATCH, generator=torch.Generator().manual_seed(0))


@REGISTERS
def test_a_class_token_and_grid_that_are_stored_again_compute_the_same(lively, registers):
    model, other = lively(config(registers)), lively(config(registers), seed=1)
    cls_token, grid = model.class_token_and_grid()
    assert grid.shape == (1, 16, DIM) and torch.equal(grid, model.position_grid(4))
    other.load_state_dict(model.state_dict() | {name: other.state_dict()[name] for name in ("cls_token", "pos_embed")})
    other.set_class_token_and_grid(cls_token, grid)
    torch.testing.assert_close(other.prepare_tokens(images()), model.prepare_tokens(images()), rtol=0, atol=0)


# ---------------------------------------------------------------- forward_features


@REGISTERS
@torch.inference_mode()
def test_features_bear_metas_names_and_shapes(lively, registers):
    model = lively(config(registers))
    found = model.forward_features(images())
    patches = ROWS * COLUMNS
    assert {name: x.shape for name, x in found.items() if x is not None} == {
        "x_norm_clstoken": (2, DIM),
        "x_norm_regtokens": (2, registers, DIM),
        "x_norm_patchtokens": (2, patches, DIM),
        "x_prenorm": (2, 1 + registers + patches, DIM),
    }
    assert found["masks"] is None
    tokens = [found["x_norm_clstoken"][:, None], found["x_norm_regtokens"], found["x_norm_patchtokens"]]
    torch.testing.assert_close(torch.cat(tokens, dim=1), model.norm(found["x_prenorm"]))
    assert torch.equal(model(images()), found["x_norm_clstoken"])


@torch.inference_mode()
def test_an_image_does_not_depend_on_the_others_of_its_batch(lively):
    model, batch = lively(config()), images(3)
    torch.testing.assert_close(model(batch)[1:2], model(batch[1:2]), rtol=0, atol=1e-5)


@REGISTERS
@torch.inference_mode()
def test_pixels_under_a_mask_are_not_seen_and_all_others_are(lively, registers):
    model, x, masks = lively(config(registers)), images(1), torch.zeros(1, ROWS * COLUMNS, dtype=torch.bool)
    masks[0, COLUMNS + 2] = True  # second row, third column

    def changed(row, column):
        other = x.clone()
        other[:, :, row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH] += 1
        return model.forward_features(other, masks)["x_norm_clstoken"]

    found = model.forward_features(x, masks)
    assert found["masks"] is masks
    assert torch.equal(changed(1, 2), found["x_norm_clstoken"])
    assert not torch.equal(changed(2, 1), found["x_norm_clstoken"])
    assert torch.equal(model.forward_features(x, ~masks & masks)["x_prenorm"], model.forward_features(x)["x_prenorm"])


@pytest.mark.parametrize(("height", "width", "words"), [(30, 28, "30 to 28 or 35"), (28, 5, "5 to 7")])
def test_other_sizes_are_refused_with_the_nearest_that_work(height, width, words):
    with pytest.raises(ConfigError, match=f"{height} x {width} pixels .* patches of 7: resize {words}"):
        VisionTransformer(config()).forward_features(torch.zeros(1, 3, height, width))


@REGISTERS
def test_under_autocast_the_residual_stream_stays_in_single_precision(lively, registers):
    model, x = lively(config(registers)), images()
    with torch.inference_mode():
        exact = model.forward_features(x)["x_prenorm"]
        with torch.autocast("cpu", torch.bfloat16):
            found = model.forward_features(x)["x_prenorm"]
    assert found.dtype == torch.float32
    assert 0 < (found - exact).abs().max() < 0.02 * exact.abs().max()


# ---------------------------------------------------------------- get_intermediate_layers


@REGISTERS
@torch.inference_mode()
def test_the_last_layer_is_what_forward_features_returns(lively, registers):
    model = lively(config(registers))
    whole = model.forward_features(images())
    ((patches, class_token),) = model.get_intermediate_layers(images(), return_class_token=True)
    torch.testing.assert_close(patches, whole["x_norm_patchtokens"])
    torch.testing.assert_close(class_token, whole["x_norm_clstoken"])
    (raw,) = model.get_intermediate_layers(images(), norm=False)
    torch.testing.assert_close(raw, whole["x_prenorm"][:, 1 + registers :])


@torch.inference_mode()
def test_a_number_means_the_last_blocks_and_a_list_means_those_blocks_in_the_networks_order(lively):
    model = lively(config())
    every = model.get_intermediate_layers(images(), n=DEPTH)
    assert len(every) == DEPTH and not torch.equal(every[0], every[1])
    for n, blocks in ((2, [2, 3]), ([0, 2], [0, 2]), ((2, 0), [0, 2]), (range(1, 3), [1, 2])):
        found = model.get_intermediate_layers(images(), n=n)
        assert len(found) == len(blocks)
        assert all(torch.equal(layer, every[block]) for layer, block in zip(found, blocks, strict=True))


@torch.inference_mode()
def test_layer_k_is_the_output_of_a_model_cut_after_block_k(lively):
    model = lively(config())
    layers = model.get_intermediate_layers(images(), n=[1])
    model.blocks = model.blocks[:2]
    torch.testing.assert_close(layers[0], model.forward_features(images())["x_norm_patchtokens"])


@REGISTERS
@torch.inference_mode()
def test_reshape_lays_patches_out_as_in_the_image(lively, registers):
    model = lively(config(registers))
    (flat,), (grid,) = (model.get_intermediate_layers(images(), reshape=reshape) for reshape in (False, True))
    assert grid.shape == (2, DIM, ROWS, COLUMNS) and grid.is_contiguous()
    assert torch.equal(grid[:, :, 2, 1], flat[:, 2 * COLUMNS + 1])


@pytest.mark.parametrize("n", [0, DEPTH + 1, [], [DEPTH], [-1, 2]])
def test_blocks_that_do_not_exist_are_refused(n):
    with pytest.raises(ConfigError, match="blocks 0 to 3: choose n among them, or 1 to 4 last ones"):
        VisionTransformer(config()).get_intermediate_layers(images(), n=n)


# ---------------------------------------------------------------- first weights


def test_first_weights_are_drawn_as_in_the_official_code():
    torch.manual_seed(0)
    model = VisionTransformer(ModelConfig(96, 2, 3, img_size=224, num_registers=4))
    for name, parameter in model.named_parameters():
        if name.endswith("gamma"):
            assert torch.all(parameter == 1e-5), name
        elif name.startswith("patch_embed") or name.endswith("norm.weight") or "norm1.w" in name or "norm2.w" in name:
            continue  # torch's own
        elif name in ("cls_token", "reg_token"):
            assert parameter.std().item() == pytest.approx(1e-6, rel=0.3), name
        elif name.endswith("bias") or name == "mask_token":
            assert not parameter.any(), name
        else:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.05), name
