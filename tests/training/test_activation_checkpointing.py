"""Activation checkpointing, wherever a student learns: the same gradients, less to remember."""

import dataclasses

import pytest
import tiny
import torch

from dinov2_zoo.config import ObjectiveConfig, RuntimeConfig
from dinov2_zoo.errors import ConfigError
from dinov2_zoo.models.branch import Branch
from dinov2_zoo.models.heads import FeatureProjector
from dinov2_zoo.models.students import TimmStudent
from dinov2_zoo.objectives.distillation import Distillation
from dinov2_zoo.training.activation_checkpointing import checkpoint_activations
from dinov2_zoo.training.runtime import Runtime

TIMM, SIDE = "test_vit", 112


def timm_features():
    torch.manual_seed(0)
    student = TimmStudent(TIMM, SIDE)
    branch = Branch(student, projector=FeatureProjector(student.class_dim, student.embed_dim, 24))
    return Distillation(branch, Branch(tiny.backbone(24)), ObjectiveConfig())


def large_batch():
    small = tiny.batch(images=2, local=0)
    crops = torch.nn.functional.interpolate(small.global_crops.flatten(0, 1), SIDE).unflatten(0, (2, 2))
    return dataclasses.replace(small, global_crops=crops)


CASES = {
    "features": (tiny.features, tiny.batch),
    "prototypes": (tiny.prototypes, tiny.batch),
    "timm": (timm_features, large_batch),
    "pretraining": (tiny.self_distillation, tiny.masked_batch),
}


def one_step(kind, on):
    """Gradients of the student, and bytes that its forward pass leaves for the backward pass."""
    make, batch = CASES[kind]
    with Runtime(RuntimeConfig(precision="fp32", cpu=True, threads=1, activation_checkpointing=on)) as runtime:
        module = runtime.shard(make())
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = module(batch())["loss"]
    loss.backward()
    weights = {p.untyped_storage()._cdata for p in module.parameters()}
    gradients = {name: p.grad for name, p in module.student.named_parameters() if p.grad is not None}
    return gradients, sum(size for key, size in kept.items() if key not in weights)


@pytest.mark.parametrize("kind", CASES)
def test_gradients_are_equal_and_less_is_kept(kind):
    plain, kept = one_step(kind, on=False)
    recomputed, kept_less = one_step(kind, on=True)
    assert plain.keys() == recomputed.keys() and any("blocks" in name for name in plain)
    assert all(torch.equal(plain[name], recomputed[name]) for name in plain)
    assert kept_less < 0.7 * kept


def test_a_network_without_it_is_an_error_that_says_what_to_set():
    with pytest.raises(ConfigError, match=r"Linear has no activation checkpointing: set --runtime\.activation_check"):
        checkpoint_activations(torch.nn.Linear(2, 2))
