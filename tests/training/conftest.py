import pytest

from dinov2_zoo.config import RuntimeConfig
from dinov2_zoo.training.runtime import Runtime


@pytest.fixture
def runtime():
    with Runtime(RuntimeConfig(precision="fp32", cpu=True, threads=1)) as runtime:
        yield runtime
