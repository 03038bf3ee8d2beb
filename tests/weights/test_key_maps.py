"""Names go to any layout and back without a bit lost, and what does not belong is named."""

import pytest
import torch

from dinov2_zoo.config import ModelConfig
from dinov2_zoo.errors import CheckpointError
from dinov2_zoo.models.vision_transformer import VisionTransformer
from dinov2_zoo.weights.key_maps import detect_layout, from_ours, to_ours

LAYOUTS = ["timm", "meta", "transformers-v4", "transformers-v5"]
KINDS = [(registers, ffn) for registers in (0, 4) for ffn in ("mlp", "swiglu")]


def random_state(registers=0, ffn="mlp"):
    """Every tensor random, the mask token too; twelve blocks, so that one number begins another."""
    torch.manual_seed(0)
    config = ModelConfig(64, 12, 1, img_size=56, ffn=ffn, num_registers=registers)
    return {name: torch.randn_like(t) for name, t in VisionTransformer(config).state_dict().items()}


def assert_identical(ours, theirs):
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("registers", "ffn"), KINDS)
def test_round_trips_are_bit_exact(registers, ffn, layout):
    state = random_state(registers, ffn)
    if layout == "timm":
        state["mask_token"].zero_()  # timm has none
    theirs = from_ours(state, layout)
    assert_identical(to_ours(theirs), state)
    assert_identical(to_ours(theirs, layout), state)


@pytest.mark.parametrize(("registers", "ffn"), KINDS)
def test_names_are_transformers_own(registers, ffn):
    transformers = pytest.importorskip("transformers")
    kind = "Dinov2WithRegisters" if registers else "Dinov2"
    config = getattr(transformers, f"{kind}Config")(
        hidden_size=64, num_hidden_layers=12, num_attention_heads=1, image_size=56, patch_size=14,
        use_swiglu_ffn=ffn == "swiglu",
    )  # fmt: skip
    shapes = {n: t.shape for n, t in getattr(transformers, f"{kind}Model")(config).state_dict().items()}
    ours = from_ours(random_state(registers, ffn), "transformers-v5")
    assert {name: tensor.shape for name, tensor in ours.items()} == shapes


def test_names_are_metas_and_those_of_files_on_the_hub():
    # Spelt out, for none of these files is at hand: facebookresearch/dinov2, and the Hub's facebook/dinov2-*.
    state = random_state(registers=4, ffn="swiglu")
    meta, hub = from_ours(state, "meta"), from_ours(state, "transformers-v4")
    assert {"register_tokens", "mask_token", "norm.weight"} <= meta.keys()
    assert {n.removeprefix("blocks.11.") for n in meta if n.startswith("blocks.11.mlp.")} == {
        "mlp.w12.weight", "mlp.w12.bias", "mlp.w3.weight", "mlp.w3.bias",
    }  # fmt: skip
    assert meta["pos_embed"].shape == hub["embeddings.position_embeddings"].shape == (1, 17, 64)
    outside = {n for n in hub if not n.startswith("encoder.")}
    assert outside == {
        "embeddings.cls_token", "embeddings.mask_token", "embeddings.register_tokens",
        "embeddings.position_embeddings", "embeddings.patch_embeddings.projection.weight",
        "embeddings.patch_embeddings.projection.bias", "layernorm.weight", "layernorm.bias",
    }  # fmt: skip
    stem = "encoder.layer.11."
    assert {n.removeprefix(stem).removesuffix(".weight") for n in hub if n.startswith(stem) and "bias" not in n} == {
        "norm1", "attention.attention.query", "attention.attention.key", "attention.attention.value",
        "attention.output.dense", "layer_scale1.lambda1", "norm2", "mlp.weights_in", "mlp.weights_out",
        "layer_scale2.lambda1",
    }  # fmt: skip


def test_query_key_and_value_are_the_thirds_of_the_packed_projection_in_this_order():
    state = random_state()
    for layout, names in (
        ("transformers-v4", ["attention.query", "attention.key", "attention.value"]),
        ("transformers-v5", ["q_proj", "k_proj", "v_proj"]),
    ):
        theirs = from_ours(state, layout)
        stacked = torch.cat([theirs[f"encoder.layer.3.attention.{name}.weight"] for name in names])
        assert torch.equal(stacked, state["blocks.3.attn.qkv.weight"])


