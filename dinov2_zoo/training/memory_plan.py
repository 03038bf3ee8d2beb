"""What one step of pretraining needs on each GPU, from shapes alone: nothing is allocated.

The parts are not all there at once. Memory is fullest at one of four moments:

- *teacher*: the student has run and left its activations, and the teacher runs;
- *loss*: the losses form their [chunk, K] matrices;
- *backward*: activations are still whole when the last block, the first in line, is recomputed and differentiated;
- *update*: activations are gone; gradients are complete, and AdamW has a temporary of their size.

Left out: the CUDA context, cuBLAS' and NCCL's buffers and fragmentation, which are not our tensors; KoLeo, health
metrics, EMA centres, buffers that gather or reduce one block, which are small; what `torch.compile` saves by fusing.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dinov2_zoo.config import PretrainConfig
from dinov2_zoo.errors import ConfigError
from dinov2_zoo.models.branch import Branch
from dinov2_zoo.models.heads import PrototypeHead
from dinov2_zoo.models.vision_transformer import VisionTransformer
from dinov2_zoo.objectives.self_distillation import SelfDistillation

FULL, INDEX = 4, 8
"""Bytes of an fp32 number (weights, average, gradients, residual stream, norms, losses), and of an index."""
GLOBAL_VIEWS = 2


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on one GPU; see `memory_plan`."""

    images: int
    """Images that the GPU sees at once (a number, not bytes)."""
    parameters: int
    """The student's master weights, fp32: this GPU's shards."""
    average: int
    """The same of its average."""
    optimizer: int
    """AdamW's two moments of every trained weight."""
    gradients: int
    """Complete gradients, fp32: this GPU's shards."""
    accumulated: int
    """Whole gradients, fp32, kept from one micro-batch to the next: 0 without accumulation."""
    unreduced: int
    """Gradients that are there, whole, when the first block is differentiated."""
    gathered: int
    """The student's weights, gathered from all GPUs."""
    gathered_average: int
    """The same of the average."""
    copies: int
    """Autocast's bf16 copies of fp32 weights, until the losses are computed."""
    copies_in_backward: int
    """Those that are there when the first block is differentiated."""
    activations: int
    """What the backbone keeps for its backward pass, until it comes to the blocks: crops, and the blocks' activations
    or, with activation checkpointing, the stream before each of them."""
    final_norm: int
    """Its input and its result, which are gone when it comes to the blocks."""
    block: int
    """What the backward pass of one block needs beside: gradients of activations and, with activation checkpointing,
    the block's recomputed activations."""
    heads: int
    """What the student's heads and the losses keep for their backward pass."""
    outputs: int
    """Crops, prototypes, the teacher's tokens: there while losses are computed, then dropped."""
    chunks: int
    """[chunk, K] matrices that are there at once."""
    teacher: int
    """Crops, and the teacher's forward pass in the midst of a block."""

    @property
    def persistent(self) -> int:
        """What stays from step to step."""
        return self.parameters + self.average + self.optimizer

    @property
    def moments(self) -> dict[str, int]:
        """Need at each moment when memory is full."""
        always = self.persistent + self.gathered_average
        both = always + self.gathered + self.activations
        forward = both + self.copies + self.accumulated + self.final_norm + self.heads
        return {
            "teacher": forward + self.teacher,
            "loss": forward + self.outputs + self.chunks,
            "backward": both + self.copies_in_backward + (self.accumulated or self.unreduced) + self.block,
            "update": always + 2 * self.gradients,
        }

    @property
    def total(self) -> int:
        """Need at the fullest moment."""
        return max(self.moments.values())


def memory_plan(
    module: SelfDistillation, config: PretrainConfig, gpus: int, *, reshard: bool = False, one_kernel: bool = True
) -> MemoryPlan:
    """Memory per GPU of one optimizer step of `recipes/pretrain.py`.

    Args:
        module: As the recipe builds it; best on the meta device.
        config: What it was built from. Precision "auto" is taken for bf16.
        gpus: Processes, each with one GPU.
        reshard: Blocks are freed between forward and backward (accelerate's FSDP file; see `Runtime.shard`).
        one_kernel: Attention takes crops of several sizes in one kernel, as it does on CUDA where one works; else it
            goes group by group (`sdpa`).

    Raises:
        ConfigError: The batch does not divide among GPUs and micro-batches.
    """
    images, rest = divmod(config.loader.batch_size, gpus * config.optim.accumulate)
    if rest or not images:
        raise ConfigError(
            f"loader.batch_size {config.loader.batch_size} does not divide among {gpus} GPUs x "
            f"{config.optim.accumulate} micro-batches: choose numbers whose product divides it."
        )
    backbone = module.student.backbone
    assert isinstance(backbone, VisionTransformer)
    half = FULL if config.runtime.precision == "fp32" else 2
    weights = _Weights(module.student, backbone, gpus, half)
    network = _Pass(backbone, config, images, half, one_kernel)
    crops = FULL * network.pixels
    heads = _heads(module.student, backbone.patch_size, config, images)
    return MemoryPlan(
        images=images,
        parameters=shards(module.student.parameters(), gpus),
        average=shards(module.ema.parameters(), gpus),
        optimizer=2 * shards(weights.trained, gpus),
        gradients=shards(weights.trained, gpus),
        accumulated=FULL * _count(weights.trained) if config.optim.accumulate > 1 else 0,
        unreduced=weights.unreduced(),
        gathered=weights.gathered(reshard),
        gathered_average=0 if reshard else weights.gathered(False),
        copies=weights.copies(),
        copies_in_backward=weights.copies_in_backward(config.runtime.activation_checkpointing),
        activations=network.activations(),
        final_norm=network.final_norm(),
        block=network.backward_of_a_block(),
        heads=_kept_by_heads(heads, backbone.embed_dim, half),
        outputs=crops + network.teacher_tokens * FULL * backbone.embed_dim + _held_by_losses(heads),
        chunks=_chunks(*heads, config.losses.chunk),
        teacher=crops + network.teacher(),
    )


