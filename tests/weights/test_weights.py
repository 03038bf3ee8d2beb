"""Weights are read whole or not at all; a saved folder is read by timm and transformers too."""

import json
import os
import pickle
from dataclasses import replace

import pytest
import timm
import torch
from lively_weights import enliven
from PIL import Image
from safetensors.torch import load_file, save_file

from dinov2_zoo.config import ModelConfig
from dinov2_zoo.data.preprocess import eval_image
from dinov2_zoo.errors import CheckpointError
from dinov2_zoo.models.vision_transformer import VisionTransformer
from dinov2_zoo.models.zoo import model_config
from dinov2_zoo.weights.key_maps import from_ours
from dinov2_zoo.weights.read import load_weights
from dinov2_zoo.weights.write import TRANSFORMERS_FILE, save_weights, timm_config

os.environ["HF_HUB_OFFLINE"] = "1"

# What a backbone of no known origin is taken for: its rule of positions is told from whose names it has.
PLAIN = ModelConfig(128, 3, 2, img_size=56, position_offset=0.1, position_antialias=False)
REG = replace(PLAIN, num_registers=4, position_offset=0.0, position_antialias=True)
GATED = replace(PLAIN, ffn="swiglu")


def lively(config):
    """A model whose every parameter is large enough that a mistake anywhere would show."""
    torch.manual_seed(0)
    return enliven(VisionTransformer(config).eval(), norms=False)


def state_of(config):
    return {name: tensor.clone() for name, tensor in lively(config).state_dict().items()}


def assert_loads(source, config, state):
    found, loaded = load_weights(source)
    assert replace(found, layer_scale=config.layer_scale) == config
    assert loaded.keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.items())


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".bin"])
@pytest.mark.parametrize("layout", ["meta", "transformers-v4", "transformers-v5"])
@pytest.mark.parametrize("config", [PLAIN, REG, GATED], ids=["plain", "reg4", "swiglu"])
def test_one_file_of_anyones_names_is_a_model(tmp_path, config, layout, suffix):
    state = state_of(config)
    theirs = {name: tensor.contiguous() for name, tensor in from_ours(state, layout).items()}
    file = tmp_path / f"weights{suffix}"
    save_file(theirs, file) if suffix == ".safetensors" else torch.save(theirs, file)
    assert_loads(file, config, state)


@pytest.mark.parametrize(("config", "offset"), [(PLAIN, 0.0), (REG, 0.0)], ids=["plain", "reg4"])
def test_timms_names_get_timms_rule_of_positions(tmp_path, config, offset):
    state = state_of(config)
    state["mask_token"].zero_()  # timm has none
    save_file(from_ours(state, "timm"), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "vit_small_patch14_dinov2"}))
    assert_loads(tmp_path, replace(config, position_offset=offset, position_antialias=True), state)


def test_metas_training_export(tmp_path):
    state = state_of(PLAIN)
    teacher = {f"backbone.{name}": t for name, t in from_ours(state, "meta").items()}
    teacher = {name.replace("blocks.", "blocks.0.", 1): t for name, t in teacher.items()}
    teacher |= {f"{head}.mlp.0.weight": torch.zeros(8, 128) for head in ("dino_head", "ibot_head")}
    torch.save({"teacher": teacher}, tmp_path / "teacher_checkpoint.pth")
    assert_loads(tmp_path / "teacher_checkpoint.pth", PLAIN, state)


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("limit", ["10GB", "300KB"], ids=["one file", "shards"])
def test_folders_that_transformers_saves(tmp_path, registers, limit):
    transformers = pytest.importorskip("transformers")
    config = REG if registers else PLAIN
    state = state_of(config)
    name = "Dinov2WithRegisters" if registers else "Dinov2"
    theirs = getattr(transformers, f"{name}Model")(
        getattr(transformers, f"{name}Config")(
            hidden_size=128, num_hidden_layers=3, num_attention_heads=2, image_size=56, patch_size=14
        )
    )
    theirs.load_state_dict(from_ours(state, "transformers-v5"))
    theirs.save_pretrained(tmp_path, max_shard_size=limit)
    assert (tmp_path / "model.safetensors.index.json").exists() == (limit == "300KB")
    assert_loads(tmp_path, config, state)


def test_a_classifier_of_transformers_is_read_without_its_classifier(tmp_path):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.Dinov2ForImageClassification(
        transformers.Dinov2Config(hidden_size=128, num_hidden_layers=3, num_attention_heads=2, image_size=56)
    )
    theirs.save_pretrained(tmp_path)
    config, state = load_weights(tmp_path)
    assert config == PLAIN
    assert torch.equal(state["cls_token"], theirs.state_dict()["dinov2.embeddings.cls_token"])


# ------------------------------------------------------------------------------------------------ what is refused


