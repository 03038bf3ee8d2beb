"""A student that starts as its teacher in fewer dimensions, fitted layer by layer, without a single gradient step.

The student's residual stream is the teacher's in its principal directions. Every linear layer of the student is then
the ridge regression, on a few hundred images, of what the teacher computes there from what the student has:

    qkv   student's normed stream  ->  query, key, value of the teacher's heads that write most
    proj  student's attention      ->  what the stream still lacks of the teacher's after attention
    fc1   student's normed stream  ->  inputs of the teacher's hidden units that write most
    fc2   student's hidden units   ->  what the stream still lacks of the teacher's after the block

Each layer is fitted on the output of the student's own earlier ones, so it corrects their errors. It is the idea of
weight selection (whole heads, whole hidden units, evenly spaced blocks, one subspace through the whole stream) with the
selected weights adapted to what is left.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from dinov2_zoo.config import ModelConfig
from dinov2_zoo.initialisation.ridge import Moments, sum_over_processes
from dinov2_zoo.initialisation.selected import (
    channels_of_heads,
    check_fits,
    evenly_spaced,
    rows_of_hidden,
    rows_of_qkv,
    transfer_tokens,
)
from dinov2_zoo.initialisation.subspace import CLASS_SHARE, principal_directions
from dinov2_zoo.models.block import Block
from dinov2_zoo.models.heads import at_least_fp32
from dinov2_zoo.models.packing import Packing
from dinov2_zoo.models.vision_transformer import VisionTransformer

Autocast = Callable[[], AbstractContextManager[object]]

RIDGE = 3e-3
"""Share of the mean variance added to every direction; chosen here on the demo."""
CHUNK = 64
"""Images at a time."""
PATCHES = 64
"""Patches of each image that a regression sees, drawn at random: neighbours say nearly the same, and with fewer of them
the same time pays for more images (chosen here; see LOG.md)."""
DIRECTIONS = 3 * CHUNK
"""Images that the subspace is found on."""


@torch.no_grad()
def fit_student(
    teacher: VisionTransformer,
    student: VisionTransformer,
    images: Float[Tensor, "B 3 S S"],
    *,
    autocast: Autocast = nullcontext,
    on_block: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Fill a student with weights fitted to its teacher's. Every process must call it, with its share of the images.

    Args:
        teacher: Frozen.
        student: Filled in place; of the teacher's patch and feed-forward, and no larger.
        images: At the size of the student's own grid, normalised.
        autocast: Precision of the forward passes; regressions are solved in float64.
        on_block: Called after each block of the student with how many are done, and of how many.

    Raises:
        ConfigError: The two do not correspond.
    """
    check_fits(teacher, student)
    batches = images.to(teacher.cls_token).split(CHUNK)
    down = principal_directions(teacher, student.embed_dim, batches[: DIRECTIONS // CHUNK], autocast)

    # Nothing is lost of the tokens that enter but what the map loses.
    theirs, mine = teacher.patch_embed.proj, student.patch_embed.proj
    assert mine.bias is not None and theirs.bias is not None
    mine.weight.copy_(torch.einsum("tcij,ts->scij", theirs.weight, down))
    mine.bias.copy_(theirs.bias @ down)
    transfer_tokens(teacher, student, lambda tokens: tokens @ down)

    pairs = [_pair(teacher, student, part, number) for number, part in enumerate(batches)]
    fit = _BlockFit(pairs, down, teacher.config, autocast)
    chosen = evenly_spaced(teacher.config.depth, student.config.depth).tolist()
    for number, (first, until) in enumerate(zip(chosen, [*chosen[1:], teacher.config.depth], strict=True)):
        fit(student.blocks[number], list(teacher.blocks[first:until]))  # pyright: ignore[reportArgumentType]
        on_block(number + 1, len(chosen))
    _neutralise(student.norm)


@dataclass
class _Stream:
    """One network's residual stream over some images."""

    row: Float[Tensor, "total D"]
    packing: Packing
    compared: Int64[Tensor, " tokens"]
    """Which of its tokens the regressions see: those that both networks have, so no registers."""

    def shared(self, row: Float[Tensor, "total E"]) -> Float[Tensor, "tokens E"]:
        """Rows of the compared tokens."""
        return row[self.compared]


@dataclass
class _Pair:
    """Streams over the same images: what the teacher has, and what the student has made of it so far."""

    teacher: _Stream
    student: _Stream
    weight: Float[Tensor, " tokens"]
    """How much each of the compared tokens counts."""


def _pair(
    teacher: VisionTransformer, student: VisionTransformer, images: Float[Tensor, "B 3 S S"], number: int
) -> _Pair:
    """Both streams before the first block, compared at the class tokens and at some patches of each image."""
    patches = student.packing([images]).longest - 1 - student.num_registers
    generator = torch.Generator().manual_seed(number)
    drawn = torch.rand(len(images), patches, generator=generator).argsort(1)[:, :PATCHES].to(images.device)

    def stream(network: VisionTransformer) -> _Stream:
        tokens = network.prepare_tokens(images)
        before = 1 + network.num_registers
        first = torch.arange(len(images), device=images.device)[:, None] * tokens.shape[1]
        compared = torch.cat([first, first + before + drawn], dim=1)
        return _Stream(tokens.flatten(0, 1), Packing.of([tokens]), compared.flatten())

    weight = torch.ones(len(images), 1 + drawn.shape[1], device=images.device, dtype=images.dtype)
    weight[:, 0] = CLASS_SHARE * drawn.shape[1]
    return _Pair(stream(teacher), stream(student), weight.flatten())


class _BlockFit:
    """Fits the student's blocks in order; each call moves both streams behind what it has fitted.

    Args:
        pairs: Both streams before the first block.
        down: Map from the teacher's stream into the student's.
        teacher: The teacher's shape.
        autocast: Precision of the forward passes.
    """

    def __init__(
        self, pairs: Sequence[_Pair], down: Float[Tensor, "Dt Ds"], teacher: ModelConfig, autocast: Autocast
    ) -> None:
        self.pairs, self.down, self.teacher, self.autocast = pairs, down, teacher, autocast

    def __call__(self, mine: Block, blocks: Sequence[Block]) -> None:
        """Fit a block to the first of some of the teacher's, and its end to the stream behind the last of them."""
        theirs, skipped = blocks[0], blocks[1:]
        for norm in (mine.norm1, mine.norm2):
            _neutralise(norm)
        for scale in (mine.ls1, mine.ls2):
            scale.gamma.fill_(1)  # the teacher's is part of what is regressed

        qkv = self._heads_that_write_most(theirs, mine.attn.num_heads)
        self._regress(
            mine.attn.qkv,
            lambda pair: mine.norm1(pair.student.row),
            lambda pair: F.linear(
                theirs.norm1(pair.teacher.row), theirs.attn.qkv.weight[qkv], theirs.attn.qkv.bias[qkv]
            ),
        )
        self._move_teacher(lambda stream: stream.row + at_least_fp32(theirs.attention(stream.row, stream.packing)))
        self._regress_write(
            mine.attn.proj, lambda pair: mine.attn.attend(mine.norm1(pair.student.row), pair.student.packing)
        )

        units = self._hidden_that_write_most(theirs, mine.mlp.fc2.in_features)
        self._regress(
            mine.mlp.fc1,
            lambda pair: mine.norm2(pair.student.row),
            lambda pair: F.linear(
                theirs.norm2(pair.teacher.row), theirs.mlp.fc1.weight[units], theirs.mlp.fc1.bias[units]
            ),
        )

        def to_the_end(stream: _Stream) -> Tensor:
            row = stream.row + theirs.feed_forward(stream.row, stream.packing)
            for block in skipped:
                row = block(row, stream.packing)
            return at_least_fp32(row)

        self._move_teacher(to_the_end)
        self._regress_write(mine.mlp.fc2, lambda pair: mine.mlp.hidden(mine.norm2(pair.student.row)))

    def _move_teacher(self, step: Callable[[_Stream], Tensor]) -> None:
        for pair in self.pairs:
            with self.autocast():
                pair.teacher.row = step(pair.teacher)

    # ---------------------------------------------------------------- regressions

    def _regress(self, layer: nn.Linear, inputs: Callable[[_Pair], Tensor], outputs: Callable[[_Pair], Tensor]) -> None:
        """Make a layer the regression of what the teacher has on what the student has."""
        moments = Moments(layer.in_features, layer.out_features, layer.weight.device)
        for pair in self.pairs:
            with self.autocast():
                x, y = at_least_fp32(inputs(pair)), at_least_fp32(outputs(pair))
            moments.add(pair.student.shared(x), pair.teacher.shared(y), pair.weight)
        moments.solve(RIDGE).put_into(layer, scaled=True)

    def _regress_write(self, layer: nn.Linear, inputs: Callable[[_Pair], Tensor]) -> None:
        """Fit a layer that writes to the stream so that the stream becomes the teacher's, and let it write."""
        moments = Moments(layer.in_features, layer.out_features, layer.weight.device)
        read: list[Tensor] = []
        for pair in self.pairs:
            teacher, student = pair.teacher, pair.student
            with self.autocast():
                read.append(at_least_fp32(inputs(pair)))
            lacks = teacher.shared(teacher.row @ self.down) - student.shared(student.row)
            moments.add(student.shared(read[-1]), lacks, pair.weight)
        moments.solve(RIDGE).put_into(layer, scaled=True)
        for pair, x in zip(self.pairs, read, strict=True):
            pair.student.row = pair.student.row + layer(x)

    # ---------------------------------------------------------------- which heads, which hidden units

    def _heads_that_write_most(self, block: Block, count: int) -> Tensor:
        """Rows of a teacher's qkv that belong to the heads whose writing varies most."""
        heads, dim = self.teacher.num_heads, self.teacher.embed_dim
        width = dim // heads
        out = (block.attn.proj.weight * block.ls1.gamma[:, None]).unflatten(1, (heads, width))
        some = self.pairs[0].teacher
        with self.autocast():
            read = block.attn.attend(block.norm1(some.row), some.packing)
        read = at_least_fp32(read).unflatten(1, (heads, width))
        writes = torch.einsum("nhw,dhw->nhd", read - read.mean(0), out)
        chosen = _largest(writes.square().sum((0, 2)), count)
        return rows_of_qkv(channels_of_heads(chosen, width), dim)

    def _hidden_that_write_most(self, block: Block, count: int) -> Tensor:
        """Rows of a teacher's first layer that belong to the hidden units whose writing varies most."""
        with self.autocast():
            units = at_least_fp32(block.mlp.hidden(block.norm2(self.pairs[0].teacher.row)))
        out = block.mlp.fc2.weight * block.ls2.gamma[:, None]
        chosen = _largest(units.var(0) * out.square().sum(0), count)
        return rows_of_hidden(chosen, self.teacher)


def _neutralise(norm: nn.LayerNorm) -> None:
    norm.weight.fill_(1)
    norm.bias.fill_(0)


def _largest(scores: Tensor, count: int) -> Tensor:
    """Numbers of the largest scores, summed over processes, ascending."""
    return sum_over_processes(scores).topk(count).indices.sort().values
