"""Accumulated micro-batches give what one large batch gives: terms, gradients and statistics, for every objective."""

import copy
import dataclasses

import pytest
import tiny
import tiny_run
import torch
from torch.utils._pytree import tree_leaves

from dinov2_zoo.config import FeaturesConfig, ObjectiveConfig, PrototypesConfig, SelfDistillationConfig, TeachersConfig
from dinov2_zoo.data.finishing import FinishingStage
from dinov2_zoo.data.positions import sampled_positions
from dinov2_zoo.models.branch import Branch
from dinov2_zoo.models.heads import FeatureProjector
from dinov2_zoo.models.students import TimmStudent
from dinov2_zoo.models.teacher_view import TeacherView
from dinov2_zoo.objectives.distillation import Distillation
from dinov2_zoo.objectives.several_teachers import FurtherTeachers, SeveralTeachers
from dinov2_zoo.training.accumulation import CachedStep, couples_images
from dinov2_zoo.training.distributed import SingleProcess
from dinov2_zoo.training.lane import Lane, ask_teacher
from dinov2_zoo.training.state import TrainState

IMAGES, STEPS = 6, 2


def pretrain(centering, *, tied=False, drop_path=0.0, **more):
    config = SelfDistillationConfig(drop_path=drop_path, temperature_warmup_steps=2)
    return tiny.self_distillation(PrototypesConfig(centering=centering, chunk=7, **more), config, tied=tied)


def prototypes(centering, share=1.0):
    losses = PrototypesConfig(centering=centering, chunk=7)
    return tiny.prototypes(ObjectiveConfig(kind="prototypes", prototypes=losses, patch_share=share))


def features(**weights):
    alone = {"gram_weight": 0.0, "class_gram_weight": 0.0, "queue_size": 20, "neighbour_patches": 3}
    return tiny.features(ObjectiveConfig(features=FeaturesConfig(**(alone | weights))))


def finishing():
    module = features(class_gram_weight=1.0, neighbour_weight=1.0)
    module.stage = FinishingStage(1, (14, 28), 0)
    return module


def several():
    torch.manual_seed(0)
    further = FurtherTeachers([Branch(TeacherView(tiny.backbone(12), multiple=7))])
    student = Branch(tiny.backbone(16), projector=FeatureProjector(16, 16, 24), further=[FeatureProjector(16, 16, 12)])
    config = ObjectiveConfig(features=FeaturesConfig(class_gram_weight=1.0, queue_weight=1.0, queue_size=20))
    settings = TeachersConfig(weights=(2.0, 1.0), drop=0.4)
    return SeveralTeachers(student, Branch(tiny.backbone(24)), further, config, names="ab", settings=settings, seed=0)


CASES = {
    "pretrain, sinkhorn": lambda: pretrain("sinkhorn"),
    "pretrain, ema": lambda: pretrain("ema"),
    "pretrain, tied, without koleo": lambda: pretrain("sinkhorn", tied=True, koleo_weight=0.0),
    "pretrain, drop path": lambda: pretrain("ema", drop_path=0.4),
    "prototypes, sinkhorn": lambda: prototypes("sinkhorn"),
    "prototypes, ema, sampled": lambda: prototypes("ema", 0.25),
    "features": features,
    "features, gram": lambda: features(gram_weight=1.0),
    "features, class gram": lambda: features(class_gram_weight=1.0),
    "features, patch neighbours": lambda: features(neighbour_weight=1.0),
    "features, queue": lambda: features(queue_weight=1.0),
    "features, other sizes": finishing,
    "several teachers": several,
}


def pieces(module, step, count):
    whole = dataclasses.replace(tiny.masked_batch(images=IMAGES, seed=step), step=step)
    drop_path = module.drop_path(5) if hasattr(module, "drop_path") else None
    if not isinstance(module, Distillation):
        return [tiny.rows(whole, i, count, drop_path) for i in range(count)]
    parts = [tiny.rows(dataclasses.replace(whole, masks=None), i, count) for i in range(count)]
    share, patches = module.config.patch_share, whole.masks.shape[2]
    return [dataclasses.replace(part, positions=sampled_positions(part.seeds, 2, patches, share)) for part in parts]


def step_of(module, step, accumulate):
    """Loss terms (means over micro-batches) and gradients of one step."""
    optim = tiny_run.config(STEPS, accumulate=accumulate)
    lane = Lane(TrainState.start(module, optim, global_batch=IMAGES), tiny_run.silent_log(STEPS))
    lane.begin()
    for batch in pieces(module, step, accumulate):
        lane.backward(SingleProcess(), batch, ask_teacher([module], batch))
    found = {name: p.grad for name, p in module.student.named_parameters() if p.grad is not None}
    terms = {name: sum(micro[name] for micro in lane._terms) / len(lane._terms) for name in lane._terms[0]}
    module.zero_grad()
    return terms, found


@pytest.mark.parametrize("case", CASES)
def test_micro_batches_give_what_one_large_batch_gives(float64, case):
    module = CASES[case]()
    accumulated = [copy.deepcopy(module), copy.deepcopy(module)]
    for step in range(STEPS):  # statistics move from one to the next
        terms, gradients = step_of(module, step, 1)
        for parts, count in zip(accumulated, (2, 6), strict=True):
            got, found = step_of(parts, step, count)
            assert found.keys() == gradients.keys() and got.keys() == terms.keys()
            torch.testing.assert_close(got, terms, rtol=1e-9, atol=1e-11)
            torch.testing.assert_close(found, gradients, rtol=1e-7, atol=1e-11)
            for (name, buffer), whole in zip(parts.named_buffers(), module.buffers(), strict=True):
                torch.testing.assert_close(buffer, whole, rtol=1e-9, atol=1e-11, msg=name)
    assert any(gradient.abs().max() > 1e-4 for gradient in gradients.values())


