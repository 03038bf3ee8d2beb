"""A student that starts as its teacher in fewer dimensions, fitted layer by layer, without a single gradient step.

The student's residual stream is the teacher's in its principal directions. Every linear layer of the student is then
the ridge regression, on a few hundred images, of what the teacher computes there from what the student has:

    qkv   student's normed stream  ->  query, key, value of the teacher's heads that write most
    proj  student's attention      ->  what the stream still lacks of the teacher's after attention
    fc1   student's normed stream  ->  inputs of the teacher's hidden units that write most
    fc2   student's hidden units   ->  what the stream still lacks of the teacher's after the block

Each layer is fitted on the output of the student's own earlier ones, so it corrects their errors. It is the idea of
weight selection (whole heads, whole hidden units, evenly spaced blocks, one subspace through the whole stream) with the
selected weights adapted to what is left; the projection of the stream is that of SliceGPT (Ashkboos et al. 2024).
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers import Mlp
from torch import Tensor, nn

from dinov2_zoo.initialisation.ridge import Moments
from dinov2_zoo.initialisation.selected import check_fits, evenly_spaced
from dinov2_zoo.models.attention import Attention, sdpa
from dinov2_zoo.models.block import Block
from dinov2_zoo.models.heads import at_least_fp32
from dinov2_zoo.models.packing import Packing
from dinov2_zoo.models.position import resample_positions
from dinov2_zoo.models.vision_transformer import VisionTransformer

RIDGE = 1e-3
"""Share of the mean variance added to every direction; chosen here on the demo."""
CLASS_SHARE = 0.3
"""How much an image's class token counts, against all its patches together; chosen here on the demo."""
CHUNK = 64
"""Images at a time."""


@dataclass
class _Part:
    """Streams of some images: what the teacher has, and what the student has made of it so far."""

    teacher: Float[Tensor, "total Dt"]
    student: Float[Tensor, "total Ds"]
    teacher_packing: Packing
    student_packing: Packing
    weight: Float[Tensor, " rows"]
    """Of the tokens that both have."""


