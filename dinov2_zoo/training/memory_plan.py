"""What one step of pretraining needs on each GPU, from shapes alone: nothing is allocated.

Memory is fullest at one of three moments, and the parts below are not all there at each of them:

- *loss*: the student has run and left its activations; the losses form their [chunk, K] matrices;
- *backward*: activations are still whole when the last block, the first in line, is recomputed and differentiated;
- *update*: activations are gone; gradients are complete, and AdamW has a temporary of their size.

Left out, because they are small or none of torch's tensors: the CUDA context, cuBLAS and NCCL (1 to 2 GiB together),
fragmentation, the teacher's own forward pass (nothing of it is kept, and it is over before the losses begin), KoLeo,
health figures, EMA centres, and what `torch.compile` saves by fusing. `tests/training/test_memory_plan.py` holds the
rest to what torch really keeps.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dinov2_zoo.config import ModelConfig, PretrainConfig
from dinov2_zoo.errors import ConfigError
from dinov2_zoo.models.branch import Branch
from dinov2_zoo.models.packing import Packing
from dinov2_zoo.models.vision_transformer import VisionTransformer
from dinov2_zoo.objectives.self_distillation import SelfDistillation

FULL = 4
"""Bytes of an fp32 number: master weights, average, gradients, residual stream, norms, everything in the losses."""
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
    """Reduced gradients, fp32 shards."""
    accumulated: int
    """Whole fp32 gradients, kept from micro-batch to micro-batch: 0 without accumulation."""
    unreduced: int
    """Gradients on their way to the shards while activations are whole."""
    gathered: int
    """The student's weights as its products read them."""
    gathered_average: int
    """The same of the average."""
    activations: int
    """What the backbone keeps for its backward pass."""
    block: int
    """What the backward pass of one block has beside: gradients of activations and, with activation checkpointing,
    the block's recomputed activations."""
    heads: int
    """What the student's heads and losses keep for their backward pass."""
    outputs: int
    """Crops, prototypes and the teacher's tokens: at hand while the losses are computed, then dropped."""
    chunks: int
    """The [chunk, K] matrices that are alive at once in the losses."""

    @property
    def persistent(self) -> int:
        """What never leaves."""
        return self.parameters + self.average + self.optimizer

    @property
    def moments(self) -> dict[str, int]:
        """Need at each of the moments when memory is fullest."""
        weights = self.persistent + self.gathered + self.gathered_average
        return {
            "loss": weights + self.accumulated + self.activations + self.heads + self.outputs + self.chunks,
            "backward": weights + self.accumulated + self.unreduced + self.activations + self.block,
            "update": self.persistent + self.gathered_average + 2 * self.gradients,
        }

    @property
    def total(self) -> int:
        """Need at the fullest moment."""
        return max(self.moments.values())


def memory_plan(
    module: SelfDistillation,
    config: PretrainConfig,
    gpus: int,
    *,
    reshard: bool = False,
    one_kernel: bool = True,
) -> MemoryPlan:
    """Memory per GPU of one optimizer step of `recipes/pretrain.py`.

    Args:
        module: As the recipe builds it, best on the meta device.
        config: What it was built from. Precision "auto" is taken for bf16, which any GPU in question has.
        gpus: Processes, each with one GPU.
        reshard: Blocks are freed between forward and backward (accelerate's FSDP file, `Runtime.shard`).
        one_kernel: Attention takes crops of several sizes in one kernel, as on CUDA; else (`sdpa`) it goes group by
            group, and the groups' results are held once more, laid together.

    Raises:
        ConfigError: The batch does not divide among GPUs and micro-batches.
    """
    images, rest = divmod(config.loader.batch_size, gpus * config.optim.accumulate)
    if rest or not images:
        raise ConfigError(
            f"loader.batch_size {config.loader.batch_size} does not divide among {gpus} GPUs x "
            f"{config.optim.accumulate} micro-batches: choose a number of GPUs that divides it."
        )
    half = FULL if config.runtime.precision == "fp32" else 2
    student, backbone = module.student, module.student.backbone
    assert isinstance(backbone, VisionTransformer)
    network = _Network(backbone, config, images, half, one_kernel)
    trained = [p for p in student.parameters() if p.requires_grad]
    gradients = shards(trained, gpus)
    return MemoryPlan(
        images=images,
        parameters=shards(student.parameters(), gpus),
        average=shards(module.ema.parameters(), gpus),
        optimizer=2 * gradients,
        gradients=gradients,
        accumulated=FULL * _count(trained) if config.optim.accumulate > 1 else 0,
        unreduced=_unreduced(student, backbone, gpus, half),
        gathered=_gathered(student, backbone, gpus, half, reshard),
        gathered_average=0 if gpus == 1 or reshard else _whole(student, backbone, half),
        activations=network.kept(),
        block=network.backward_of_a_block(),
        heads=_heads(student, config, images, half),
        outputs=_outputs(student, backbone, config, images),
        chunks=_chunks(student, config, images),
    )


