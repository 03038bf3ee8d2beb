"""Time and memory of a forward and backward pass with blocks recomputed in the backward pass, against kept.

Run  python benchmarks/activation_checkpointing.py [--depth 12] [--images 5] [--device cuda]
Memory is what the pass adds at its peak: activations, and the gradients of the parameters. On the CPU it is measured
with glibc told to hand freed tensors back: left to itself it keeps the holes they leave, and the saving hardly shows.
"""

import ctypes
from collections.abc import Callable

import network
import torch
from paired import paired_seconds, peak_gib, ratio

MMAP_THRESHOLD = -3
"""Of glibc's malloc.h: pieces from this size on are taken from, and given back to, the system one by one."""


def peak(work: Callable[[], None], device: str) -> float:
    """Most memory that `work` adds, GiB: of a process of its own on the CPU, of the allocator on CUDA."""
    if device == "cpu":

        def without_holes() -> None:
            ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, 2**20)  # only in the process that is measured
            work()

        return peak_gib(without_holes)
    work()  # the first call also makes workspaces that stay
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    return (torch.cuda.max_memory_allocated() - before) / 2**30


def main() -> None:
    options = network.parser(__doc__).parse_args()
    torch.set_num_threads(1)
    model, groups = network.build(options)

    def step(recompute: bool) -> None:
        model.checkpoint_blocks = recompute
        network.forward_backward(model, lambda: model.forward_features(groups), options.device)

    # Memory first: a forked process must not inherit torch's threads.
    memory = [peak(lambda r=r: step(r), options.device) for r in (True, False)]
    torch.set_num_threads(options.threads)
    pairs = paired_seconds(lambda: step(True), lambda: step(False), options.rounds)
    recomputed, kept = network.seconds(pairs)
    print(network.title(options))
    print(f"peak memory, GiB      {memory[0]:.2f} recomputed, {memory[1]:.2f} kept: {memory[1] / memory[0]:.1f}x")
    print(f"seconds               {recomputed} recomputed, {kept} kept")
    print(f"kept over recomputed  {ratio(pairs)}")


if __name__ == "__main__":
    main()