def test_missing_unknown_and_misshapen_tensors_are_named_with_their_shapes(tmp_path):
    state = from_ours(state_of(PLAIN), "meta")
    del state["blocks.1.norm1.bias"]
    state["head.weight"] = torch.zeros(5, 128)
    state["norm.weight"] = torch.zeros(64)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        load_weights(tmp_path)
    message = str(caught.value)
    for part in (
        "1 missing: blocks.1.norm1.bias (128,)",
        "1 unknown: head.weight (5, 128)",
        "norm.weight is (64,), not (128,)",
    ):
        assert part in message


def test_a_lost_block_is_noticed_though_depth_is_read_from_the_names(tmp_path):
    state = {name: t for name, t in from_ours(state_of(PLAIN), "meta").items() if "blocks.1." not in name}
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"missing: blocks\.1\."):
        load_weights(tmp_path)


class Innocent:
    """Any class that is no tensor."""


def test_a_pickle_of_more_than_tensors_is_refused_and_not_run(tmp_path):
    torch.save({"model": state_of(PLAIN), "args": Innocent()}, tmp_path / "whole.pth")
    with pytest.raises(CheckpointError, match=r"more than plain tensors.*save its state dict"):
        load_weights(tmp_path / "whole.pth")

    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "ran"),))

    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Evil(), protocol=2))
    with pytest.raises(CheckpointError):
        load_weights(tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("kept", [0, 7, 0.5, 0.999], ids=["empty", "7 bytes", "half", "almost whole"])
def test_truncated_files_are_refused(tmp_path, suffix, kept):
    file = tmp_path / f"model{suffix}"
    state = state_of(PLAIN)
    save_file(state, file) if suffix == ".safetensors" else torch.save(state, file)
    whole = file.read_bytes()
    file.write_bytes(whole[: kept if isinstance(kept, int) else int(len(whole) * kept)])
    with pytest.raises(CheckpointError, match=f"model{suffix}.*get it again|save its state dict"):
        load_weights(file)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_files_of_something_else_are_refused(tmp_path, suffix):
    (tmp_path / f"page{suffix}").write_text("<!DOCTYPE html><title>404</title>" * 9)
    with pytest.raises(CheckpointError, match=f"page{suffix}"):
        load_weights(tmp_path / f"page{suffix}")
    file = tmp_path / f"resnet{suffix}"
    other = {"conv1.weight": torch.zeros(64, 3, 7, 7)}
    save_file(other, file) if suffix == ".safetensors" else torch.save(other, file)
    with pytest.raises(CheckpointError, match=r"conv1\.weight"):
        load_weights(file)


def test_folders_without_weights_are_refused_by_what_they_hold(tmp_path):
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(CheckpointError, match=r"photo\.jpg"):
        load_weights(tmp_path)
    with pytest.raises(CheckpointError, match="does not exist"):
        load_weights(tmp_path / "nowhere")


# ------------------------------------------------------------------------------------------------ the saved folder


@pytest.mark.parametrize("config", [replace(PLAIN, position_offset=0.0), REG, GATED], ids=["plain", "reg4", "swiglu"])
def test_a_saved_folder_and_its_file_alone_are_read_back(tmp_path, config):
    state = state_of(config)
    save_weights(tmp_path / "model", config, state)
    assert_loads(tmp_path / "model", config, state)
    assert_loads(tmp_path / "model" / "model.safetensors", config, state)  # its header carries the shape


@pytest.mark.parametrize("name", ["vitti14", "vitti14_reg4", "vits14", "vits14_reg4"])
@torch.inference_mode()
def test_timm_and_transformers_give_the_same_features(tmp_path, name):
    transformers = pytest.importorskip("transformers")
    config = replace(model_config(name), img_size=112, depth=12 if "ti" in name else 4)
    model = lively(config)
    save_weights(tmp_path / "model", config, model.state_dict())
    in_timm = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True).eval()
    in_transformers, report = transformers.AutoModel.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert type(in_transformers).__name__ == ("Dinov2WithRegistersModel" if config.num_registers else "Dinov2Model")
    assert not any(report.values()), report
    # Without registers each library resamples positions by its own rule: they agree at the stored size alone.
    for size in [112, 84] if config.num_registers else [112]:
        x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(size))
        ours, first = model.forward_features(x), 1 + config.num_registers
        for theirs in (in_timm.forward_features(x), in_transformers(pixel_values=x).last_hidden_state):
            torch.testing.assert_close(ours["x_norm_clstoken"], theirs[:, 0], rtol=0, atol=1e-4)
            torch.testing.assert_close(ours["x_norm_patchtokens"], theirs[:, first:], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "config",
    [
        GATED,
        replace(GATED, num_registers=4),
        replace(REG, num_registers=2),
        replace(PLAIN, patch_size=16, img_size=64),
    ],
    ids=["swiglu", "swiglu-reg4", "two registers", "patch 16"],
)
@torch.inference_mode()
def test_unusual_shapes_load_in_timm_and_transformers(tmp_path, config):
    transformers = pytest.importorskip("transformers")
    model = lively(config)
    save_weights(tmp_path / "model", config, model.state_dict())
    x = torch.randn(1, 3, config.img_size, config.img_size)
    in_timm = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True).eval()
    in_transformers = transformers.AutoModel.from_pretrained(tmp_path / "model")
    torch.testing.assert_close(model(x), in_timm(x), rtol=0, atol=1e-4)
    torch.testing.assert_close(model(x), in_transformers(pixel_values=x).pooler_output, rtol=0, atol=1e-4)


