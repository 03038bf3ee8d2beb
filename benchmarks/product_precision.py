"""What rounding the inputs of the losses' products to TF32 or bf16 does to logits, loss and gradients; sums in float64.

Run  python benchmarks/product_precision.py [--tokens 2048] [--prototypes 8192]
Beside them, what networks in bf16 do anyway: only their output before the norm is rounded to bf16. "apart" is how far
the student's vectors are from the teacher's: the less, the smaller is the gradient that rounding must not drown.
"""

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Rounding = Callable[[Tensor], Tensor]


def tf32(x: Tensor) -> Tensor:
    """To the nearest number with 10 bits after the leading one."""
    bits = x.float().contiguous().view(torch.int32)
    return ((bits + 0x0FFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32).double()


def bf16(x: Tensor) -> Tensor:
    """To the nearest number with 7 bits after the leading one."""
    return x.bfloat16().double()


def losses(z: Tensor, w: Tensor, y: Tensor, v: Tensor, temperature: float, rounded: Rounding) -> list[Tensor]:
    """The teacher's logits, the mean loss, and its gradients, as the fused kernel makes them: two products each."""
    logits, theirs = rounded(z) @ rounded(w).T / 0.1, rounded(y) @ rounded(v).T / temperature
    q, p = rounded(logits.softmax(1)), rounded(theirs.softmax(1))
    mean_q, mean_p = q @ rounded(w), p @ rounded(w)
    loss = (logits.logsumexp(1) - (z * mean_p).sum(1) / 0.1).mean()
    return [theirs, loss, mean_q - mean_p, q.T @ rounded(z) - p.T @ rounded(z)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--prototypes", type=int, default=8192)
    parser.add_argument("--width", type=int, default=256)
    sizes = parser.parse_args()
    generator = torch.Generator().manual_seed(0)

    def unit(count: int) -> Tensor:
        return F.normalize(torch.randn(count, sizes.width, generator=generator, dtype=torch.float64), dim=1)

    print("| teacher's T | apart | rounded | logits, rms | largest | loss | gradient of tokens | of prototypes |")
    print("|---|---|---|---|---|---|---|---|")
    for temperature in (0.04, 0.07):
        for apart in (0.05, 0.5):
            y, v = unit(sizes.tokens), unit(sizes.prototypes)
            z, w = F.normalize(y + apart * unit(len(y)), dim=1), F.normalize(v + apart * unit(len(v)), dim=1)
            exact = losses(z, w, y, v, temperature, lambda x: x)
            networks = [F.normalize(bf16(3 * x), dim=1) for x in (z, y)]
            ways = {
                "inputs to TF32": losses(z, w, y, v, temperature, tf32),
                "inputs to bf16": losses(z, w, y, v, temperature, bf16),
                "networks' output to bf16": losses(networks[0], w, networks[1], v, temperature, lambda x: x),
            }
            for name, found in ways.items():
                logits = found[0] - exact[0]
                relative = [((a - b).norm() / b.norm()).item() for a, b in zip(found[2:], exact[2:], strict=True)]
                print(f"| {temperature} | {apart} | {name} | {logits.square().mean().sqrt():.0e} "
                      f"| {logits.abs().max():.0e} | {(found[1] - exact[1]).abs():.0e} | {relative[0]:.1e} "
                      f"| {relative[1]:.1e} |")  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
