"""Kernels that give the same numbers in every run, on a GPU too."""

import os

import torch


def repeat_exactly() -> None:
    """From now on torch takes kernels that repeat their results, and raises where it has none; before any CUDA call.

    On a CPU a run repeats itself anyway. On a GPU some kernels add in the order in which threads happen to finish.
    """
    # cuBLAS reads it when it starts: with workspaces of a fixed size it takes the same way through a product each time.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)  # convolutions of cuDNN among them
    torch.backends.cudnn.benchmark = False
    # Nothing here reads what it has not written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
