import pytest
from simulated_runs import SHAPES

from dinov2_zoo.models.zoo import MODELS


@pytest.fixture(scope="module", autouse=True)
def small_shapes():
    """Networks of two blocks among the named ones: a simulation takes as long as there are blocks."""
    with pytest.MonkeyPatch.context() as patched:
        for name, shape in SHAPES.items():
            patched.setitem(MODELS, name, shape)
        yield
