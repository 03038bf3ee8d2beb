"""The prototypes objective against a plain reference, gradients included; its parts against their definitions."""

import dataclasses

import pytest
import reference
import tiny
import torch

from dinov2_zoo.config import HeadConfig, ObjectiveConfig, PrototypesConfig
from dinov2_zoo.data.positions import sampled_positions
from dinov2_zoo.errors import ConfigError
from dinov2_zoo.models.branch import Branch
from dinov2_zoo.models.heads import PrototypeHead
from dinov2_zoo.objectives.distillation import Distillation


def head_parameters(head):
    mlp = [(layer.weight, layer.bias) for layer in head.mlp[::2]]
    return mlp, head.last_layer.weight_g, head.last_layer.weight_v


def reference_inputs(branch, batch, views):
    """Logits of one branch, crop by crop through the unpacked backbone and heads written out in the reference."""
    found = {"class": [], "patches": [], "tokens": []}
    for view in views:
        features = branch.backbone.forward_features(view)
        found["class"].append(reference.head(*head_parameters(branch.dino), features["x_norm_clstoken"]))
        if view.shape[-1] == tiny.GLOBAL:
            found["patches"].append(reference.head(*head_parameters(branch.ibot), features["x_norm_patchtokens"]))
            found["tokens"].append(features["x_norm_clstoken"])
    return found


def reference_terms(module, batch, **options):
    config = module.config.prototypes
    with torch.no_grad():
        teacher = reference_inputs(module.teacher, batch, batch.global_crops)
    student = reference_inputs(module.student, batch, [*batch.global_crops, *batch.local_crops])
    return reference.objective(
        student,
        teacher,
        teacher_temperature=config.teacher_temperature,
        student_temperature=config.student_temperature,
        **options,
    )


def gradients(module, terms):
    module.zero_grad()
    terms["loss"].backward()
    return {n: p.grad.clone() for n, p in module.student.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("local", [0, 3])
@pytest.mark.parametrize("chunk", [7, 4096])
def test_equals_the_plain_reference_with_its_gradient(float64, chunk, local):
    config = ObjectiveConfig(kind="prototypes", prototypes=PrototypesConfig(chunk=chunk))
    module, batch = tiny.prototypes(config), tiny.batch(local=local)
    mine, expected = module(batch), reference_terms(module, batch)
    for name, term in expected.items():
        torch.testing.assert_close(mine[name], term, rtol=1e-12, atol=1e-12)
    got, wanted = gradients(module, mine), gradients(module, expected)
    assert got.keys() == wanted.keys() and len(got) > 50
    for name in wanted:
        torch.testing.assert_close(got[name], wanted[name], rtol=1e-10, atol=1e-13, msg=name)
    assert all(p.grad is None for p in [*module.teacher.parameters(), *module.ema.parameters()])


def test_ema_centring_equals_the_reference_over_steps(float64):
    prototypes = PrototypesConfig(centering="ema", center_momentum=0.7, chunk=5)
    module = tiny.prototypes(ObjectiveConfig(kind="prototypes", prototypes=prototypes))
    centres = [torch.zeros_like(module.objective.dino_center), torch.zeros_like(module.objective.ibot_center)]
    for seed in range(3):
        batch = tiny.batch(seed=seed)
        expected = reference_terms(module, batch, centres=centres)
        torch.testing.assert_close(module(batch)["loss"], expected["loss"], rtol=1e-12, atol=1e-12)
        with torch.no_grad():
            teacher = reference_inputs(module.teacher, batch, batch.global_crops)
        means = [torch.cat(teacher["class"]).mean(0), torch.cat(teacher["patches"]).flatten(0, 1).mean(0)]
        centres = [0.7 * c + 0.3 * m for c, m in zip(centres, means, strict=True)]
    torch.testing.assert_close(module.objective.dino_center, centres[0])
    torch.testing.assert_close(module.objective.ibot_center, centres[1])


def test_measuring_does_not_move_the_centres():
    module = tiny.prototypes(ObjectiveConfig(kind="prototypes", prototypes=PrototypesConfig(centering="ema")))
    module.eval()
    module(tiny.batch())
    assert not module.objective.dino_center.any()


def test_single_precision_stays_close_at_the_smallest_temperature():
    prototypes = PrototypesConfig(teacher_temperature=0.04, chunk=11)
    module = tiny.prototypes(ObjectiveConfig(kind="prototypes", prototypes=prototypes))
    batch = tiny.batch()
    single = module(batch)["loss"]
    module.double()
    double = module(
        dataclasses.replace(batch, global_crops=batch.global_crops.double(), local_crops=batch.local_crops.double())
    )["loss"]
    assert abs(single.item() - double.item()) < 1e-5


def test_teacher_and_average_are_frozen_and_in_evaluation_mode():
    module = tiny.prototypes()
    module.train()
    assert module.student.training and not module.teacher.training and not module.ema.training
    assert not any(p.requires_grad for p in [*module.teacher.parameters(), *module.ema.parameters()])


def test_a_share_of_positions_is_drawn_equally_from_every_crop_and_depends_on_the_image_only():
    chosen = sampled_positions(torch.tensor([4, 9, 2]), views=2, patches=16, share=0.25)
    per_crop = (chosen // 16).bincount()
    assert per_crop.tolist() == [4] * 6 and len(chosen.unique()) == 24
    alone = sampled_positions(torch.tensor([9]), views=2, patches=16, share=0.25) % 16
    assert torch.equal(alone[:4], chosen[4:8] % 16) and not torch.equal(alone[:4], alone[4:])
    assert torch.equal(sampled_positions(torch.tensor([4, 9]), 2, 3, 1.0), torch.arange(12))


@pytest.mark.parametrize("change", ["no heads", "other K", "other patch"])
def test_branches_that_do_not_fit_are_refused(change):
    student, teacher = tiny.branch(16), tiny.branch(24)
    if change == "no heads":
        teacher = Branch(teacher.backbone)
    elif change == "other K":
        student = Branch(student.backbone, dino=PrototypeHead(16, HeadConfig(9, 8, 4)), ibot=student.ibot)
    else:
        student.backbone.patch_size = 14
    words = {"no heads": "--heads FILE", "other K": "9 prototypes, its teacher's 24", "other patch": "14 and 7 pixels"}
    with pytest.raises(ConfigError, match=words[change]):
        Distillation(student, teacher, ObjectiveConfig(kind="prototypes"))
