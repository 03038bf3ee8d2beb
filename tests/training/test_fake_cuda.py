"""Every recipe's step on a CUDA device that is not there, in bf16: nothing waits for it, and precisions are as told.

Forward passes only: backward ones do not run without a driver.
"""

import contextlib
import dataclasses
from types import SimpleNamespace

import pytest
import tiny
import torch
from fake_cuda import Waits, fake_cuda, on_cuda
from torch import nn

from dinov2_zoo.config import (
    FeaturesConfig,
    ObjectiveConfig,
    PrototypesConfig,
    SelfDistillationConfig,
    TeachersConfig,
)
from dinov2_zoo.data.positions import sampled_positions
from dinov2_zoo.initialisation.heads import standardise_heads
from dinov2_zoo.initialisation.projector import fit_projector
from dinov2_zoo.models.block import Block
from dinov2_zoo.models.branch import Branch
from dinov2_zoo.models.heads import FeatureProjector
from dinov2_zoo.models.stored import LinearCode, StoredBackbone, TokenCode
from dinov2_zoo.models.teacher_view import TeacherView
from dinov2_zoo.objectives.distillation import Distillation
from dinov2_zoo.objectives.several_teachers import FurtherTeachers, SeveralTeachers
from dinov2_zoo.training import gradients
from dinov2_zoo.training.ema import update_ema
from dinov2_zoo.training.lane import ask_teacher

CUDA = torch.device("cuda", 0)
EVERYTHING = FeaturesConfig(
    gram_weight=1.0, class_gram_weight=1.0, neighbour_weight=0.5, queue_weight=0.5, queue_size=40, neighbour_patches=3
)
EMA = PrototypesConfig(centering="ema")


def prototypes(losses=None, **more):
    return tiny.prototypes(ObjectiveConfig(kind="prototypes", prototypes=losses or PrototypesConfig(), **more))


def sampled_batch():
    batch = tiny.batch()
    return dataclasses.replace(batch, positions=sampled_positions(batch.seeds, 2, 16, 0.5))


def features(**settings):
    return tiny.features(ObjectiveConfig(features=FeaturesConfig(**settings)))


def in_the_finishing_stage():
    module = tiny.features()
    # Sides of student and teacher, given, for numbers drawn on a fake CPU cannot be read either.
    module.stage = SimpleNamespace(drawn=lambda step: (42, 28))
    return module


def pretraining(losses=None, tied=False, drop_path=0.3):
    return tiny.self_distillation(losses, SelfDistillationConfig(drop_path=drop_path), tied=tied)


def fitting_heads():
    module = pretraining(drop_path=0.0)
    for branch in (module.student, module.ema):
        branch.backbone.requires_grad_(False)
    return module


def pretraining_batch():
    """With the sequences that stay in stochastic depth."""
    return tiny.rows(tiny.masked_batch(), 0, 1, pretraining().drop_path(0))


def recomputing():
    module = pretraining()
    module.student.backbone.checkpoint_blocks = True
    return module


def larger(batch):
    """Crops of twice the side, as the high-resolution stage has them: stored positions are resampled."""
    crops = torch.cat([batch.global_crops] * 2, -1)
    whole = dataclasses.replace(batch, global_crops=torch.cat([crops] * 2, -2))
    return whole if batch.masks is None else whole.hiding(batch.masks.repeat(1, 1, 4))


def several_teachers():
    further = FurtherTeachers([Branch(TeacherView(tiny.backbone(32), multiple=14, mean=(0.5,) * 3, std=(0.4,) * 3))])
    student = Branch(tiny.backbone(16), projector=FeatureProjector(16, 16, 24), further=[FeatureProjector(16, 16, 32)])
    config, settings = ObjectiveConfig(features=EVERYTHING), TeachersConfig(drop=0.5)
    teacher = Branch(tiny.backbone(24))
    return SeveralTeachers(student, teacher, further, config, names=("a", "b"), settings=settings, seed=0)


def stored_targets():
    code = TokenCode(*(LinearCode(torch.zeros(24), torch.ones(24, 6), torch.ones(6, 24)) for _ in range(2)))
    student = Branch(tiny.backbone(16), projector=FeatureProjector(16, 16, 24))
    teacher = Branch(StoredBackbone(code, patch_size=7, parameters=1, norms=""))
    return Distillation(student, teacher, ObjectiveConfig())