def test_losses_of_single_images_need_no_second_pass():
    separate = {name for name, make in CASES.items() if not couples_images(make())}
    assert separate == {"features", "features, gram"}


def counted(module):
    """Images per pass of the student, whether with a graph, as they come."""
    passes = []
    module.student.register_forward_hook(
        lambda _, inputs, __: passes.append((inputs[0][0].shape[1], torch.is_grad_enabled()))
    )
    return passes


def test_the_second_pass_has_a_graph_and_one_micro_batch_at_a_time():
    module = pretrain("sinkhorn")
    passes = counted(module)
    step_of(module, 0, 3)
    assert passes == [(2, False)] * 3 + [(2, True)] * 3
    passes.clear()
    step_of(module, 0, 1)
    assert passes == [(6, True)]
    module = features()
    passes = counted(module)
    step_of(module, 0, 3)
    assert passes == [(2, True)] * 3


def test_prototypes_are_kept_once():
    module = pretrain("sinkhorn")
    cached = CachedStep(module, torch.no_grad)
    for batch in pieces(module, 0, 3):
        cached.add(batch, module.teach(batch))
    for kept in (cached._seen, cached._taught):
        counts = [len(output.dino.prototypes) for (output, *_) in kept]
        assert counts == [0, 0, 24]
        # Nor are whole rows of tokens, of which class tokens are views.
        for leaf in tree_leaves(kept):
            if isinstance(leaf, torch.Tensor):
                assert leaf.untyped_storage().nbytes() == leaf.numel() * leaf.element_size()


def test_what_a_network_draws_itself_is_drawn_alike_in_both_passes(float64):
    module = features(class_gram_weight=1.0)
    module.student.backbone.norm = torch.nn.Sequential(module.student.backbone.norm, torch.nn.Dropout(0.5))
    batches = pieces(module, 0, 2)
    before = torch.get_rng_state()
    cached = CachedStep(module, torch.enable_grad)
    for batch in batches:
        cached.add(batch, module.teach(batch))
    cached.backward(lambda _: None)
    assert torch.equal(torch.get_rng_state(), before)
    found = [p.grad.clone() for p in module.student.parameters() if p.grad is not None]
    module.zero_grad()
    seen = []
    for batch in batches:
        torch.manual_seed(int(batch.seeds[0]))
        seen.append(module.look(batch))
    module.compare(batches, seen, [module.teach(batch) for batch in batches])["loss"].backward()
    expected = [p.grad for p in module.student.parameters() if p.grad is not None]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_running_statistics_move_once():
    torch.manual_seed(0)
    student = TimmStudent("resnet10t", 32)
    projector = FeatureProjector(student.class_dim, student.embed_dim, 24)
    config = ObjectiveConfig(features=FeaturesConfig(class_gram_weight=1.0))
    module = Distillation(Branch(student, projector=projector), Branch(tiny.backbone(24)), config)
    alone, whole = copy.deepcopy(module), tiny.batch(images=4)
    whole = dataclasses.replace(
        whole, global_crops=torch.randn(2, 4, 3, 28, 28), local_crops=torch.empty(0, 4, 3, 14, 14)
    )
    batches = [tiny.rows(whole, i, 2) for i in range(2)]
    cached = CachedStep(module, torch.enable_grad)
    for batch in batches:
        cached.add(batch, module.teach(batch))
        assert all(torch.equal(a, b) for a, b in zip(module.buffers(), alone.buffers(), strict=True))
    cached.backward(lambda _: None)
    for batch in batches:
        alone.look(batch)
    torch.testing.assert_close(list(module.buffers()), list(alone.buffers()))
    assert module.student.backbone.net.bn1.num_batches_tracked == 2


def test_a_frozen_backbone_gets_no_gradient_and_its_heads_the_right_one(float64):
    module = pretrain("ema")
    module.student.backbone.requires_grad_(False)
    parts = copy.deepcopy(module)
    terms, gradients = step_of(module, 0, 1)
    got, found = step_of(parts, 0, 3)
    assert found.keys() == gradients.keys() and not any(name.startswith("backbone") for name in found)
    torch.testing.assert_close((got, found), (terms, gradients), rtol=1e-8, atol=1e-11)


def test_half_precision_reaches_every_parameter_that_one_large_batch_reaches():
    module, found = pretrain("sinkhorn"), []
    for count in (1, 3):
        cached = CachedStep(module, lambda: torch.autocast("cpu", torch.bfloat16))
        for batch in pieces(module, 0, count):
            with torch.autocast("cpu", torch.bfloat16):
                taught = module.teach(batch)
            cached.add(batch, taught)
        cached.backward(lambda _: None)
        found.append({n: p.grad.double() for n, p in module.student.named_parameters() if p.grad is not None})
        module.zero_grad()
    whole, parts = found
    assert whole.keys() == parts.keys()
    for name in whole:
        assert torch.cosine_similarity(parts[name].flatten(), whole[name].flatten(), 0) > 0.99, name
