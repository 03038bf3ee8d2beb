"""Weights are trained in fp32 however they were stored; products follow the hardware."""

import dataclasses

import pytest
import tiny
import tiny_run
import torch

from dinov2_zoo.config import RuntimeConfig
from dinov2_zoo.hub.model import Dinov2Model
from dinov2_zoo.models.branch import Branch
from dinov2_zoo.models.heads import FeatureProjector
from dinov2_zoo.objectives.distillation import Distillation
from dinov2_zoo.training.precision import choose_precision, widen
from dinov2_zoo.training.runtime import Runtime
from dinov2_zoo.training.state import TrainState
from dinov2_zoo.weights.write import save_weights

CPU, STEPS = torch.device("cpu"), 12


def test_auto_precision_follows_the_launcher_and_a_setting_wins(monkeypatch):
    monkeypatch.setattr("dinov2_zoo.training.precision._has_bf16", lambda device: False)
    assert choose_precision("auto", CPU) == "fp32"
    assert choose_precision("bf16", CPU) == "bf16"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert choose_precision("auto", CPU) == "bf16"


def test_half_precision_is_widened_in_place_and_the_rest_stays():
    module = torch.nn.Sequential(torch.nn.Linear(2, 2).half(), torch.nn.BatchNorm1d(2).bfloat16())
    module.append(torch.nn.Linear(2, 2).double())
    module.tied = module[0]
    before = {name: (tensor, tensor.double()) for name, tensor in module.state_dict(keep_vars=True).items()}
    widen(module)
    after = module.state_dict(keep_vars=True)
    for name, (tensor, values) in before.items():
        assert after[name] is tensor and torch.equal(tensor.double(), values)
    kinds = {name: tensor.dtype for name, tensor in after.items()}
    assert kinds["0.weight"] == kinds["1.running_mean"] == kinds["1.weight"] == torch.float32
    assert kinds["2.weight"] == torch.float64 and kinds["1.num_batches_tracked"] == torch.int64


def distillation(folder):
    """A stored student and a stored teacher, as the recipe opens them."""
    student, teacher = (Dinov2Model.from_pretrained(folder / name) for name in ("student", "teacher"))
    torch.manual_seed(0)
    branch = Branch(student, projector=FeatureProjector(16, 16, 24))
    return Distillation(branch, Branch(teacher), tiny.features().config)


def trained(module, runtime, lr):
    still = {"warmup_steps": 0, "weight_decay": (0.0, 0.0), "ema_momentum": (0.5, 0.5)}
    optim = tiny_run.config(STEPS, base_lr=lr, final_lr=lr, **still)
    state = TrainState.start(runtime.shard(module), optim, global_batch=1024)
    batches = (dataclasses.replace(tiny.batch(seed=step), step=step) for step in range(STEPS))
    tiny_run.train(runtime, state, batches, tiny_run.silent_log(STEPS))
    return state


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
def test_a_student_stored_in_half_precision_keeps_updates_that_are_too_small_for_it(tmp_path, stored, precision):
    torch.manual_seed(0)
    models = {"student": tiny.backbone(16), "teacher": tiny.backbone(24)}
    for name, model in models.items():
        state = {key: tensor.to(stored) for key, tensor in model.state_dict().items()}
        save_weights(tmp_path / "half" / name, model.config, state)
        save_weights(tmp_path / "full" / name, model.config, {key: tensor.float() for key, tensor in state.items()})
    assert Dinov2Model.from_pretrained(tmp_path / "half/student").cls_token.dtype == stored
    with Runtime(RuntimeConfig(precision=precision, cpu=True, threads=1)) as runtime:
        half, full = (trained(distillation(tmp_path / kind), runtime, 1e-7) for kind in ("half", "full"))
        first = distillation(tmp_path / "full").student.backbone.state_dict()
    # The same run as from the same weights in fp32, for the student, its average and the frozen teacher.
    for name, tensor in full.module.state_dict().items():
        found = half.module.state_dict()[name]
        assert found.dtype == tensor.dtype and torch.equal(found, tensor), name
    # What it learnt is below the resolution of its storage: kept there, it would have stood still.
    weight = half.student.backbone.state_dict()["blocks.0.attn.qkv.weight"]
    before = first["blocks.0.attn.qkv.weight"]
    large = before.abs() > 0.02
    assert (weight != before)[large].float().mean() > 0.95
    assert torch.equal(weight.to(stored)[large], before.to(stored)[large])
    average = half.ema.backbone.state_dict()["blocks.0.attn.qkv.weight"]
    assert (average != before)[large].float().mean() > 0.95


def test_what_was_stored_in_half_precision_takes_images_before_training(runtime):
    module = tiny.features()
    module.student.backbone.bfloat16()
    module.teacher.half()
    with pytest.raises(RuntimeError, match="type"):
        module(tiny.batch())
    loss = runtime.place(module)(tiny.batch())["loss"]
    assert loss.dtype == torch.float32 and loss.isfinite()