def coded_batch():
    batch = tiny.batch()
    codes = [torch.zeros(*crops.shape[:2], 6 + 6 * (crops.shape[-1] // 7) ** 2) for crops in batch.groups()]
    return dataclasses.replace(batch, targets=[code.to(torch.int8) for code in codes])


CASES = {
    "features": (tiny.features, tiny.batch),
    "features, every term": (lambda: features(**vars(EVERYTHING)), tiny.batch),
    "features, PHI-S and MLPs": (lambda: features(standardise="phi-s", projector="mlp"), tiny.batch),
    "features, finishing stage": (in_the_finishing_stage, lambda: larger(tiny.batch())),
    "features, high resolution": (tiny.features, lambda: larger(tiny.batch())),
    "features, several teachers": (several_teachers, tiny.batch),
    "features, stored targets": (stored_targets, coded_batch),
    "prototypes": (prototypes, tiny.batch),
    "prototypes, EMA centres": (lambda: prototypes(EMA), tiny.batch),
    "prototypes, some patches": (lambda: prototypes(patch_share=0.5), sampled_batch),
    "prototypes, high resolution": (prototypes, lambda: larger(tiny.batch())),
    "pretraining": (pretraining, pretraining_batch),
    "pretraining, EMA centres, tied heads": (lambda: pretraining(EMA, tied=True), pretraining_batch),
    "pretraining, recomputed blocks": (recomputing, pretraining_batch),
    "pretraining, high resolution": (pretraining, lambda: larger(pretraining_batch())),
    "fitting heads": (fitting_heads, tiny.masked_batch),
}


@contextlib.contextmanager
def watched(module, seen):
    """Notes the precision of every block's residual stream, and of the products inside of blocks and heads."""

    def note(kind):
        return lambda _, __, output: seen.setdefault(kind, set()).add(output.dtype)

    hooks = [m.register_forward_hook(note("stream")) for m in module.modules() if isinstance(m, Block)]
    hooks += [m.register_forward_hook(note("products")) for m in module.modules() if isinstance(m, nn.Linear)]
    yield
    for hook in hooks:
        hook.remove()


def tensors_of(outputs):
    """All that a branch hands to the losses."""
    for output in outputs:
        heads = [head for head in (output.dino, output.ibot) if head is not None]
        tokens = [t for t in (output.tokens, output.projected, *output.further) if t is not None]
        yield from (part for t in tokens for part in (t.class_token, t.patches))
        yield from (part for head in heads for part in (head.bottleneck, head.prototypes))


@pytest.mark.parametrize("case", CASES)
def test_a_forward_pass_waits_for_nothing_and_keeps_what_must_be_fp32(case, monkeypatch):
    make, batch = CASES[case]
    made, seen = batch(), {}
    with fake_cuda(monkeypatch):
        module = on_cuda(make)
        heard = []
        for branch in module.children():
            if isinstance(branch, Branch):
                branch.register_forward_hook(lambda _, __, outputs: heard.extend(outputs))
        with Waits() as waits:
            placed = made.to("cuda", non_blocking=True)
            with watched(module, seen), torch.autocast("cuda", torch.bfloat16):
                terms = module(placed, *ask_teacher([module], placed))
    assert not waits.found
    assert all(term.is_cuda and term.dtype == torch.float32 and term.ndim == 0 for term in terms.values()), terms
    assert seen == {"stream": {torch.float32}, "products": {torch.bfloat16}}
    assert heard and {tensor.dtype for tensor in tensors_of(heard)} == {torch.float32}
    assert any("health" in name for name in terms) == (made.masks is not None)


@pytest.mark.parametrize("standardise, projector", [("channels", "linear"), ("phi-s", "mlp")])
def test_the_fit_before_the_first_step_finds_all_on_one_device(standardise, projector, monkeypatch):
    made = tiny.batch()
    with fake_cuda(monkeypatch):
        module = on_cuda(lambda: features(standardise=standardise, projector=projector))
        fit_projector(module, [made], device=CUDA, autocast=lambda: torch.autocast("cuda", torch.bfloat16))
        state = module.state_dict()
    assert {tensor.device.type for tensor in state.values()} == {"cuda"}
    assert {tensor.dtype for tensor in state.values() if tensor.is_floating_point()} == {torch.float32}


def test_heads_are_standardised_on_the_device(monkeypatch):
    made = tiny.masked_batch()
    with fake_cuda(monkeypatch):
        module = on_cuda(fitting_heads)
        standardise_heads(module, [made], device=CUDA, autocast=lambda: torch.autocast("cuda", torch.bfloat16))


def test_an_update_waits_for_nothing(monkeypatch):
    """All of it but the optimizer's own step, which is torch's."""
    with fake_cuda(monkeypatch):
        module = on_cuda(tiny.features)
        for parameter in module.student.parameters():
            parameter.grad = torch.zeros_like(parameter)
        with Waits() as waits:
            parts = gradients.gradients_by_part(module.student)
            gradients.clip(parts, gradients.squared_norms(parts).sqrt(), 3.0)
            update_ema(module.ema, module.student, 0.99)
    assert not waits.found


def reads(x):
    return x.sum().item()


def copies(x):
    return x.cpu()


def makes_a_tensor_of_a_number(x):
    return x * x.new_tensor(2.0)


def sends(x):
    return x + torch.ones(3).to(x.device)


def indexes_from_the_host(x):
    return x[torch.arange(2)]


@pytest.mark.parametrize("waiting", [reads, copies, makes_a_tensor_of_a_number, sends, indexes_from_the_host])
def test_what_waits_is_found(waiting, monkeypatch):
    with fake_cuda(monkeypatch), Waits() as waits:
        x = torch.ones(3, device="cuda")
        try:
            waiting(x)
        except Exception as error:
            assert "DataDependentOutput" in type(error).__name__
        else:
            assert waits.found