@pytest.mark.parametrize("config", [PLAIN, REG], ids=["plain", "reg4"])
def test_transformers_finds_how_to_prepare_images(tmp_path, config):
    transformers = pytest.importorskip("transformers")
    config = replace(config, img_size=112)
    save_weights(tmp_path / "model", config, state_of(config))
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "model")
    photo = Image.effect_noise((300, 200), 60).convert("RGB")
    pixels = processor(photo, return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 112, 112)
    assert processor.size["shortest_edge"] == 128
    torch.testing.assert_close(pixels[0], eval_image(photo, 112), rtol=0, atol=0.05)


def test_weights_keep_their_precision(tmp_path):
    state = {name: tensor.bfloat16() for name, tensor in state_of(REG).items()}
    save_weights(tmp_path / "model", REG, state)
    assert_loads(tmp_path / "model", REG, state)
    assert all(t.dtype == torch.bfloat16 for t in load_file(tmp_path / "model" / TRANSFORMERS_FILE).values())


def test_saving_replaces_a_model_but_nothing_else(tmp_path):
    state = state_of(PLAIN)
    save_weights(tmp_path / "model", PLAIN, state)
    save_weights(tmp_path / "model", REG, state_of(REG))
    assert load_weights(tmp_path / "model")[0].num_registers == 4
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    with pytest.raises(CheckpointError, match="photos"):
        save_weights(tmp_path / "photos", PLAIN, state)
    assert (tmp_path / "photos" / "a.jpg").exists()


def test_saving_removes_nothing_that_saving_does_not_write(tmp_path):
    # A run folder has a config.json too, with hours of work beside it; a published model has its card.
    run, state = tmp_path / "run", state_of(PLAIN)
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.json").write_text(json.dumps({"name": "run"}))
    save_weights(tmp_path / "model", PLAIN, state)
    (tmp_path / "model" / "README.md").touch()
    (tmp_path / "started").mkdir()
    (tmp_path / "started" / "config.json").write_text("{}")
    (tmp_path / "file").touch()
    for name, said in (("run", "checkpoints"), ("model", "README"), ("started", "config"), ("file", "is a file")):
        with pytest.raises(CheckpointError, match=said):
            save_weights(tmp_path / name, PLAIN, state)
    assert (run / "checkpoints").is_dir()
    assert (tmp_path / "model" / "README.md").exists()


def test_timms_giant_is_named_for_swiglu_alone():
    shape = ModelConfig(1536, 40, 24, img_size=56)
    assert timm_config(shape)["architecture"] == "vit_small_patch14_dinov2"
    assert timm_config(shape)["model_args"]["depth"] == 40
    assert timm_config(replace(shape, ffn="swiglu"))["architecture"] == "vit_giant_patch14_dinov2"


@pytest.mark.parametrize(
    ("name", "shape"),
    [("patch_embed.proj.weight", (64, 588)), ("blocks.0.mlp.fc2.weight", (9,)), ("register_tokens", (4,))],
)
def test_shapes_that_tell_no_architecture_are_named(tmp_path, name, shape):
    save_file(from_ours(state_of(REG), "meta") | {name: torch.zeros(shape)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        load_weights(tmp_path)
    assert str(shape) in str(caught.value)


@pytest.mark.parametrize("text", ['{"weight_map": {', "{}", "[]"])
def test_a_damaged_index_is_refused(tmp_path, text):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match="no index of weights"):
        load_weights(tmp_path)


@pytest.mark.parametrize(
    "text", ['{"dino', '{"dinov2_zoo": "x"}', '{"dinov2_zoo": {"num_heads": 0, "embed_dim": 64, "depth": 1}}']
)
def test_a_damaged_config_is_refused(tmp_path, text):
    save_weights(tmp_path / "model", PLAIN, state_of(PLAIN))
    (tmp_path / "model" / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_weights(tmp_path / "model")


def test_a_damaged_header_is_refused(tmp_path):
    save_file(state_of(PLAIN), tmp_path / "model.safetensors", metadata={"dinov2_zoo": "{"})
    with pytest.raises(CheckpointError, match="damaged header"):
        load_weights(tmp_path / "model.safetensors")


def test_a_failed_save_leaves_nothing_behind(tmp_path):
    state = state_of(PLAIN)
    del state["norm.bias"]
    with pytest.raises(CheckpointError, match=r"norm\.bias"):
        save_weights(tmp_path / "model", PLAIN, state)
    assert not any(tmp_path.iterdir())
