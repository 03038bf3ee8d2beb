"""One protocol for all: the same weights are the same encoder, whichever library computes them."""

import pytest
import timm
import torch
from PIL import Image

from dinov2_zoo.config import ModelConfig
from dinov2_zoo.errors import ConfigError, HubError
from dinov2_zoo.evaluation.encoders.adapters import TimmEncoder, TransformersEncoder, open_encoder
from dinov2_zoo.evaluation.encoders.encoder import BackboneEncoder
from dinov2_zoo.hub.model import Dinov2Model

SMALL = ModelConfig(64, 3, 1, img_size=56, num_registers=4)


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "m"
    torch.manual_seed(0)
    Dinov2Model(SMALL).save_pretrained(folder)
    return [open_encoder(text) for text in (str(folder), f"timm:local-dir:{folder}", f"transformers:{folder}")]


def test_each_kind_of_name_opens_its_library(encoders):
    assert [type(encoder) for encoder in encoders] == [BackboneEncoder, TimmEncoder, TransformersEncoder]
    assert {(e.depth, e.dim, e.patch_size, str(e.device)) for e in encoders} == {(3, 64, 14, "cpu")}


@pytest.mark.parametrize("height, width", [(56, 56), (70, 42)])
def test_tokens_agree(encoders, height, width):
    images = torch.randn(2, 3, height, width)
    ours, *others = [encoder(images) for encoder in encoders]
    for tokens in others:
        torch.testing.assert_close(tokens.class_token, ours.class_token, atol=1e-4, rtol=0)
        torch.testing.assert_close(tokens.patches, ours.patches, atol=1e-4, rtol=0)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_weights_that_were_stored_in_half_precision_are_measured_like_others(tmp_path, half):
    torch.manual_seed(0)
    model = Dinov2Model(SMALL).to(half)
    model.save_pretrained(tmp_path / "half")
    images = torch.randn(2, 3, 56, 56)
    found = open_encoder(str(tmp_path / "half"))(images)
    with torch.no_grad():
        torch.testing.assert_close(found.class_token, model.float()(images))
    # As on a GPU, in bf16: of fp16 weights CPU's autocast would make nothing.
    fast = open_encoder(str(tmp_path / "half"), autocast=lambda: torch.autocast("cpu", torch.bfloat16))
    torch.testing.assert_close(fast(images).class_token, found.class_token, atol=0.1, rtol=0.1)


@pytest.mark.parametrize("norm", [True, False])
def test_every_layer_agrees_in_the_order_asked_for(encoders, norm):
    images = torch.randn(2, 3, 70, 42)
    ours, *others = [encoder.layers(images, (2, 0, 1), norm=norm) for encoder in encoders]
    assert ours[0].patches.shape == (2, 64, 5, 3) and ours[0].registers.shape == (2, 4, 64)
    assert not torch.allclose(ours[0].class_token, ours[1].class_token)
    for layers in others:
        for mine, theirs in zip(ours, layers, strict=True):
            for name in ("class_token", "registers", "patches"):
                torch.testing.assert_close(getattr(theirs, name), getattr(mine, name), atol=1e-4, rtol=0)


def test_the_last_layer_normed_is_what_the_call_returns(encoders):
    images = torch.randn(1, 3, 56, 70)
    for encoder in encoders:
        tokens, (layer,) = encoder(images), encoder.layers(images, [encoder.depth - 1], norm=True)
        torch.testing.assert_close(layer.class_token, tokens.class_token)
        torch.testing.assert_close(layer.patches.flatten(2).transpose(1, 2), tokens.patches)


def test_features_may_train_a_probe(encoders):
    probe = torch.nn.Linear(64, 2)
    for encoder in encoders:
        (layer,) = encoder.layers(torch.randn(1, 3, 56, 56), [1], norm=True)
        probe(layer.class_token).sum().backward()


def test_a_block_that_is_not_there(encoders):
    for encoder in encoders:
        with pytest.raises(ConfigError, match=r"blocks 0 to 2, not \[3\]"):
            encoder.layers(torch.randn(1, 3, 56, 56), [0, 3], norm=True)


def test_an_untrained_twin_follows_from_its_seed_and_leaves_random_numbers_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = open_encoder("untrained:vitti14_reg4", seed=1)
    assert torch.equal(torch.rand(3), expected)
    images = torch.randn(1, 3, 28, 28)
    again, other = (open_encoder("untrained:vitti14_reg4", seed=seed) for seed in (1, 2))
    assert torch.equal(first(images).patches, again(images).patches)
    assert not torch.equal(first(images).patches, other(images).patches)


def test_a_convolutional_network_gives_features_but_no_blocks():
    encoder = TimmEncoder(timm.create_model("convnext_atto", num_classes=0))
    tokens = encoder(torch.randn(2, 3, 64, 96))
    assert tokens.class_token.shape == (2, encoder.dim) and tokens.patches.shape == (2, 6, encoder.dim)
    assert (encoder.depth, encoder.patch_size) == (0, 32)
    with pytest.raises(ConfigError, match="choose a Vision Transformer"):
        encoder.layers(torch.randn(1, 3, 64, 64), [0], norm=True)


def test_names_that_are_nothing(tmp_path):
    with pytest.raises(ConfigError, match="vits14"):
        open_encoder("untrained:vits15")
    with pytest.raises(HubError, match="timm cannot load no_such_model"):
        open_encoder("timm:no_such_model")
    Image.new("RGB", (4, 4)).save(tmp_path / "x.png")
    with pytest.raises(HubError, match="transformers cannot load"):
        open_encoder(f"transformers:{tmp_path}")
