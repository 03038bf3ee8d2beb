"""Depth heads: cheap order equals the protocol's, DPT equals transformers', official names map, losses by hand."""

import math

import pytest
import torch
from torch import nn
from transformers import Dinov2Config, DPTConfig, DPTForDepthEstimation

from dinov2_zoo.errors import CheckpointError
from dinov2_zoo.evaluation.depth.bins_head import BinsHead
from dinov2_zoo.evaluation.depth.dpt import DptHead
from dinov2_zoo.evaluation.depth.losses import gradient_loss, sig_loss
from dinov2_zoo.evaluation.depth.official import RULES, load_official
from dinov2_zoo.evaluation.encoders.encoder import Layer


def layers(count, dim=16, grid=(3, 5), batch=2, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return [
        Layer(
            torch.randn(batch, dim, generator=draw),
            torch.zeros(batch, 0, dim),
            torch.randn(batch, dim, *grid, generator=draw),
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize("count", [1, 4])
def test_convolving_tokens_first_equals_the_protocols_order(count):
    torch.manual_seed(0)
    head = BinsHead(16, count, 0.001, 10.0)
    found = []
    for order in (head.forward, head.naive):
        head.zero_grad()
        depth = order(layers(count))
        depth.square().sum().backward()
        found.append((depth.detach(), head.conv_depth.weight.grad.clone(), head.conv_depth.bias.grad.clone()))
    assert found[0][0].shape == (2, 1, 12, 20)
    for ours, theirs in zip(*found, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5 * theirs.abs().max())


def test_depth_stays_within_the_bins_and_no_score_means_their_middle():
    head = BinsHead(16, 1, 2.0, 10.0)
    found = head([Layer(50 * part.class_token, part.registers, 50 * part.patches) for part in layers(1)])
    assert found.min() >= 2.0 and found.max() <= 10.0
    nn.init.zeros_(head.conv_depth.weight)
    nn.init.constant_(head.conv_depth.bias, -1.0)  # relu leaves the floor alone: all bins alike
    assert torch.allclose(head(layers(1)), torch.tensor(6.0))


GRIDS = [(4, 4), (3, 5), (7, 6)]


def transformers_head(dim=32):
    torch.manual_seed(0)
    backbone = Dinov2Config(
        hidden_size=dim,
        num_hidden_layers=4,
        num_attention_heads=2,
        patch_size=14,
        image_size=56,
        out_indices=[1, 2, 3, 4],
        reshape_hidden_states=False,
        apply_layernorm=False,
    )
    config = DPTConfig(
        backbone_config=backbone,
        neck_hidden_sizes=[dim // 8, dim // 4, dim // 2, dim],
        fusion_hidden_size=256,
        use_bias_in_fusion_residual=False,
        add_projection=True,
        readout_type="project",
        reassemble_factors=[4, 2, 1, 0.5],
        max_depth=10.0,
    )
    return DPTForDepthEstimation(config).eval()


def same_weights(theirs, dim=32):
    """Our head with transformers' weights."""
    rules = {
        **{f"reassemble.{i}.readout": f"neck.reassemble_stage.readout_projects.{i}.0" for i in range(4)},
        **{f"reassemble.{i}.project": f"neck.reassemble_stage.layers.{i}.projection" for i in range(4)},
        **{f"reassemble.{i}.resize": f"neck.reassemble_stage.layers.{i}.resize" for i in (0, 1, 3)},
        **{f"reassemble.{i}.smooth": f"neck.convs.{i}" for i in range(4)},
        **{
            f"fusion.{i}.{ours}": f"neck.fusion_stage.layers.{i}.{name}"
            for i in range(4)
            for ours, name in (
                ("level.first", "residual_layer1.convolution1"),
                ("level.second", "residual_layer1.convolution2"),
                ("merged.first", "residual_layer2.convolution1"),
                ("merged.second", "residual_layer2.convolution2"),
                ("project", "projection"),
            )
            if i or not ours.startswith("level")
        },
        "project": "head.projection",
        "narrow": "head.head.0",
        "thin": "head.head.2",
        "depth": "head.head.4",
    }
    weights = theirs.state_dict()
    ours = DptHead(dim, 0.0).eval()
    state = {}
    for name in ours.state_dict():
        stem, kind = name.rsplit(".", 1)
        state[name] = weights[f"{rules[stem]}.{kind}"]
    ours.load_state_dict(state)
    return ours


@pytest.mark.parametrize("grid", GRIDS)
@torch.no_grad()
def test_dpt_equals_transformers(grid):
    theirs = transformers_head()
    ours = same_weights(theirs)
    taken = layers(4, dim=32, grid=grid, batch=1)
    sequences = [
        torch.cat([layer.class_token[:, None], layer.patches.flatten(2).transpose(1, 2)], 1) for layer in taken
    ]
    expected = theirs.head(theirs.neck(sequences, *grid))
    found = ours(taken)[:, 0]
    assert found.std() > 0
    assert torch.allclose(found, expected.reshape(found.shape), atol=1e-5)


def official_names(head):
    """Our state under the released names."""
    samples = {
        "readout": "reassemble_blocks.readout_projects.{}.0.",
        "project": "reassemble_blocks.projects.{}.conv.",
        "resize": "reassemble_blocks.resize_layers.{}.",
        "smooth": "convs.{}.conv.",
        "level.first": "fusion_blocks.{}.res_conv_unit1.conv1.conv.",
        "level.second": "fusion_blocks.{}.res_conv_unit1.conv2.conv.",
        "merged.first": "fusion_blocks.{}.res_conv_unit2.conv1.conv.",
        "merged.second": "fusion_blocks.{}.res_conv_unit2.conv2.conv.",
    }
    plain = {
        "project.": "project.conv.",
        "narrow.": "conv_depth.head.0.",
        "thin.": "conv_depth.head.2.",
        "depth.": "conv_depth.head.4.",
    }
    found = {}
    for name, tensor in head.state_dict().items():
        stem, kind = name.rsplit(".", 1)
        if stem.startswith(("reassemble.", "fusion.")):
            part, number, inner = stem.split(".", 2)
            new = samples[inner].format(number)
            if (part, inner) == ("fusion", "project"):
                new = f"fusion_blocks.{number}.project.conv."
        else:
            new = plain.get(f"{stem}.", f"{stem}.")
        found[f"decode_head.{new}{kind}"] = tensor.clone()
    return found


@pytest.mark.parametrize("kind", ["dpt", "lin1"])
def test_official_files_load_completely(tmp_path, kind):
    def made(seed):
        torch.manual_seed(seed)
        return DptHead(32, 0.001) if kind == "dpt" else BinsHead(32, 1, 0.001, 10.0)

    trained, head = made(1), made(2)
    state = official_names(trained)
    if kind == "dpt":  # what the original's base class leaves behind
        state["decode_head.conv_depth.weight"] = torch.zeros(1)
    assert not any(name.split("decode_head.")[1] in head.state_dict() for name in state if "reassemble" in name)
    torch.save({"state_dict": state, "meta": {}}, tmp_path / "head.pth")
    load_official(head, tmp_path / "head.pth")
    for name, tensor in trained.state_dict().items():
        assert torch.equal(head.state_dict()[name], tensor), name
    assert len(RULES) == 16


def test_a_head_of_another_kind_or_size_is_refused(tmp_path):
    torch.save(official_names(BinsHead(32, 1, 0.001, 10.0)), tmp_path / "lin1.pth")
    with pytest.raises(CheckpointError, match="no head of this kind"):
        load_official(DptHead(32, 0.001), tmp_path / "lin1.pth")
    with pytest.raises(CheckpointError, match=r"of another size: conv_depth\.weight"):
        load_official(BinsHead(32, 4, 0.001, 10.0), tmp_path / "lin1.pth")
    (tmp_path / "bad.pth").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"bad\.pth cannot be read"):
        load_official(DptHead(32, 0.001), tmp_path / "bad.pth")


def test_sig_loss_of_a_constant_factor_is_its_logarithm():
    truth = torch.rand(2, 8, 8) * 5 + 1
    truth[0, 0] = 0  # unknown
    expected = math.sqrt(0.15) * math.log(1.3)
    # epsilon in the logarithm: a thousandth of a metre beside one to six.
    for mean_only in (False, True):
        assert sig_loss(1.3 * truth, truth, 10, mean_only=mean_only).item() == pytest.approx(expected, rel=2e-3)
    assert sig_loss(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2), 10).item() == 0


def test_only_the_variance_is_left_out_at_first():
    truth = torch.ones(1, 2, 2)
    found = torch.tensor([[[0.5, 2.0], [0.5, 2.0]]])
    g = [math.log(value + 1e-3) - math.log(1.001) for value in (0.5, 2.0)]
    mean = sum(g) / 2
    variance = 2 * sum((value - mean) ** 2 for value in g) / 3
    assert sig_loss(found, truth, 10).item() == pytest.approx(math.sqrt(variance + 0.15 * mean**2), rel=1e-4)
    assert sig_loss(found, truth, 10, mean_only=True).item() == pytest.approx(math.sqrt(0.15) * abs(mean), rel=1e-3)


def test_gradient_loss_looks_at_the_image_and_not_at_the_batch():
    truth = torch.rand(1, 16, 16) + 2
    assert gradient_loss(1.5 * truth, truth, 10).item() == pytest.approx(0, abs=1e-3)
    edge = truth.clone()
    edge[:, :, 8:] *= 2
    assert gradient_loss(edge, truth, 10).item() > 0.05  # one image only: the released one gives 0
    unknown = truth.clone()
    unknown[:, :, 8:] = 0
    assert gradient_loss(edge, unknown, 10).item() == pytest.approx(0, abs=1e-6)
