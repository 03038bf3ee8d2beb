"""A CUDA device that is not there: shapes, dtypes and devices are real, values are not.

What asks the device for a value raises, as does what mixes devices; the rest of what makes a host wait is noted by
`Waits`. Backward passes do not run on it.
"""

import contextlib
import warnings

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dinov2_zoo.models import attention
from dinov2_zoo.objectives.kernels import choice

COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
ASKING = (torch.ops.prim.device.default, torch.ops.aten.lift_fresh.default)


class Waits(TorchDispatchMode):
    """Notes copies between host and device that the host waits for, and CPU tensors that CUDA kernels are given."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func not in ASKING:
            tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor)]
            # A number that torch made a tensor of goes with the kernel's launch.
            mixed = {t.device.type for t in tensors if t.ndim or func in COPIES} == {"cpu", "cuda"}
            waited_for = not (func in COPIES and kwargs.get("non_blocking") and tensors[-1].is_cuda)
            if mixed and waited_for:
                self.found.append(f"{func} of {[tuple(t.shape) for t in tensors]}")
        return out


@contextlib.contextmanager
def fake_cuda(monkeypatch):
    """Within it tensors are fake, and "cuda" is a device with bf16.

    Attention goes group by group and losses chunk by chunk, for there are no kernels to try.
    """
    monkeypatch.setattr(attention, "choose", lambda *_: None)
    monkeypatch.setattr(choice, "tile_for", lambda *_: None)
    # Without a device torch switches autocast off, with a warning.
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
    with warnings.catch_warnings(), FakeTensorMode(allow_non_fake_inputs=True):
        warnings.filterwarnings("ignore", message="Accessing the data pointer of FakeTensor")
        yield


def on_cuda(make):
    """A module made on the device."""
    with torch.device("cuda"):
        return make()
