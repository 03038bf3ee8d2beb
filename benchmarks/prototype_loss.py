"""Memory and time of the prototype cross-entropy, loss and gradient: in chunks against plainly.

Run  python benchmarks/prototype_loss.py [--tokens 4096] [--prototypes 65536] [--chunk 512]
The plain way holds the teacher's distribution, the student's logits and their gradient as [tokens, K] matrices.
"""

import argparse

import torch
import torch.nn.functional as F
from paired import Spread, paired_seconds, peak_gib, ratio

from dinov2_zoo.objectives.cross_entropy import chunked_cross_entropy, plain_cross_entropy
from dinov2_zoo.objectives.targets import Targets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--prototypes", type=int, default=65536)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--chunk", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    sizes = parser.parse_args()
    torch.manual_seed(0)

    def problem() -> tuple[torch.Tensor, torch.Tensor, Targets]:
        z, t = (F.normalize(torch.randn(sizes.tokens, sizes.width), dim=1) for _ in range(2))
        w, v = (F.normalize(torch.randn(sizes.prototypes, sizes.width), dim=1) for _ in range(2))
        return z.requires_grad_(), w.requires_grad_(), Targets(t, v, torch.zeros(sizes.prototypes), 0.07)

    z, w, targets = problem()

    def chunked() -> torch.Tensor:
        loss = chunked_cross_entropy(z, w, [targets], temperature=0.1, chunk=sizes.chunk)
        return torch.autograd.grad(loss, w)[0]

    def plain() -> torch.Tensor:
        return torch.autograd.grad(plain_cross_entropy(z, w, [targets], temperature=0.1), w)[0]

    # Memory first: a forked process must not inherit torch's threads.
    memory = peak_gib(chunked), peak_gib(plain)
    torch.set_num_threads(sizes.threads)
    error = (chunked() - plain()).norm() / plain().norm()
    pairs = paired_seconds(chunked, plain, sizes.rounds)
    print(
        f"{sizes.tokens:,} tokens x {sizes.prototypes:,} prototypes, chunks of {sizes.chunk}, {sizes.threads} threads"
    )
    print(f"gradient, relative difference   {error:.1e}")
    print(
        f"peak memory, GiB                {memory[0]:.2f} chunked, {memory[1]:.2f} plain: {memory[1] / memory[0]:.1f}x"
    )
    print(f"seconds                         {Spread.of([a for a, _ in pairs])} chunked, "
          f"{Spread.of([b for _, b in pairs])} plain")  # fmt: skip
    print(f"plain over chunked, time        {ratio(pairs)}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
