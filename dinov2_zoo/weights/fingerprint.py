"""A digest that tells some weights from any others: for cached records, stored features, and heads' backbones."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def weights_fingerprint(state: Mapping[str, Tensor]) -> str:
    """Digest of names, dtypes, shapes and values, bit for bit; the order of the tensors does not matter.

    Args:
        state: A state dict; tensors may be on any device.

    Returns:
        32 hexadecimal digits (BLAKE2b, 16 bytes).
    """
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