class LayerwiseStart:
    """Fits a student to a teacher. Every process must make one, with its share of the images, and call `run`.

    Args:
        teacher: Frozen.
        student: Filled in place; of the teacher's patch and feed-forward, and no larger.
        images: At the size of the student's own grid, normalised.
        autocast: Precision of the forward passes; regressions are solved in float64.

    Raises:
        ConfigError: The two do not correspond.
    """

    def __init__(
        self,
        teacher: VisionTransformer,
        student: VisionTransformer,
        images: Float[Tensor, "B 3 S S"],
        autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        check_fits(teacher, student)
        self.teacher, self.student, self.autocast = teacher, student, autocast
        self.images = images.to(teacher.cls_token).split(CHUNK)
        self.blocks = evenly_spaced(teacher.config.depth, student.config.depth).tolist()

    @torch.no_grad()
    def run(self) -> None:
        """Fill the student."""
        self.down = self._principal_directions()
        self._fill_tokens()
        parts = self._parts()
        for number, block in enumerate(self.blocks):
            until = [*self.blocks, self.teacher.config.depth][number + 1]
            self._fit_block(parts, self.student.blocks[number], block, until)  # pyright: ignore[reportArgumentType]
        _neutral(self.student.norm)

    # ---------------------------------------------------------------- the stream

    def _principal_directions(self) -> Float[Tensor, "Dt Ds"]:
        """The map from the teacher's stream into the student's.

        Layer norm subtracts the mean over channels, so one direction of the student's stream, the constant one, would
        always be lost: the map fills the others with the principal directions of the teacher's normed stream, turned at
        random so that no channel is more important than another.
        """
        wide, narrow = self.teacher.embed_dim, self.student.embed_dim
        total = torch.zeros(wide, wide, dtype=torch.float64, device=self.teacher.cls_token.device)
        for images in self.images:
            with self.autocast():
                tokens = self.teacher.prepare_tokens(images)
                packing, row = Packing.of([tokens]), tokens.flatten(0, 1)
                for block in self.teacher.blocks:
                    total += _second_moment(row)
                    row = block(row, packing)
            # What comes out matters most: the stream's end counts as four blocks, and its class tokens as much again.
            total += 4 * _second_moment(row)
            class_tokens = packing.unpack(row)[0][:, 0]
            total += 4 * CLASS_SHARE * tokens.shape[1] * _second_moment(class_tokens)
        _, directions = torch.linalg.eigh(_over_processes(total))  # ascending
        generator = torch.Generator().manual_seed(0)
        turned = torch.cat([torch.ones(narrow, 1), torch.randn(narrow, narrow - 1, generator=generator)], dim=1)
        basis = torch.linalg.qr(turned.double())[0][:, 1:].to(directions.device)
        return (directions[:, 1 - narrow :] @ basis.T).to(self.teacher.cls_token.dtype)

    def _fill_tokens(self) -> None:
        """Patch embedding, positions and tokens: the teacher's, mapped; nothing is lost but what the map loses."""
        teacher, student = self.teacher, self.student
        student.patch_embed.proj.weight.copy_(torch.einsum("tcij,ts->scij", teacher.patch_embed.proj.weight, self.down))
        assert student.patch_embed.proj.bias is not None and teacher.patch_embed.proj.bias is not None
        student.patch_embed.proj.bias.copy_(teacher.patch_embed.proj.bias @ self.down)
        student.mask_token.copy_(teacher.mask_token @ self.down)
        cls_token, positions = teacher.cls_token, teacher.pos_embed
        if not teacher.num_registers:
            cls_token, positions = cls_token + positions[:, :1], positions[:, 1:]
        side = student.config.grid_size
        rule = teacher.config
        positions = resample_positions(
            positions, side, side, offset=rule.position_offset, antialias=rule.position_antialias
        )
        if not student.num_registers:
            positions = torch.cat([torch.zeros_like(cls_token), positions], dim=1)
        student.cls_token.copy_(cls_token @ self.down)
        student.pos_embed.copy_(positions @ self.down)
        if student.num_registers and student.num_registers == teacher.num_registers:
            student.reg_token.copy_(teacher.reg_token @ self.down)

    def _parts(self) -> list[_Part]:
        parts: list[_Part] = []
        for images in self.images:
            theirs, mine = self.teacher.prepare_tokens(images), self.student.prepare_tokens(images)
            patches = theirs.shape[1] - 1 - self.teacher.num_registers
            weight = torch.ones(len(images), 1 + patches, device=images.device, dtype=theirs.dtype)
            weight[:, 0] = CLASS_SHARE * patches
            packings = Packing.of([theirs]), Packing.of([mine])
            parts.append(_Part(theirs.flatten(0, 1), mine.flatten(0, 1), *packings, weight.flatten()))
        return parts

    def _shared(self, row: Tensor, packing: Packing, registers: int) -> Tensor:
        """Rows of class and patch tokens, which both networks have; registers have no counterpart."""
        tokens = packing.unpack(row)[0]
        return torch.cat([tokens[:, :1], tokens[:, 1 + registers :]], dim=1).flatten(0, 1)

    # ---------------------------------------------------------------- one block

    def _fit_block(self, parts: Sequence[_Part], mine: Block, number: int, until: int) -> None:
        """Fit one block of the student to the teacher's block `number`, and its end to the stream before `until`."""
        theirs: Block = self.teacher.blocks[number]  # pyright: ignore[reportAssignmentType]
        for norm in (mine.norm1, mine.norm2):
            _neutral(norm)
        for scale in (mine.ls1, mine.ls2):
            scale.gamma.fill_(1)  # the teacher's is part of what is regressed

        rows = self._choose_heads(parts, theirs)
        self._fit(
            mine.attn.qkv,
            parts,
            lambda p: mine.norm1(p.student),
            lambda p: F.linear(theirs.norm1(p.teacher), theirs.attn.qkv.weight[rows], theirs.attn.qkv.bias[rows]),
        )
        middle = [p.teacher + at_least_fp32(self._write(theirs, p)) for p in parts]
        self._fit_write(mine.attn.proj, parts, middle, lambda p: _attend(mine.attn, mine.norm1(p.student), p))

        hidden = self._choose_hidden(middle, theirs)
        inputs = hidden if isinstance(theirs.mlp, Mlp) else torch.cat([hidden, self.teacher.config.ffn_hidden + hidden])
        first: nn.Linear = theirs.mlp.fc1  # pyright: ignore[reportAssignmentType]
        for part, row in zip(parts, middle, strict=True):
            part.teacher = row
        self._fit(
            mine.mlp.fc1,  # pyright: ignore[reportArgumentType]
            parts,
            lambda p: mine.norm2(p.student),
            lambda p: F.linear(theirs.norm2(p.teacher), first.weight[inputs], first.bias[inputs]),
        )
        ends: list[Tensor] = []
        for part in parts:
            with self.autocast():
                row = part.teacher + theirs.ls2(theirs.mlp(theirs.norm2(part.teacher)))
                for block in self.teacher.blocks[number + 1 : until]:
                    row = block(row, part.teacher_packing)
            ends.append(at_least_fp32(row))
        self._fit_write(mine.mlp.fc2, parts, ends, lambda p: _activate(mine.mlp, mine.norm2(p.student)))  # pyright: ignore[reportArgumentType]
        for part, row in zip(parts, ends, strict=True):
            part.teacher = row

    def _fit(
        self,
        layer: nn.Linear,
        parts: Sequence[_Part],
        inputs: Callable[[_Part], Tensor],
        outputs: Callable[[_Part], Tensor],
    ) -> None:
        """Make a layer the regression of the teacher's tokens on the student's."""
        moments = Moments(layer.in_features, layer.out_features, layer.weight.device)
        for part in parts:
            with self.autocast():
                x, y = at_least_fp32(inputs(part)), at_least_fp32(outputs(part))
            moments.add(
                self._shared(x, part.student_packing, self.student.num_registers),
                self._shared(y, part.teacher_packing, self.teacher.num_registers),
                part.weight,
            )
        moments.solve(RIDGE).put_into(layer, scaled=True)

    def _fit_write(
        self, layer: nn.Linear, parts: Sequence[_Part], wanted: Sequence[Tensor], inputs: Callable[[_Part], Tensor]
    ) -> None:
        """Fit a layer that writes to the stream so that the stream becomes `wanted`, and let it write."""
        moments = Moments(layer.in_features, layer.out_features, layer.weight.device)
        read: list[Tensor] = []
        for part, goal in zip(parts, wanted, strict=True):
            with self.autocast():
                read.append(at_least_fp32(inputs(part)))
            lacks = self._shared(goal @ self.down, part.teacher_packing, self.teacher.num_registers)
            lacks = lacks - self._shared(part.student, part.student_packing, self.student.num_registers)
            moments.add(self._shared(read[-1], part.student_packing, self.student.num_registers), lacks, part.weight)
        moments.solve(RIDGE).put_into(layer, scaled=True)
        for part, x in zip(parts, read, strict=True):
            part.student = part.student + layer(x)

    # ---------------------------------------------------------------- which heads, which hidden units

    def _write(self, block: Block, part: _Part) -> Tensor:
        """What the teacher's attention adds to the stream."""
        with self.autocast():
            return block.ls1(block.attn(block.norm1(part.teacher), part.teacher_packing))

    def _choose_heads(self, parts: Sequence[_Part], block: Block) -> Tensor:
        """Rows of the teacher's qkv that belong to the heads whose writing varies most."""
        heads, dim = self.teacher.config.num_heads, self.teacher.embed_dim
        width = dim // heads
        out = (block.attn.proj.weight * block.ls1.gamma[:, None]).unflatten(1, (heads, width))
        with self.autocast():
            some = _attend(block.attn, block.norm1(parts[0].teacher), parts[0], teacher=True)
        some = at_least_fp32(some).unflatten(1, (heads, width))
        writes = torch.einsum("nhw,dhw->nhd", some - some.mean(0), out)
        chosen = _top(writes.square().sum((0, 2)), self.student.config.num_heads)
        inner = (chosen[:, None] * width + torch.arange(width, device=chosen.device)).flatten()
        return torch.cat([part * dim + inner for part in range(3)])

    def _choose_hidden(self, middle: Sequence[Tensor], block: Block) -> Tensor:
        """Hidden units of the teacher whose writing varies most."""
        with self.autocast():
            units = at_least_fp32(_activate(block.mlp, block.norm2(middle[0])))
        last: nn.Linear = block.mlp.fc2  # pyright: ignore[reportAssignmentType]
        out = last.weight * block.ls2.gamma[:, None]
        return _top(units.var(0) * out.square().sum(0), self.student.config.ffn_hidden)


def _second_moment(row: Tensor) -> Tensor:
    """Of tokens as layer norm sees them: without their mean, at length 1."""
    row = at_least_fp32(row)
    unit = F.normalize(row - row.mean(1, keepdim=True), dim=1)
    return (unit.T @ unit).double()


def _attend(attention: Attention, x: Tensor, part: _Part, *, teacher: bool = False) -> Tensor:
    """Attention up to its output projection: [total, heads * head_dim]."""
    q, k, v = attention.qkv(x).unflatten(-1, (3, attention.num_heads, -1)).unbind(-3)
    return sdpa(q, k, v, part.teacher_packing if teacher else part.student_packing).flatten(-2)


def _activate(mlp: nn.Module, x: Tensor) -> Tensor:
    """Hidden units of a feed-forward, MLP or SwiGLU: what its last layer reads."""
    inner: Tensor = mlp.fc1(x)  # pyright: ignore[reportCallIssue]
    if isinstance(mlp, Mlp):
        return mlp.act(inner)
    gate, value = inner.chunk(2, dim=-1)
    return F.silu(gate) * value


def _neutral(norm: nn.LayerNorm) -> None:
    norm.weight.fill_(1)
    norm.bias.fill_(0)


def _top(scores: Tensor, count: int) -> Tensor:
    return _over_processes(scores).topk(count).indices.sort().values


def _over_processes(total: Tensor) -> Tensor:
    if dist.is_initialized():
        dist.all_reduce(total)
    return total
