"""Fused kernels for the prototype losses: no [tokens, prototypes] matrix leaves the chip. Triton, on CUDA."""
