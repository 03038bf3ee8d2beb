"""Prototype losses against the plain way, loss and both gradients; Sinkhorn-Knopp's factors; what a GPU would be asked.

Run  python benchmarks/prototype_loss.py [--tokens 4096] [--prototypes 65536] [--chunk 512]
     python benchmarks/prototype_loss.py --costs   counts bytes and operations from loop bounds, and runs nothing
Both sides run in turns, in one go. The plain way holds the teacher's distribution, the student's logarithm and their
gradients as [tokens, K] matrices. On CUDA, add --device cuda: then "ours" is whatever `fastest` takes there.
"""

import argparse
import time

import torch
import torch.nn.functional as F
from paired import Spread, paired_seconds, peak_gib, ratio

from dinov2_zoo.objectives import fastest
from dinov2_zoo.objectives.cross_entropy import plain_cross_entropy
from dinov2_zoo.objectives.targets import Targets

SIZES = ((4096, 65536), (32768, 131072), (131072, 131072))


def plain_sinkhorn(bottleneck: torch.Tensor, prototypes: torch.Tensor, temperature: float) -> torch.Tensor:
    """Log of the prototypes' factors after three iterations, with the whole matrix in the log domain."""
    logits = bottleneck @ prototypes.T / temperature
    log_v = torch.zeros(len(logits), 1, device=logits.device)
    for _ in range(3):
        log_u = -torch.logsumexp(logits + log_v, 0)
        log_v = -torch.logsumexp(logits + log_u, 1, keepdim=True)
    return log_u


def costs() -> None:
    """The table of docs/benchmarks.md, in units of 10^12."""
    from dinov2_zoo.objectives.kernels.choice import TILES
    from dinov2_zoo.objectives.kernels.costs import chunked_cost, fused_cost, plain_cost

    print("| tokens x prototypes, 256 wide | way | operations, 10^12 | to and from memory, TB | asked of the cache, TB "
          "| room, GB |\n|---|---|---|---|---|---|")  # fmt: skip
    for tokens, prototypes in SIZES:
        ways = {"plain": plain_cost(tokens, prototypes, 256), "chunked": chunked_cost(tokens, prototypes, 256, 4096)}
        for name, dtype in (("fused, TF32", torch.float32), ("fused, bf16", torch.bfloat16)):
            ways[name] = fused_cost(tokens, prototypes, 256, TILES[dtype][0], dtype.itemsize)
        for name, cost in ways.items():
            print(f"| {tokens:,} x {prototypes:,} | {name} | {cost.operations / 1e12:.2f} | {cost.memory / 1e12:.4f} "
                  f"| {cost.cache / 1e12:.3f} | {cost.room / 1e9:.2f} |")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--prototypes", type=int, default=65536)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--chunk", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--costs", action="store_true")
    sizes = parser.parse_args()
    if sizes.costs:
        return costs()
    torch.manual_seed(0)
    z, t = (F.normalize(torch.randn(sizes.tokens, sizes.width), dim=1).to(sizes.device) for _ in range(2))
    w, v = (F.normalize(torch.randn(sizes.prototypes, sizes.width), dim=1).to(sizes.device) for _ in range(2))
    z, w = z.requires_grad_(), w.requires_grad_()
    targets = Targets(t, v, torch.zeros(sizes.prototypes, device=sizes.device), 0.07)
    one = torch.ones(1, 1, device=sizes.device)

    def done(result: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        if sizes.device == "cuda":
            torch.cuda.synchronize()
        return result

    def ours() -> tuple[torch.Tensor, ...]:
        loss = fastest.cross_entropy(z[None], w, targets, one, temperature=0.1, chunk=sizes.chunk)
        return done(torch.autograd.grad(loss, (z, w)))

    def plain() -> tuple[torch.Tensor, ...]:
        return done(torch.autograd.grad(plain_cross_entropy(z[None], w, targets, one, temperature=0.1), (z, w)))

    def our_sinkhorn() -> tuple[torch.Tensor, ...]:
        log_u = None
        for _ in range(3):
            log_u = -fastest.column_log_sums(t, v, log_u, temperature=0.07, chunk=sizes.chunk)
        assert log_u is not None
        return done((log_u,))

    def sinkhorn() -> tuple[torch.Tensor, ...]:
        return done((plain_sinkhorn(t, v, 0.07),))

    def peak(work: object) -> float:
        if sizes.device != "cuda":
            return peak_gib(work)  # pyright: ignore[reportArgumentType]
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()  # pyright: ignore[reportCallIssue]
        return (torch.cuda.max_memory_allocated() - before) / 2**30

    print(
        f"{sizes.tokens:,} tokens x {sizes.prototypes:,} prototypes on {sizes.device}, chunks of {sizes.chunk}, "
        f"{sizes.threads} threads"
    )
    pairs = {"loss and both gradients": (ours, plain), "three iterations of Sinkhorn-Knopp": (our_sinkhorn, sinkhorn)}
    # Memory first: a forked process must not inherit torch's threads.
    memory = {name: (peak(mine), peak(theirs)) for name, (mine, theirs) in pairs.items()}
    torch.set_num_threads(sizes.threads)
    for name, (mine, theirs) in pairs.items():
        error = max(((a - b).norm() / b.norm()).item() for a, b in zip(mine(), theirs(), strict=True))
        clock = time.process_time if sizes.device == "cpu" and sizes.threads == 1 else time.perf_counter
        seconds = paired_seconds(mine, theirs, sizes.rounds, clock=clock)
        a, b = memory[name]
        print(name)
        print(f"  relative difference       {error:.1e}")
        print(f"  peak memory, GiB          {a:.2f} ours, {b:.2f} plain: {b / a:.1f}x")
        print(f"  seconds                   {Spread.of([s for s, _ in seconds])} ours, "
              f"{Spread.of([s for _, s in seconds])} plain")  # fmt: skip
        print(f"  plain over ours, time     {ratio(seconds)}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
