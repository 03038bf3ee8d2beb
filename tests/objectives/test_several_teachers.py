"""Several teachers: their losses are those of runs of one each, and which are asked follows from the step."""

import dataclasses

import pytest
import tiny
import torch

from dinov2_zoo.config import FeaturesConfig, ObjectiveConfig, TeachersConfig
from dinov2_zoo.data.preprocess import IMAGENET_MEAN, IMAGENET_STD
from dinov2_zoo.initialisation.projector import fit_projector
from dinov2_zoo.models.branch import Branch
from dinov2_zoo.models.heads import FeatureProjector
from dinov2_zoo.models.students import build_student
from dinov2_zoo.models.teacher_view import TeacherView
from dinov2_zoo.objectives.distillation import Distillation
from dinov2_zoo.objectives.several_teachers import FurtherTeachers, SeveralTeachers

EVERYTHING = FeaturesConfig(
    gram_weight=1.0, class_gram_weight=1.0, neighbour_weight=0.5, queue_weight=0.5, queue_size=20, neighbour_patches=3
)
BATCHES = [tiny.batch(images=8, local=1, seed=seed) for seed in range(3)]


def several(features=EVERYTHING, **settings):
    """A ViT and, with other widths of class token and patches and another grid, a convolutional network."""
    torch.manual_seed(0)
    convolutions = build_student("timm:mobilenetv3_small_050", tiny.GLOBAL)
    assert convolutions.class_dim != convolutions.embed_dim
    further = FurtherTeachers([Branch(TeacherView(convolutions, mean=(0.5,) * 3, std=(0.4,) * 3))])
    projectors = [FeatureProjector(16, 16, convolutions.embed_dim, teacher_class_dim=convolutions.class_dim)]
    student = Branch(tiny.backbone(16), projector=FeatureProjector(16, 16, 24), further=projectors)
    config, settings = ObjectiveConfig(features=features), TeachersConfig(**settings)
    module = SeveralTeachers(
        student, Branch(tiny.backbone(24)), further, config, names=("vit", "cnn"), settings=settings, seed=3
    )
    for lesson in module.lessons():
        fit_projector(module, BATCHES, device=torch.device("cpu"), lesson=lesson)
    return module


def alone(module, number):
    """A run of one of its teachers alone, with the same projectors and standardisation."""
    lesson = module.lessons()[number]
    teacher = module.further.branches[number - 1] if number else module.teacher
    one = Distillation(Branch(module.student.backbone, projector=lesson.projectors[0]), teacher, module.config)
    one.objective = lesson.objective
    return one


@pytest.mark.parametrize("weights", [(), (3.0, 1.0)])
def test_the_loss_is_the_weighted_mean_of_those_of_each_teacher_alone(weights):
    module = several(weights=weights)
    module.objective.queue.add(torch.randn(2, 10, 24))
    module.objectives[0].queue.add(torch.randn(2, 10, module.further.backbones[0].class_dim))
    module.eval()  # or the queues would move
    terms = module(BATCHES[0])
    gradient = torch.autograd.grad(terms["loss"], module.student.backbone.parameters(), allow_unused=True)
    each = [alone(module, number).eval()(BATCHES[0]) for number in range(2)]
    shares = (0.75, 0.25) if weights else (0.5, 0.5)
    wanted = sum(share * one["loss"] for share, one in zip(shares, each, strict=True))
    torch.testing.assert_close(terms["loss"], wanted)
    theirs = torch.autograd.grad(wanted, module.student.backbone.parameters(), allow_unused=True)
    for mine, other in zip(gradient, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-6)
    for name, one in zip(("vit", "cnn"), each, strict=True):
        for term, value in one.items():
            torch.testing.assert_close(terms[f"{term}/{name}"], value)
    assert len(terms) == 1 + 2 * 7 and each[0]["loss"] != each[1]["loss"]


def test_each_projector_starts_as_the_map_into_its_own_teachers_standardised_space():
    module = several(FeaturesConfig(standardise="phi-s"))
    said = module.teach(BATCHES[0])
    outputs = module.student([BATCHES[0].global_crops])[0]
    for number, lesson in enumerate(module.lessons()):
        tokens, projected = said[number][0].tokens, [outputs.projected, *outputs.further][number]
        assert 0.7 < lesson.objective.patches.standardise(tokens.patches).square().mean() < 1.3  # at one scale
        target = lesson.objective.class_token.standardise(tokens.class_token)
        assert (projected.class_token - target).square().mean() < 0.9 * target.square().mean()
        for mine, averaged in zip(*(projector.parameters() for projector in lesson.projectors), strict=True):
            assert torch.equal(mine, averaged)


def test_teachers_are_dropped_by_the_step_alone_and_one_always_stays():
    distances = FeaturesConfig(gram_weight=0, class_gram_weight=0)
    module = several(distances, drop=0.5)
    drawn = [tuple(module.asked(step)) for step in range(400)]
    again = several(distances, drop=0.5)
    assert drawn == [tuple(again.asked(step)) for step in range(400)]
    assert drawn[0] == (0, 1) and set(drawn) == {(0,), (1,), (0, 1)}
    # Both stay with 1/4; of the steps in which both would go, half keep each.
    assert drawn.count((0, 1)) == pytest.approx(100, abs=30)
    assert drawn.count((0,)) == pytest.approx(150, abs=35)
    for only, name in ((0, "vit"), (1, "cnn")):
        terms = module(dataclasses.replace(BATCHES[0], step=drawn.index((only,))))
        assert terms.keys() == {"loss", f"loss/{name}", f"class/{name}", f"patch/{name}"}
        torch.testing.assert_close(terms["loss"], terms[f"loss/{name}"])
        module.zero_grad()
        terms["loss"].backward()
        unused = module.lessons()[1 - only].projectors[0]
        assert all(p.grad is None for p in unused.parameters())  # the optimizer leaves it alone


def test_further_teachers_stay_frozen_and_in_evaluation_mode():
    module = several(FeaturesConfig())
    before = {name: tensor.clone() for name, tensor in module.further.state_dict().items()}
    module.train()
    module(BATCHES[0])["loss"].backward()
    assert not any(part.training for part in module.further.modules()) and module.student.training
    assert all(p.grad is None and not p.requires_grad for p in module.further.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.further.state_dict().items())


def test_a_view_has_its_own_normalisation_and_side():
    pixels = torch.rand(2, 3, 28, 28)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    images = (pixels - mean) / std
    view = TeacherView(tiny.backbone(16), multiple=7, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    wanted = (pixels - torch.tensor((0.4, 0.5, 0.6)).view(3, 1, 1)) / torch.tensor((0.2, 0.3, 0.4)).view(3, 1, 1)
    torch.testing.assert_close(view.see(images), wanted, rtol=1e-4, atol=1e-5)
    assert [view.takes(side) for side in (28, 30, 33, 2)] == [28, 28, 35, 7]
    fixed = TeacherView(tiny.backbone(16), side=28)
    assert fixed.see(torch.randn(1, 3, 56, 56)).shape == (1, 3, 28, 28)
    # ImageNet's statistics change nothing.
    torch.testing.assert_close(TeacherView(tiny.backbone(16), multiple=7).see(images), images)