# -------------------------------------------------------------------- weights and gradients


def shards(parameters: Iterable[Tensor], gpus: int) -> int:
    """Fp32 bytes of one GPU's part; `fully_shard` cuts the first dimension and pads the last part to equal length."""
    return FULL * sum(math.ceil(len(p) / gpus) * (p.numel() // len(p)) for p in parameters)


def _count(parameters: Iterable[Tensor]) -> int:
    return sum(p.numel() for p in parameters)


def _outside_blocks(student: Branch, backbone: VisionTransformer) -> list[nn.Parameter]:
    inside = {id(p) for p in backbone.blocks.parameters()}
    return [p for p in student.parameters() if id(p) not in inside]


def _whole(branch: Branch, backbone: VisionTransformer, half: int) -> int:
    """A gathered branch: blocks in bf16; what is outside of them (positions, heads, prototypes) in fp32."""
    return half * _count(backbone.blocks.parameters()) + FULL * _count(_outside_blocks(branch, backbone))


def _gathered(student: Branch, backbone: VisionTransformer, gpus: int, half: int, reshard: bool) -> int:
    """The student's weights as its products read them.

    Autocast makes bf16 copies of fp32 weights that take part in products, and keeps those that learn. On one GPU these
    are all layers; on several the blocks arrive in bf16, and there remain those outside. Resharded, a block is there
    only while it is used; the next is fetched meanwhile, through a buffer of the same size.
    """
    inside = {id(m) for m in backbone.blocks.modules()}
    layers = [m for m in student.modules() if isinstance(m, nn.Linear | nn.Conv2d) and (gpus == 1 or id(m) not in inside)]
    copies = 0 if half == FULL else half * _count(p for m in layers for p in m.parameters() if p.requires_grad)
    if gpus == 1:
        return copies
    if not reshard:
        return copies + _whole(student, backbone, half)
    return copies + 3 * half * _count(backbone.blocks[0].parameters()) + FULL * _count(_outside_blocks(student, backbone))


def _unreduced(student: Branch, backbone: VisionTransformer, gpus: int, half: int) -> int:
    """Gradients that are there when the first block is differentiated.

    What is outside the blocks is reduced at the end of the backward pass only, so its whole gradient waits. A block's
    comes in the precision of its weights and is copied to fp32 to be reduced, while the previous block's still is.
    """
    outside = FULL * _count(p for p in _outside_blocks(student, backbone) if p.requires_grad)
    block = _count(p for p in backbone.blocks[0].parameters() if p.requires_grad)
    return outside + (FULL * block if gpus == 1 else (half + 2 * FULL) * block)


# -------------------------------------------------------------------- backbone


class _Network:
    """Activations of a backbone in one packed pass over all crops."""

    def __init__(
        self, backbone: VisionTransformer, config: PretrainConfig, images: int, half: int, one_kernel: bool
    ) -> None:
        crops, rate = config.crops, config.self_distillation.drop_path
        sizes = [(GLOBAL_VIEWS, crops.global_size), (crops.local_count, crops.local_size)]
        groups = [torch.empty(views * images, 3, side, side, device="meta") for views, side in sizes if views]
        packing = backbone.packing(groups)
        # As `draw_subsets`: a branch runs on so many sequences of each group, in fp32 indices and scales for each token.
        kept = Packing(tuple((max(1, int(n * (1 - rate))), tokens) for n, tokens in packing.groups))
        self.tokens, self.kept_tokens, self.subsets = sum(packing.lengths), sum(kept.lengths), rate > 0
        self.pixels = sum(group.numel() for group in groups)
        self.shape: ModelConfig = backbone.config
        self.half = half
        self.laid_together = len(packing.groups) > 1 and not one_kernel
        self.checkpointing = backbone.checkpoint_blocks
        self.learns = any(p.requires_grad for p in backbone.parameters())

    def attention(self) -> int:
        """Bytes that the first branch of a block keeps per token."""
        width = self.shape.embed_dim
        norm = FULL * (width + 2)  # its input, mean and deviation
        # Inputs of qkv and of proj; q, k, v; LayerScale's input. Attention's own result is proj's input.
        products = self.half * (width + 3 * width + width + width)
        again = self.half * width if self.laid_together else 0
        return norm + products + again + FULL * self.shape.num_heads  # and each head's log-sum-exp

    def feed_forward(self) -> int:
        """Bytes that the second branch of a block keeps per token."""
        width, hidden = self.shape.embed_dim, self.shape.ffn_hidden
        norm = FULL * (width + 2)
        # MLP: GELU's input, its output. SwiGLU: both halves (2), silu(first half), the product.
        wide = 2 * hidden if self.shape.ffn == "mlp" else 4 * hidden
        return norm + self.half * (width + wide + width)

    def block(self) -> int:
        """What one block keeps. With subsets only their tokens: the stream itself is not needed, adding is linear."""
        return self.kept_tokens * (self.attention() + self.feed_forward())

    def kept(self) -> int:
        """What the backbone keeps: its blocks' activations, or with checkpointing the stream before each of them."""
        stream = FULL * self.tokens * self.shape.embed_dim
        # The crops as the patch embedding reads them; the final norm's input and result.
        ends = self.half * self.pixels + 2 * stream
        if not self.learns:
            return stream
        if self.checkpointing:
            return ends + self.shape.depth * stream
        indices = 2 * self.shape.depth * self.kept_tokens * 8 if self.subsets else 0
        return ends + self.shape.depth * self.block() + indices

    def backward_of_a_block(self) -> int:
        """The stream's gradient, the widest layer's gradients, and with checkpointing the block, recomputed."""
        if not self.learns:
            return 0
        width, hidden = self.shape.embed_dim, self.shape.ffn_hidden
        stream = FULL * self.tokens * width
        # Gradients at both sides of GELU; of SwiGLU's two factors and, laid together, of the packed product.
        wide = max(6 * width, 2 * hidden if self.shape.ffn == "mlp" else 4 * hidden)
        return stream + self.half * self.kept_tokens * wide + (self.block() if self.checkpointing else 0)


# -------------------------------------------------------------------- heads and losses


def _masked(student: Branch, config: PretrainConfig, images: int) -> int:
    """Patches that iBOT is asked about: on average; block masks fall a little short of it."""
    side = config.crops.global_size // student.backbone.patch_size
    low, high = config.masks.ratios
    return round(GLOBAL_VIEWS * images * side**2 * config.masks.share * (low + high) / 2)


def _heads(student: Branch, config: PretrainConfig, images: int, half: int) -> int:
    """What the student's heads and losses keep."""
    views = GLOBAL_VIEWS + config.crops.local_count
    groups = 1 + (config.crops.local_count > 0)
    total = 0
    # DINO computes prototypes for each group of crops, and its cross-entropy keeps their gradient for each view.
    counts = ((views * images, groups, views), (_masked(student, config, images), 1, 1))
    for head, (tokens, computed, losses) in zip(student.heads, counts, strict=True):
        assert head is not None
        prototypes = head.last_layer.weight_v.numel()
        width, bottleneck = head.last_layer.weight_v.shape[1], 0
        del width, bottleneck
        total += tokens * (half + FULL) + prototypes * (computed + losses)
    return total


def _outputs(student: Branch, backbone: VisionTransformer, config: PretrainConfig, images: int) -> int:
    return 0


def _chunks(student: Branch, config: PretrainConfig, images: int) -> int:
    return 0