@pytest.mark.parametrize("layout", ["meta", "transformers-v4", "transformers-v5"])
def test_the_class_position_is_folded_into_the_class_token_of_models_with_registers(layout):
    theirs = from_ours(random_state(registers=4), layout)
    prefix = "" if layout == "meta" else "embeddings."
    positions = prefix + ("pos_embed" if layout == "meta" else "position_embeddings")
    assert not theirs[positions][:, 0].any()
    theirs[positions] = torch.randn_like(theirs[positions])
    ours = to_ours(theirs)
    assert torch.equal(ours["cls_token"][0, 0], theirs[f"{prefix}cls_token"][0, 0] + theirs[positions][0, 0])
    assert torch.equal(ours["pos_embed"], theirs[positions][:, 1:])


def test_chunked_names_of_metas_training_runs():
    # Four chunks of three; the second number counts through all chunks.
    state = random_state(ffn="swiglu")
    chunked = {}
    for name, tensor in from_ours(state, "meta").items():
        if name.startswith("blocks."):
            number = int(name.split(".")[1])
            name = name.replace("blocks.", f"blocks.{number // 3}.", 1)
        chunked[name] = tensor
    assert "blocks.3.11.attn.qkv.weight" in chunked
    assert_identical(to_ours(chunked), state)


@pytest.mark.parametrize(
    ("layout", "prefix"),
    [
        ("meta", "backbone."),
        ("meta", "module.backbone."),
        ("timm", "_orig_mod."),
        ("transformers-v4", "dinov2."),
        ("transformers-v5", "dinov2_with_registers."),
    ],
)
def test_containers_are_taken_off(layout, prefix):
    state = random_state(registers=4)
    state["mask_token"].zero_()
    wrapped = {prefix + name: tensor for name, tensor in from_ours(state, layout).items()}
    assert_identical(to_ours(wrapped), state)


def test_heads_and_classifiers_are_left_out_and_nothing_else():
    state = random_state()
    extra = {name: torch.zeros(1) for name in ("dino_head.mlp.0.weight", "ibot_head.mlp.0.weight", "classifier.weight")}
    assert_identical(to_ours(from_ours(state, "meta") | extra), state)
    assert "head.weight" in to_ours(from_ours(state, "meta") | {"head.weight": torch.zeros(1)})  # refused at loading


def test_two_tensors_of_one_name_are_refused():
    # A file that holds a student and a teacher, say: neither may win silently.
    state = from_ours(random_state(), "meta")
    twice = state | {f"backbone.{name}": tensor + 1 for name, tensor in state.items()}
    with pytest.raises(CheckpointError, match="cls_token"):
        to_ours(twice)


@pytest.mark.parametrize("keys", [[], ["conv1.weight", "fc.weight"], ["cls_token"]])
def test_other_networks_are_refused(keys):
    with pytest.raises(CheckpointError, match="not the weights of a DINOv2 backbone"):
        detect_layout({key: torch.zeros(2) for key in keys})


@pytest.mark.parametrize("layout", ["transformers-v4", "transformers-v5"])
def test_a_lost_part_of_a_packed_projection_is_named(layout):
    theirs = from_ours(random_state(ffn="swiglu"), layout)
    lost = next(name for name in theirs if "layer.7." in name and ("key.bias" in name or "k_proj.bias" in name))
    del theirs[lost]
    with pytest.raises(CheckpointError, match=lost):
        to_ours(theirs)


@pytest.mark.parametrize("layout", ["transformers-v4", "transformers-v5"])
@pytest.mark.parametrize("shape", [(), (32, 64), (64, 32)])
def test_unequal_parts_of_a_packed_projection_are_named_with_their_shapes(layout, shape):
    # Query, key and value of 32, 64 and 96 rows would add up to the right number.
    theirs = from_ours(random_state(), layout)
    part = next(name for name in theirs if "layer.7." in name and name.endswith(("query.weight", "q_proj.weight")))
    theirs[part] = torch.zeros(shape)
    with pytest.raises(CheckpointError) as caught:
        to_ours(theirs)
    assert f"{part} {shape}" in str(caught.value)


@pytest.mark.parametrize(("name", "shape"), [("cls_token", (1, 1, 32)), ("cls_token", ()), ("pos_embed", (17,))])
def test_class_token_and_positions_that_do_not_add_up_are_refused(name, shape):
    theirs = from_ours(random_state(registers=4), "meta") | {name: torch.zeros(shape)}
    with pytest.raises(CheckpointError, match="positions should be"):
        to_ours(theirs)
