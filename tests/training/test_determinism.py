"""`runtime.deterministic`: torch is told, and nothing in a training step is left that it could not repeat on CUDA.

What repeats is torch's promise (its page on `use_deterministic_algorithms`); no GPU is asked here.
"""

import os

import pytest
import tiny
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dinov2_zoo.config import FeaturesConfig, ObjectiveConfig, PrototypesConfig, RuntimeConfig
from dinov2_zoo.models.position import resample_positions
from dinov2_zoo.training.runtime import Runtime

# Words in names of operators that add in no fixed order on CUDA, and that torch refuses in its deterministic mode.
UNORDERED = ("upsample", "grid_sampler", "reflection_pad", "adaptive", "max_unpool", "nll_loss2d", "ctc_loss")


@pytest.fixture
def told():
    """A run that is to repeat itself; torch is as it was afterwards."""
    before = dict(os.environ)
    with Runtime(RuntimeConfig(cpu=True, deterministic=True, precision="fp32")) as runtime:
        yield runtime
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.backends.cudnn.allow_tf32 = True
    os.environ.clear()
    os.environ.update(before)


class Names(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.seen.add(str(func))
        return out


def test_torch_is_told_before_anything_else(told):
    assert torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert not torch.backends.cudnn.benchmark


def test_it_is_off_unless_asked_for():
    with Runtime(RuntimeConfig(cpu=True)):
        assert not torch.are_deterministic_algorithms_enabled()


def test_fp32_is_fp32_in_convolutions_too(told):
    assert not torch.backends.cudnn.allow_tf32
    with Runtime(RuntimeConfig(cpu=True, precision="bf16")):
        assert torch.backends.cudnn.allow_tf32  # what is left in fp32 there may be fast


EVERYTHING = FeaturesConfig(gram_weight=1.0, class_gram_weight=1.0, neighbour_weight=0.5, neighbour_patches=3)
CASES = {
    "features": (lambda: tiny.features(ObjectiveConfig(features=EVERYTHING)), tiny.batch),
    "prototypes": (tiny.prototypes, tiny.batch),
    "pretraining": (lambda: tiny.self_distillation(PrototypesConfig(centering="ema")), tiny.masked_batch),
}


@pytest.mark.parametrize("kind", CASES)
def test_a_step_holds_no_operator_that_cuda_could_not_repeat(kind, told):
    make, batch = CASES[kind]
    module, made = make(), batch()
    with Names() as names:
        module(made)["loss"].backward()
    # Forward passes of resampling repeat; gradients do not.
    unordered = {name for name in names.seen if any(word in name for word in UNORDERED) and "backward" in name}
    assert not unordered
    assert any("bicubic" in name for name in names.seen)  # positions were resampled, for local crops


@pytest.mark.parametrize("offset, antialias", [(0.1, False), (0.0, True)])
def test_positions_resampled_by_a_product_are_the_same(offset, antialias, told):
    stored = torch.randn(1, 25, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)

    def resampled():
        out = resample_positions(stored, 3, 7, offset=offset, antialias=antialias)
        (gradient,) = torch.autograd.grad((out * torch.arange(out.numel()).view_as(out)).sum(), stored)
        return out, gradient

    by_product = resampled()
    torch.use_deterministic_algorithms(False)
    for mine, theirs in zip(by_product, resampled(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
