"""Every direction between layouts, proved equal; training checkpoints too; nothing unsafe is read."""

import json
import os
import pickle
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from dinov2_zoo.config import CheckpointConfig, ModelConfig, ObjectiveConfig, OptimConfig, RuntimeConfig
from dinov2_zoo.errors import CheckpointError
from dinov2_zoo.hub.convert import convert
from dinov2_zoo.hub.model import Dinov2Model
from dinov2_zoo.models.branch import Branch
from dinov2_zoo.models.heads import FeatureProjector
from dinov2_zoo.models.vision_transformer import VisionTransformer
from dinov2_zoo.objectives.distillation import Distillation
from dinov2_zoo.training.checkpoints.backbone import load_training_weights
from dinov2_zoo.training.checkpoints.index import check_index
from dinov2_zoo.training.checkpoints.writer import CheckpointWriter
from dinov2_zoo.training.runtime import Runtime
from dinov2_zoo.training.state import TrainState
from dinov2_zoo.weights.read import load_weights

PLAIN = ModelConfig(64, 2, 1, img_size=56, position_offset=0.1, position_antialias=False)
REGISTERS = ModelConfig(64, 2, 1, img_size=56, num_registers=4)
SWIGLU = ModelConfig(64, 2, 1, img_size=56, num_registers=4, ffn="swiglu")
LAYOUTS = ("zoo", "meta", "timm", "transformers")


def model(config):
    torch.manual_seed(0)
    net = VisionTransformer(config)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return net


@pytest.mark.parametrize("config", [PLAIN, REGISTERS, SWIGLU], ids=["plain", "registers", "swiglu"])
@pytest.mark.parametrize("first", LAYOUTS)
@pytest.mark.parametrize("second", LAYOUTS)
def test_every_direction_is_bit_exact(tmp_path, config, first, second):
    net = model(config)
    Dinov2Model.from_state(config, net.state_dict()).save_pretrained(tmp_path / "source")
    assert convert(tmp_path / "source", tmp_path / "first", first) == 0
    assert convert(tmp_path / "first", tmp_path / "second", second) == 0
    state = load_weights(tmp_path / "second")[1]
    kept = [name for name in net.state_dict() if name != "mask_token" or "timm" not in (first, second)]
    assert all(torch.equal(state[name], net.state_dict()[name]) for name in kept)
    with safe_open(tmp_path / "first/model.safetensors", "pt") as file:
        header = file.metadata()
    assert header["converted_from"] == "source" and "56x56" in header["checked"] and len(header["source_sha256"]) == 64


def test_the_libraries_load_what_was_made_for_them(tmp_path):
    Dinov2Model.from_state(REGISTERS, model(REGISTERS).state_dict()).save_pretrained(tmp_path / "source")
    for to in ("timm", "transformers"):
        convert(tmp_path / "source", tmp_path / to, to)
    pixels = torch.randn(1, 3, 56, 84)
    ours = Dinov2Model.from_pretrained(tmp_path / "source")(pixels)
    theirs = timm.create_model(f"local-dir:{tmp_path}/timm", pretrained=True).eval()
    torch.testing.assert_close(theirs.forward_features(pixels)[:, 0], ours, rtol=0, atol=1e-5)
    theirs = AutoModel.from_pretrained(tmp_path / "transformers").eval()
    torch.testing.assert_close(theirs(pixels).last_hidden_state[:, 0], ours, rtol=0, atol=1e-5)
    assert "transformers_weights" not in json.loads((tmp_path / "transformers/config.json").read_text())


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_one_file_in_metas_names(tmp_path, suffix):
    save_file(model(PLAIN).state_dict(), tmp_path / "dinov2_vits14_pretrain.safetensors")
    convert(tmp_path / "dinov2_vits14_pretrain.safetensors", tmp_path / f"x{suffix}", "meta")
    assert load_weights(tmp_path / f"x{suffix}")[0].position_offset == 0.1
    with pytest.raises(CheckpointError, match="exists: convert to a new place"):
        convert(tmp_path / "dinov2_vits14_pretrain.safetensors", tmp_path / f"x{suffix}", "meta")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dinov2_vits14_pretrain.safetensors", f"x{suffix}"]


@pytest.fixture
def checkpoint(tmp_path):
    """A training checkpoint of a real distillation whose average lags behind."""
    torch.manual_seed(0)
    student, teacher = model(REGISTERS), model(PLAIN)
    module = Distillation(Branch(student, projector=FeatureProjector(64, 64, 64)), Branch(teacher), ObjectiveConfig())
    with Runtime(RuntimeConfig(precision="fp32", cpu=True, threads=1)) as runtime:
        state = TrainState.start(runtime.shard(module), OptimConfig(steps=10), global_batch=8)
        with torch.no_grad():
            module.ema.backbone.cls_token.add_(1)
        state.step = 3
        with CheckpointWriter(tmp_path / "run", CheckpointConfig()) as writer:
            writer.save(state)
    (tmp_path / "run/config.json").write_text('{"config": {"student": "vits14_reg4"}}')
    return tmp_path / "run/checkpoints/step-3", module


@pytest.mark.parametrize("branch", ["ema", "student"])
def test_a_training_checkpoint_gives_either_branch(checkpoint, tmp_path, branch):
    folder, module = checkpoint
    assert convert(folder, tmp_path / "out", "zoo", branch=branch) == 0
    expected = getattr(module, branch).backbone.state_dict()
    found = Dinov2Model.from_pretrained(tmp_path / "out").state_dict()
    assert expected.keys() == found.keys() and all(torch.equal(expected[n], found[n]) for n in found)


def test_a_plain_students_position_rule_comes_from_its_run(checkpoint):
    folder, _ = checkpoint
    (folder.parent.parent / "config.json").write_text('{"config": {"student": "vits14"}}')
    assert load_training_weights(folder)[0].position_offset == 0.1


class Trap:
    def __reduce__(self):
        return os.system, (f"touch {sys.argv[0]}.trapped",)


def test_an_index_that_would_run_something_is_refused(checkpoint):
    folder, _ = checkpoint
    check_index(folder)
    (folder / ".metadata").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(CheckpointError, match=r"system.*reading it could run anything"):
        check_index(folder)
    assert not Path(f"{sys.argv[0]}.trapped").exists()


def test_an_index_that_points_elsewhere_is_refused(tmp_path):
    save_file(model(PLAIN).state_dict(), tmp_path / "secret.safetensors")
    (tmp_path / "model").mkdir()
    index = {"weight_map": {name: "../secret.safetensors" for name in load_file(tmp_path / "secret.safetensors")}}
    (tmp_path / "model/model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="points outside its folder"):
        load_weights(tmp_path / "model")
