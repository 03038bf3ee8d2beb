import contextlib

import pytest
import torch
from jaxtyping import install_import_hook
from lively_weights import enliven

# Wherever a test calls these, types and shapes are what the annotations say. The network itself is left out:
# torch.export cannot trace through the checks.
CHECKED = [
    f"dinov2_zoo.models.{name}"
    for name in ("branch", "grid", "heads", "stochastic_depth", "stored", "students", "tokens")
]
CHECKED += ["dinov2_zoo.objectives", "dinov2_zoo.initialisation"]
with contextlib.suppress(ImportError):  # Triton is not everywhere; it compiles source, and must not meet the checks
    import dinov2_zoo.objectives.kernels.attend  # noqa: F401
install_import_hook(CHECKED, "beartype.beartype")

from dinov2_zoo.models.vision_transformer import VisionTransformer  # noqa: E402 (after the hook)


@pytest.fixture(autouse=True)
def one_thread():
    """Small products on a shared machine: more threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def lively():
    """Makes a Vision Transformer whose every parameter is large enough that a mistake anywhere would show."""

    def make(config, seed=0, dtype=torch.float32):
        torch.manual_seed(seed)
        model = VisionTransformer(config).to(dtype).eval()
        return enliven(model, matrices=lambda matrix: matrix[0].numel() ** -0.5)

    return make
