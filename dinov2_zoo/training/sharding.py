"""Fully sharded data parallelism: torch's `fully_shard`, branch by branch.

accelerate's `prepare` takes one model, and we have three (student, EMA, frozen teacher); it has no FSDP on CPU and does
not say so. From accelerate's FSDP plugin we take settings and nothing else.
"""

from typing import cast

import torch
import torch.distributed as dist
from accelerate import FullyShardedDataParallelPlugin
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from dinov2_zoo.errors import TrainingError

# Unit of sharding inside a branch: our transformer block, and timm's, bear this class name.
BLOCK = "Block"


def device_mesh(device: torch.device, world_size: int, replicas: int = 1) -> DeviceMesh:
    """How the processes hold a branch: as shards of one copy or, with several replicas, hybrid.

    Hybrid sharding is shards within a group (a machine), and copies across groups. The mesh is made explicitly, for
    torch's default would take the GPU even where we were told to stay on the CPU.
    """
    sizes = (replicas, world_size // replicas) if replicas > 1 else (world_size,)
    return init_device_mesh(device.type, sizes, mesh_dim_names=("copy", "data")[-len(sizes) :])


def shard(
    module: nn.Module, mesh: DeviceMesh, plugin: FullyShardedDataParallelPlugin | None = None, *, half: bool = False
) -> None:
    """Shard each child of a module (student, EMA, teacher) over the processes, in place.

    Each child becomes a root of its own, its blocks inside it, so it must be called through its `forward`. One that is
    sharded already, a teacher of several modules, stays as it is.

    Args:
        module: On its device.
        mesh: The processes, see `device_mesh`.
        plugin: accelerate's settings: `fsdp_reshard_after_forward` decides whether blocks are freed between forward and
            backward; without a plugin they stay gathered, which costs memory and saves time.
        half: Blocks travel and compute in bf16 (see `Runtime.half_blocks`).
    """
    names = {BLOCK, *((plugin.transformer_cls_names_to_wrap or ()) if plugin else ())}
    reshard = bool(plugin.reshard_after_forward) if plugin else False
    # Blocks travel and compute in bf16. Inputs are not cast, so that the residual stream stays fp32, just as under
    # autocast on one process. What is outside the blocks (positions, final norm, heads with their prototypes) is small
    # or sensitive: it is gathered in fp32 and autocast decides. On CPU autocast decides everywhere, because there
    # layer_norm does not take bf16 weights with fp32 inputs.
    block_policy, root_policy = MixedPrecisionPolicy(), MixedPrecisionPolicy()
    if half:
        block_policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, torch.float32, cast_forward_inputs=False)
        root_policy = MixedPrecisionPolicy(None, torch.float32, torch.float32, cast_forward_inputs=False)
    for branch in unsharded(module):
        for block in [m for m in branch.modules() if type(m).__name__ in names]:
            fully_shard(block, mesh=mesh, reshard_after_forward=reshard, mp_policy=block_policy)
        fully_shard(branch, mesh=mesh, reshard_after_forward=reshard, mp_policy=root_policy)


def unsharded(module: nn.Module) -> list[nn.Module]:
    """Children of a module that have parameters and are not sharded yet."""
    children = [child for child in module.children() if next(child.parameters(), None) is not None]
    return [child for child in children if not isinstance(child, FSDPModule)]


def check_same_weights(module: nn.Module, device: torch.device) -> None:
    """Raise on every process if one holds other weights: shards of different copies would be a patchwork, silently.

    Looks at the children that are about to be sharded.

    Raises:
        TrainingError: They differ.
    """
    total = torch.zeros((), dtype=torch.float64, device=device)
    for tensor in (parameter for child in unsharded(module) for parameter in child.parameters()):
        total += tensor.detach().double().sum()
    spread = torch.stack([total, -total])
    dist.all_reduce(spread, dist.ReduceOp.MAX)
    if spread.sum().item() != 0:
        raise TrainingError(
            "The processes start from different weights: make models after Runtime, which seeds them alike."
        )


def gather_state_dict(branch: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of a sharded branch as whole CPU tensors, on rank 0. Every process must call it."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    # Unsharded, torch hands out the live tensors when they are on the CPU already.
    return cast(dict[str, Tensor], get_model_state_dict(branch, options=options))