# -------------------------------------------------------------------- weights and gradients


def shards(parameters: Iterable[Tensor], gpus: int) -> int:
    """Bytes of one GPU's fp32 shards: `fully_shard` cuts the first dimension, and pads what is left to equal length."""
    return FULL * sum(math.ceil(len(p) / gpus) * (p.numel() // len(p)) for p in parameters)


def _count(parameters: Iterable[Tensor]) -> int:
    return sum(p.numel() for p in parameters)


def _layers(module: nn.Module) -> int:
    """Learning weights of the products that autocast runs in bf16."""
    layers = [m for m in module.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    return _count(p for layer in layers for p in layer.parameters() if p.requires_grad)


class _Weights:
    """A student's weights as `Runtime.shard` treats them: blocks apart from what is outside of them."""

    def __init__(self, student: Branch, backbone: VisionTransformer, gpus: int, half: int) -> None:
        self.student, self.blocks, self.gpus, self.half = student, backbone.blocks, gpus, half
        self.trained = [p for p in student.parameters() if p.requires_grad]

    def gathered(self, reshard: bool) -> int:
        """Whole weights: blocks in bf16; in fp32 what is outside (positions, heads, prototypes).

        By default they stay from the forward pass to the backward pass, and the average's until the update. Resharded,
        a block is there while it is used; the next is fetched meanwhile, and passes through a buffer of its size. (What
        is outside then leaves too between the passes; it is counted all the same.)
        """
        if self.gpus == 1:
            return 0
        padded = self.gpus * shards(self.blocks.parameters(), self.gpus)
        outside = self.gpus * shards(self.student.parameters(), self.gpus) - padded
        blocks = 3 * padded // len(self.blocks) if reshard else padded
        return blocks * self.half // FULL + outside

    def copies(self) -> int:
        """Autocast copies fp32 weights to bf16 for products, and keeps the copies of those that learn.

        On several GPUs blocks arrive in bf16, and only the layers outside of them are copied.
        """
        layers = _layers(self.student) - (_layers(self.blocks) if self.gpus > 1 else 0)
        return 0 if self.half == FULL else self.half * layers

    def copies_in_backward(self, checkpointing: bool) -> int:
        """The heads' have been used by then. A recomputed block makes its own again."""
        layers = 0 if self.gpus > 1 or self.half == FULL else _layers(self.blocks)
        return self.half * (layers // len(self.blocks) if checkpointing else layers)

    def unreduced(self) -> int:
        """What is outside the blocks is reduced at the end of the backward pass only: its whole gradient waits.

        A block's comes in its weights' precision and is copied to fp32 for the reduction, while the last one's runs.
        """
        block = _count(p for p in self.blocks[0].parameters() if p.requires_grad)
        outside = _count(self.trained) - block * len(self.blocks)
        return FULL * outside + (FULL * block if self.gpus == 1 else (self.half + 2 * FULL) * block)


class _Pass:
    """Activations of a backbone in one packed pass over all crops."""

    def __init__(
        self, backbone: VisionTransformer, config: PretrainConfig, images: int, half: int, one_kernel: bool
    ) -> None:
        crops, rate = config.crops, config.self_distillation.drop_path
        sizes = [(GLOBAL_VIEWS, crops.global_size), (crops.local_count, crops.local_size)]
        groups = [torch.empty(views * images, 3, side, side, device="meta") for views, side in sizes if views]
        packing = backbone.packing(groups)
        self.pixels = sum(group.numel() for group in groups)
        self.stream = FULL * sum(packing.lengths) * backbone.embed_dim
        self.teacher_tokens = math.prod(packing.groups[0])
        # As in `draw_kept`: a block's two branches run on so many sequences of each group.
        self.branch_tokens = sum(max(1, int(n * (1 - rate))) * tokens for n, tokens in packing.groups)
        self.subsets = rate > 0
        # `sdpa` lays its groups' results together into one more tensor, and so it does with a single group.
        self.laid_together = len(packing.groups) == 1 or not one_kernel
        self.shape, self.half = backbone.config, half
        self.checkpointing = config.runtime.activation_checkpointing
        self.learns = any(p.requires_grad for p in backbone.parameters())

    @property
    def hidden(self) -> int:
        """Channels inside the feed-forward. MLP: GELU's input and output. SwiGLU: both halves, silu(first), product."""
        return (2 if self.shape.ffn == "mlp" else 4) * self.shape.ffn_hidden

    def block_activations(self) -> int:
        """What a block's backward pass needs; the whole stream is none of it, for adding is linear."""
        width = self.shape.embed_dim
        norms = 2 * FULL * (width + 2)  # inputs, means and deviations
        # Inputs of qkv, of attention (q, k, v), of proj (which is attention's result) and of LayerScale.
        attention = self.half * (1 + 3 + 1 + 1) * width + FULL * self.shape.num_heads  # and log-sum-exps
        attention += self.half * width if self.laid_together else 0
        feed_forward = self.half * (width + self.hidden + width)  # fc1's input, what is between, LayerScale's input
        added = 2 * FULL * width if self.subsets else 0  # torch's index_add keeps what it adds
        return self.branch_tokens * (norms + attention + feed_forward + added)

    def activations(self) -> int:
        """Crops as the patch embedding reads them; each block's activations or, with checkpointing, its input."""
        if not self.learns:
            return 0
        rows = (INDEX + FULL) * 2 * self.shape.depth * self.branch_tokens if self.subsets else 0  # and their scales
        block = self.stream if self.checkpointing else self.block_activations()
        return self.half * self.pixels + rows + self.shape.depth * block

    def final_norm(self) -> int:
        """The stream before it, where the backbone learns; of what comes after, losses and heads have copies."""
        return self.stream if self.learns else 0

    def backward_of_a_block(self) -> int:
        """The stream's gradient; the feed-forward's, half as wide as what it keeps; the block, if it is recomputed."""
        if not self.learns:
            return 0
        gradients = self.stream + self.half * self.branch_tokens * self.hidden // 2
        if not self.checkpointing:
            return gradients
        # Without subsets its first norm's input is the stream before it, which has been kept.
        return gradients + self.block_activations() - (0 if self.subsets else self.stream)

    def teacher(self) -> int:
        """A block without gradients: four times the stream (at the start, before the block, within, normed)."""
        return self.teacher_tokens * (4 * FULL * self.shape.embed_dim + self.half * self.hidden)


# -------------------------------------------------------------------- heads and losses


@dataclass(frozen=True)
class _Head:
    """A head, and how much it is asked for."""

    prototypes: int
    bottleneck: int
    hidden: int
    tokens: int
    """The student's that it maps."""
    teacher_tokens: int

    @property
    def matrix(self) -> int:
        """Bytes of the prototypes, fp32."""
        return FULL * self.prototypes * self.bottleneck


def _heads(student: Branch, patch: int, config: PretrainConfig, images: int) -> tuple[_Head, _Head]:
    """The heads for class tokens and for patch tokens; they may be the same."""
    crops, masks = config.crops, config.masks
    views = GLOBAL_VIEWS + crops.local_count
    patches = GLOBAL_VIEWS * images * (crops.global_size // patch) ** 2
    # On average: block masks fall a little short of it, and a GPU's part of a step's masks varies.
    masked = round(patches * masks.share * sum(masks.ratios) / 2)
    dino, ibot = (_sizes(head) for head in student.heads)
    return (
        _Head(*dino, tokens=views * images, teacher_tokens=GLOBAL_VIEWS * images),
        _Head(*ibot, tokens=masked, teacher_tokens=masked),
    )


def _sizes(head: PrototypeHead | None) -> tuple[int, int, int]:
    """Prototypes, bottleneck, hidden."""
    assert head is not None
    prototypes, bottleneck = head.last_layer.weight_v.shape
    return prototypes, bottleneck, next(m.out_features for m in head.mlp if isinstance(m, nn.Linear))


def _kept_by_heads(heads: Iterable[_Head], width: int, half: int) -> int:
    """Per token, inputs of three linear layers and two GELUs, then the bottleneck before its norm and its gradient.

    Of the prototypes their directions, for the gradient of the lengths; and their gradients, which losses have ready.
    """
    per_token = [half * (width + 4 * head.hidden) + 2 * FULL * head.bottleneck for head in heads]
    tokens = sum(head.tokens * size for head, size in zip(heads, per_token, strict=True))
    return tokens + sum(2 * head.matrix for head in heads)


def _held_by_losses(heads: Iterable[_Head]) -> int:
    """Unit vectors and prototypes of both branches."""
    vectors = sum(FULL * (head.tokens + head.teacher_tokens) * head.bottleneck for head in heads)
    return vectors + sum(2 * head.matrix for head in heads)


def _chunks(dino: _Head, ibot: _Head, chunk: int) -> int:
    """The [chunk, K] matrices that are there at once, fp32.

    Cross-entropy has three, of whole images with all their views; Sinkhorn-Knopp two.
    """
    images = dino.teacher_tokens // GLOBAL_VIEWS
    views = dino.tokens // images
    class_rows = max(3 * views * min(images, max(1, chunk // views)), 2 * min(chunk, dino.teacher_tokens))
    return FULL * max(class_rows * dino.prototypes, 3 * min(chunk, ibot.tokens) * ibot.prototypes)
