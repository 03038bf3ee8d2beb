"""Distillation by features: its statistics, its closed-form start, its terms."""

import pytest
import tiny
import torch
import torch.nn.functional as F

from dinov2_zoo.config import FeaturesConfig, ObjectiveConfig
from dinov2_zoo.initialisation.projector import fit_projector
from dinov2_zoo.initialisation.ridge import Moments
from dinov2_zoo.models.branch import Branch
from dinov2_zoo.models.heads import FeatureProjector
from dinov2_zoo.models.students import build_student
from dinov2_zoo.models.tokens import BranchOutput, Tokens
from dinov2_zoo.objectives.distillation import Distillation
from dinov2_zoo.objectives.features import FeaturesObjective

CPU = torch.device("cpu")


def tokens(views, images, patches, dim, seed):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((views, images, dim), (views, images, patches, dim))
    return Tokens(*(torch.randn(*shape, generator=generator) for shape in shapes))


def test_terms_are_cosine_and_smooth_l1_of_standardised_tokens():
    weights = {"class_weight": 2, "patch_weight": 3, "gram_weight": 5, "class_gram_weight": 7}
    objective = FeaturesObjective(FeaturesConfig(cosine_weight=0.25, **weights), 8)
    for standardiser, shift in ((objective.class_token, 1.0), (objective.patches, 5.0)):
        standardiser.mean.fill_(shift)
        standardiser.deviation.fill_(2.0)
    teacher = [tokens(2, 3, 4, 8, 0), tokens(5, 3, 4, 8, 1)]
    student = [tokens(2, 3, 4, 8, 2), tokens(5, 3, 4, 8, 3)]
    terms = objective([BranchOutput(s, projected=s) for s in student], [BranchOutput(t) for t in teacher])

    def distance(a, b):
        return 0.25 * (1 - F.cosine_similarity(a, b, dim=-1)) + 0.5 * F.smooth_l1_loss(a, b, reduction="none").mean(-1)

    classes = [distance(s.class_token, (t.class_token - 1) / 2) for s, t in zip(student, teacher, strict=True)]
    patches = [distance(s.patches, (t.patches - 5) / 2) for s, t in zip(student, teacher, strict=True)]
    # Every crop counts alike, whatever its group.
    torch.testing.assert_close(terms["class"], torch.cat(classes).mean())
    torch.testing.assert_close(terms["patch"], torch.cat(patches).mean())
    relations = 5 * terms["gram"] + 7 * terms["class_gram"]
    torch.testing.assert_close(terms["loss"], 2 * terms["class"] + 3 * terms["patch"] + relations)


def test_the_map_is_ridge_regression():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 5, generator=generator, dtype=torch.float64) + 3
    truth = torch.randn(7, 5, generator=generator, dtype=torch.float64)
    y = x @ truth.T * torch.arange(1, 8) + 4
    moments = Moments(5, 7, CPU)
    for part in range(0, 200, 64):
        moments.add(x[part : part + 64], y[part : part + 64])
    exact = moments.solve(ridge=0.0)
    torch.testing.assert_close(exact(x), y, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(exact.deviation, y.std(0, correction=0))
    nothing = moments.solve(ridge=1e12)
    torch.testing.assert_close(nothing(x), y.mean(0).expand_as(y), rtol=1e-6, atol=1e-6)


def test_weighted_pairs_count_as_repeated_ones():
    x, y = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)
    weighted, repeated = Moments(3, 2, CPU), Moments(3, 2, CPU)
    weighted.add(x, y, torch.tensor([1.0, 3, 1, 1, 2, 1], dtype=torch.float64))
    times = torch.tensor([1, 3, 1, 1, 2, 1])
    repeated.add(x.repeat_interleave(times, 0), y.repeat_interleave(times, 0))
    torch.testing.assert_close(weighted.solve(0.1).weight, repeated.solve(0.1).weight)


def test_fitting_starts_the_projector_at_its_best_for_student_and_average():
    module = tiny.features()
    batches = [tiny.batch(images=16, local=0, seed=s) for s in range(4)]
    before = module(batches[0])["patch"].item()
    fit_projector(module, batches, device=CPU)
    assert module(batches[0])["patch"].item() < 0.8 * before
    pairs = zip(module.student.parameters(), module.ema.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    with torch.no_grad():
        teacher = torch.cat([module.teacher([b.global_crops])[0].tokens.patches.flatten(0, 2) for b in batches])
    torch.testing.assert_close(module.objective.patches.mean, teacher.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(module.objective.patches.deviation, teacher.std(0, correction=0), rtol=1e-4, atol=1e-5)


def test_a_perfect_student_costs_nothing_and_is_mapped_back_to_the_teachers_scale():
    torch.manual_seed(0)
    teacher = tiny.backbone(16)
    student = Branch(teacher, projector=FeatureProjector(16, 16, 16))
    module = Distillation(student, Branch(tiny.backbone(16)), ObjectiveConfig())
    module.teacher.backbone.load_state_dict(teacher.state_dict())
    batch = tiny.batch()
    module.objective.patches.mean.fill_(0.3)
    module.objective.patches.deviation.fill_(1.7)
    with torch.no_grad():
        for layer, deviation, mean in (
            (student.projector.class_token, 1.0, 0.0),
            (student.projector.patches, 1.7, 0.3),
        ):
            layer.weight.copy_(torch.eye(16) / deviation)
            layer.bias.fill_(-mean / deviation)
        assert module(batch)["loss"].item() < 1e-6
        back = module.objective.in_teacher_space(student([batch.global_crops])[0].projected)
        wanted = module.teacher([batch.global_crops])[0].tokens
    torch.testing.assert_close(back.patches, wanted.patches, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(back.class_token, wanted.class_token, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["timm:convnext_atto", "timm:vit_tiny_patch16_224"])
def test_any_timm_network_can_learn_from_a_grid_of_another_size(name):
    torch.manual_seed(0)
    student = build_student(name, 224)
    teacher = tiny.backbone(24)  # 32 x 32 patches at 224 pixels
    projector = FeatureProjector(student.class_dim, student.embed_dim, 24)
    module = Distillation(Branch(student, projector=projector), Branch(teacher), ObjectiveConfig())
    batch = tiny.batch(images=2, local=0)
    images = F.interpolate(batch.global_crops.flatten(0, 1), size=(224, 224)).unflatten(0, (2, 2))
    batch = type(batch)(images, torch.empty(0, 2, 3, 14, 14), batch.sample_ids, batch.seeds)
    fit_projector(module, [batch], device=CPU)
    module(batch)["loss"].backward()
    assert all(p.grad is not None for p in projector.parameters())
    assert sum(p.grad.abs().sum() for p in student.parameters() if p.grad is not None) > 0
