import pytest
import torch

from dinov2_zoo.config import RuntimeConfig
from dinov2_zoo.training.runtime import Runtime


@pytest.fixture
def runtime():
    with Runtime(RuntimeConfig(precision="fp32", cpu=True, threads=1)) as runtime:
        yield runtime


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
