"""Heads against torch's own weight normalisation; what they return is of unit length and in single precision."""

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from dinov2_zoo.config import HeadConfig
from dinov2_zoo.models.heads import FeatureProjector, PrototypeHead, at_least_fp32


@pytest.fixture
def head():
    torch.manual_seed(0)
    head = PrototypeHead(12, HeadConfig(prototypes=30, hidden=20, bottleneck=6))
    nn.init.uniform_(head.last_layer.weight_g, 0.5, 2)
    return head


def test_logits_are_those_of_a_weight_normed_layer_with_its_gradient(head):
    layer = weight_norm(nn.Linear(6, 30, bias=False))
    with torch.no_grad():
        layer.parametrizations.weight.original0.copy_(head.last_layer.weight_g)
        layer.parametrizations.weight.original1.copy_(head.last_layer.weight_v)
    unit = head(torch.randn(5, 12)).detach()
    mine, theirs = unit @ head.prototypes().T, layer(unit)
    torch.testing.assert_close(mine, theirs)
    for logits in (mine, theirs):
        logits.sin().sum().backward()
    torch.testing.assert_close(head.last_layer.weight_g.grad, layer.parametrizations.weight.original0.grad)
    torch.testing.assert_close(head.last_layer.weight_v.grad, layer.parametrizations.weight.original1.grad)


@pytest.mark.parametrize("shape", [(12,), (5, 12), (2, 3, 5, 12)])
def test_the_bottleneck_is_a_unit_vector_for_tokens_of_any_shape_and_precision(head, shape):
    for dtype in (torch.float32, torch.bfloat16):
        found = head.to(dtype)(torch.randn(shape, dtype=dtype))
        assert found.shape == (*shape[:-1], 6) and found.dtype == torch.float32
        torch.testing.assert_close(found.norm(dim=-1), torch.ones(shape[:-1]))


def test_a_new_head_has_unit_prototypes_under_the_official_names():
    head = PrototypeHead(12, HeadConfig(prototypes=30, hidden=20, bottleneck=6))
    assert head.count == 30
    torch.testing.assert_close(head.prototypes().norm(dim=-1), torch.ones(30))
    mlp = {f"mlp.{layer}.{kind}" for layer in (0, 2, 4) for kind in ("weight", "bias")}
    assert head.state_dict().keys() == mlp | {"last_layer.weight_g", "last_layer.weight_v"}
    assert {name: tuple(p.shape) for name, p in head.last_layer.named_parameters()} == {
        "weight_g": (30, 1),
        "weight_v": (30, 6),
    }


def test_the_projector_maps_each_kind_of_token_into_the_teachers_width():
    projector = FeatureProjector(class_dim=10, patch_dim=4, teacher_dim=7)
    assert projector.class_token(torch.zeros(2, 10)).shape == (2, 7)
    assert projector.patches(torch.zeros(2, 9, 4)).shape == (2, 9, 7)


def test_half_precision_is_left_behind_and_double_is_kept():
    given = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    wanted = [torch.float32] * 3 + [torch.float64]
    assert [at_least_fp32(torch.zeros(1, dtype=dtype)).dtype for dtype in given] == wanted
