"""Heads travel in a file of their own, under Meta's names; where there are none, the error says how to get some."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from dinov2_zoo.config import HeadConfig
from dinov2_zoo.errors import CheckpointError
from dinov2_zoo.models.heads import PrototypeHead
from dinov2_zoo.weights.heads import HEADS_FILE, MADE_ON, load_heads, norms_fingerprint, save_heads

DIM = 32
DINO, IBOT = HeadConfig(prototypes=24, hidden=16, bottleneck=12), HeadConfig(prototypes=20, hidden=16, bottleneck=8)
WAYS = ("--heads FILE", "--heads random", "--objective.kind features")


@pytest.fixture
def heads():
    torch.manual_seed(0)
    made = PrototypeHead(DIM, DINO), PrototypeHead(DIM, IBOT)
    with torch.no_grad():
        for head in made:
            for parameter in head.parameters():
                parameter.normal_()
    return made


def assert_identical(loaded, heads):
    x = torch.randn(5, DIM)
    for one, other in zip(loaded, heads, strict=True):
        assert torch.equal(one(x), other(x))
        assert torch.equal(one.prototypes(), other.prototypes())


def test_a_round_trip_is_bit_exact_and_sizes_follow_from_the_tensors(tmp_path, heads):
    save_heads(tmp_path / HEADS_FILE, *(head.state_dict() for head in heads))
    assert_identical(load_heads(tmp_path / HEADS_FILE, DIM), heads)


def test_the_file_has_metas_names(tmp_path, heads):
    save_heads(tmp_path / HEADS_FILE, *(head.state_dict() for head in heads))
    layers = [f"mlp.{i}.{kind}" for i in (0, 2, 4) for kind in ("weight", "bias")]
    layers += ["last_layer.weight_g", "last_layer.weight_v"]
    assert set(load_file(tmp_path / HEADS_FILE)) == {f"{h}_head.{name}" for h in ("dino", "ibot") for name in layers}


def test_metas_training_export_is_read(tmp_path, heads):
    teacher = {
        f"{n}_head.{k}": t for n, h in zip(("dino", "ibot"), heads, strict=True) for k, t in h.state_dict().items()
    }
    torch.save({"teacher": teacher | {"backbone.cls_token": torch.zeros(1, 1, DIM)}}, tmp_path / "teacher.pth")
    assert_identical(load_heads(tmp_path / "teacher.pth", DIM), heads)


def test_missing_heads_say_how_to_get_them(tmp_path, heads):
    save_file({"cls_token": torch.zeros(1, 1, DIM)}, tmp_path / "backbone.safetensors")
    dino_alone = {f"dino_head.{k}": t for k, t in heads[0].state_dict().items()}
    save_file(dino_alone, tmp_path / "half.safetensors")
    for name, said in (
        ("none.safetensors", "does not exist"),
        ("backbone.safetensors", "dino_head"),
        ("half.safetensors", "ibot_head"),
    ):
        with pytest.raises(CheckpointError, match=said) as caught:
            load_heads(tmp_path / name, DIM)
        assert all(way in str(caught.value) for way in WAYS)


def test_heads_of_another_width_are_refused(tmp_path, heads):
    save_heads(tmp_path / HEADS_FILE, *(head.state_dict() for head in heads))
    with pytest.raises(CheckpointError, match="width of 32, this teacher's is 64"):
        load_heads(tmp_path / HEADS_FILE, 64)


@pytest.mark.parametrize("name", ["dino_head.mlp.2.bias", "ibot_head.last_layer.weight_g"])
def test_a_lost_or_misshapen_tensor_is_named(tmp_path, heads, name):
    save_heads(tmp_path / HEADS_FILE, *(head.state_dict() for head in heads))
    state = load_file(tmp_path / HEADS_FILE)
    for wrong in ({k: t for k, t in state.items() if k != name}, state | {name: torch.zeros(3)}):
        save_file(wrong, tmp_path / "wrong.safetensors")
        with pytest.raises(CheckpointError, match=name.split(".", 1)[1]):
            load_heads(tmp_path / "wrong.safetensors", DIM)


def test_heads_know_their_backbone_at_any_size_and_precision_and_no_other(tmp_path, heads):
    backbone = {
        "blocks.0.norm1.weight": torch.rand(DIM),
        "norm.bias": torch.rand(DIM),
        "pos_embed": torch.rand(1, 9, 4),
    }
    about = {MADE_ON: norms_fingerprint(backbone)}
    save_heads(tmp_path / HEADS_FILE, *(head.state_dict() for head in heads), about)
    half = {name: tensor.bfloat16() for name, tensor in backbone.items()}
    for same in (backbone, half, {**half, "pos_embed": torch.rand(1, 4, 4)}):
        assert_identical(load_heads(tmp_path / HEADS_FILE, DIM, same), heads)
    with pytest.raises(CheckpointError, match=r"another backbone of the same width.*recipes/fit_heads.py"):
        load_heads(tmp_path / HEADS_FILE, DIM, {**backbone, "norm.bias": torch.rand(DIM)})
