"""What a loss with both gradients costs by three ways, counted from their own loops: operations and bytes.

A product of n x K logits of width d has 2 n K d operations. The kernel keeps no matrix, and makes logits again instead.
"""

from dataclasses import dataclass

from dinov2_zoo.objectives.kernels.attend import Tile, padded


@dataclass(frozen=True)
class Cost:
    """Of one call."""

    operations: int = 0
    """In products."""
    memory: int = 0
    """Bytes that pass between the chip and its memory, if its cache holds what programs share."""
    cache: int = 0
    """Bytes that programs ask for; the cache serves what several of them ask for at once."""
    room: int = 0
    """Bytes that are there at once besides inputs, gradients and vectors."""

    def __add__(self, other: "Cost") -> "Cost":
        """One after the other."""
        parts = self.operations + other.operations, self.memory + other.memory, self.cache + other.cache
        return Cost(*parts, max(self.room, other.room))


def attend_cost(queries: int, keys: int, width: int, tile: Tile, size: int, *, means: bool = True) -> Cost:
    """One call of `attend`: its loop bounds, with `size` bytes a number that goes into products."""
    programs, steps = -(-queries // tile.queries), -(-keys // tile.keys)
    wide, matrices = padded(width), 1 + means
    operations = programs * steps * matrices * 2 * tile.queries * tile.keys * wide
    once = size * width * (queries + matrices * keys) + 4 * (keys + queries + means * queries * width)
    each = programs * keys * (size * matrices * width + 4)
    return Cost(operations, once, each + size * width * queries + 4 * queries * (1 + means * width))


def fused_cost(tokens: int, prototypes: int, width: int, tile: Tile, size: int) -> Cost:
    """`fused_cross_entropy` of tokens with one target each."""
    sides = attend_cost(tokens, prototypes, width, tile, size), attend_cost(prototypes, tokens, width, tile, size)
    return sides[0] + sides[0] + sides[1] + sides[1]  # the student's and the teacher's


def chunked_cost(tokens: int, prototypes: int, width: int, chunk: int) -> Cost:
    """`chunked_cross_entropy`, fp32: 4 products, and all reading and writing of [tokens, K] matrices."""
    # Written: both logits, p, log p, their product, exp, the difference. Read: logits by both softmaxes, p and log p by
    # their product, that by its sum, log p by exp, both by the difference, and that by two products with vectors.
    return _by_matrices(tokens, prototypes, width, passes=7 + 10, rows=3 * min(chunk, tokens), chunk=chunk)


def plain_cost(tokens: int, prototypes: int, width: int) -> Cost:
    """`plain_cross_entropy` and its backward pass, fp32, operation by operation."""
    # Forward. Written: student's logits, over T, log p; teacher's logits, softmax, sum over pairs. Read: one for each
    # that is no product, and two for the sum of products. Backward: gradient of log p (1 + 1), through the softmax
    # (2 + 1), over T (1 + 1), two products (2). At once: log p, target, two gradients.
    return _by_matrices(tokens, prototypes, width, passes=6 + 6 + 2 + 3 + 2 + 2, rows=4 * tokens, chunk=tokens)


def _by_matrices(tokens: int, prototypes: int, width: int, *, passes: int, rows: int, chunk: int) -> Cost:
    whole = 4 * tokens * prototypes
    # Each chunk reads both sets of prototypes for its logits, the student's again, and reads and writes their gradient.
    moved = passes * whole + -(-tokens // chunk) * 5 * 4 * prototypes * width + 5 * 4 * tokens * width
    return Cost(4 * 2 * tokens * prototypes * width, moved, moved, 4 * rows * prototypes)
