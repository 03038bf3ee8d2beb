"""Weights large enough that a mistake anywhere would show."""

import torch


@torch.no_grad()
def enliven(model, *, norms=True, matrices=None):
    """Draw parameters anew from torch's generator, in place and in their order.

    Args:
        model: With the names of our Vision Transformer.
        norms: Scales of norms too; else they stay.
        matrices: Deviation of a matrix's entries, from the matrix; None: matrices stay.
    """
    for name, parameter in model.named_parameters():
        if name.endswith("gamma"):
            parameter.normal_(0.5, 0.1)
        elif name.endswith(("bias", "pos_embed", "token")):
            parameter.normal_(0, 0.5)
        elif parameter.ndim == 1 and norms:
            parameter.normal_(1, 0.2)
        elif parameter.ndim > 1 and matrices is not None:
            parameter.normal_(0, matrices(parameter))
    return model
