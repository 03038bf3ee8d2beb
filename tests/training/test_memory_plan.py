"""The plan against what torch holds: weights and optimizer, tensors saved for the backward pass, the fullest moments.

Here on one process, CPU, bf16 autocast. By reading, CUDA saves the same but for one tensor: on CPU attention goes group
by group, and the groups' results are laid together (`one_kernel=False`). bf16 copies of weights are counted apart.
"""

import weakref
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dinov2_zoo.arguments import parse
from dinov2_zoo.config import (
    CropConfig,
    HeadConfig,
    LoaderConfig,
    ModelConfig,
    OptimConfig,
    PretrainConfig,
    RuntimeConfig,
    SelfDistillationConfig,
)
from dinov2_zoo.data.batch import Batch
from dinov2_zoo.errors import ConfigError
from dinov2_zoo.hub.build import build_self_distillation
from dinov2_zoo.models.branch import Branch
from dinov2_zoo.models.heads import PrototypeHead
from dinov2_zoo.models.vision_transformer import VisionTransformer
from dinov2_zoo.objectives.self_distillation import SelfDistillation
from dinov2_zoo.training.ema import local_shards, update_ema
from dinov2_zoo.training.memory_plan import memory_plan
from dinov2_zoo.training.runtime import Runtime
from dinov2_zoo.training.state import TrainState

RECIPES = Path(__file__).parents[2] / "recipes"


def settings(drop_path=0.4, *, local=4, images=10, prototypes=256, tied=False, accumulate=1, **runtime):
    runtime = {"precision": "bf16", "cpu": True} | runtime
    return PretrainConfig(
        crops=CropConfig(global_size=112, local_size=56, local_count=local),
        loader=LoaderConfig(batch_size=images),
        dino_head=HeadConfig(prototypes, hidden=96, bottleneck=48),
        ibot_head=HeadConfig(prototypes, hidden=80, bottleneck=32),
        self_distillation=SelfDistillationConfig(drop_path=drop_path, tied_heads=tied),
        optim=OptimConfig(steps=10, warmup_steps=1, accumulate=accumulate),
        runtime=RuntimeConfig(**runtime),
    )


def build(config, ffn="swiglu", *, depth=4):
    """Widths that no number of tokens equals."""
    torch.manual_seed(0)
    backbone = VisionTransformer(ModelConfig(128, depth, num_heads=2, img_size=112, ffn=ffn, num_registers=4))
    backbone.checkpoint_blocks = config.runtime.activation_checkpointing  # as `Runtime.shard` does
    dino, ibot = (PrototypeHead(128, head) for head in (config.dino_head, config.ibot_head))
    tied = config.self_distillation.tied_heads
    branch = Branch(backbone, dino=dino, ibot=None if tied else ibot, tied=tied)
    return SelfDistillation(branch, config.losses, config.self_distillation)


def batch(config, images=None):
    """As many masked patches as the plan expects on average."""
    images, crops = images or config.loader.batch_size, config.crops
    masks = torch.zeros(2 * images * 64, dtype=torch.bool)
    masks[torch.randperm(len(masks))[: round(len(masks) * 0.15)]] = True
    return Batch(
        torch.randn(2, images, 3, crops.global_size, crops.global_size),
        torch.randn(crops.local_count, images, 3, crops.local_size, crops.local_size),
        torch.arange(images),
        torch.arange(images),
    ).hiding(masks.view(2, images, 64))


def start(module, config):
    state = TrainState.start(module, config.optim, global_batch=config.loader.batch_size)
    state.schedules.apply(state.optimizer, 1)
    return state


def moments_of(state):
    """AdamW's moments; its step counters are not on the GPU."""
    return [t for kept in state.optimizer.state.values() for t in kept.values() if t.ndim]


def size(tensors):
    return sum(t.nbytes for t in tensors)


@pytest.mark.parametrize("tied", [False, True])
def test_weights_gradients_and_optimizer_are_what_torch_holds_after_a_step(tied):
    config = settings(tied=tied)
    module = build(config)
    state = start(module, config)
    module(batch(config))["loss"].backward()
    state.optimizer.step()
    plan = memory_plan(module, config, 1)
    assert plan.parameters == size(module.student.parameters())
    assert plan.average == size(module.ema.parameters())
    assert plan.gradients == size(p.grad for p in module.student.parameters())
    assert plan.optimizer == size(moments_of(state))


def kept(plan):
    return plan.activations + plan.final_norm + plan.heads


def saved_bytes(module, inputs, autocast):
    """Storages that a forward pass saves for the backward pass, each once, without weights and their bf16 copies."""
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}
    shapes = {s for p in module.student.parameters() if p.ndim > 1 for s in (p.shape, p.T.shape if p.ndim == 2 else ())}
    storages = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        copy = tensor.dtype == torch.bfloat16 and tensor.shape in shapes
        if not copy and storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage  # held, so that no other one gets its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast:
        module(inputs)
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("drop_path", [0.0, 0.4])
@pytest.mark.parametrize("ffn", ["mlp", "swiglu"])
def test_activations_are_what_autograd_saves(ffn, drop_path, checkpointing):
    config = settings(drop_path, activation_checkpointing=checkpointing)
    module = build(config, ffn)
    plan = memory_plan(module, config, 1, one_kernel=False)
    saved = saved_bytes(module, batch(config), torch.autocast("cpu", torch.bfloat16))
    assert kept(plan) == pytest.approx(saved, rel=0.02)


@pytest.mark.parametrize("changes", [{"local": 0}, {"tied": True}, {"prototypes": 4096}, {"precision": "fp32"}])
def test_activations_of_other_settings(changes):
    config = settings(**changes)
    module = build(config)
    plan = memory_plan(module, config, 1, one_kernel=False)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=config.runtime.precision == "bf16")
    assert kept(plan) == pytest.approx(saved_bytes(module, batch(config), autocast), rel=0.02)


def test_a_frozen_backbone_keeps_its_result_only():
    config = settings(0.0)
    module = build(config)
    module.student.backbone.requires_grad_(False)
    plan = memory_plan(module, config, 1, one_kernel=False)
    heads = [p for n, p in module.student.named_parameters() if not n.startswith("backbone")]
    assert plan.gradients == size(heads) and plan.optimizer == 2 * size(heads)
    saved = saved_bytes(module, batch(config), torch.autocast("cpu", torch.bfloat16))
    assert plan.activations == plan.block == 0 and plan.heads == pytest.approx(saved, rel=0.02)


class Live(TorchDispatchMode):
    """Counts bytes of all tensors that operations make, and the most that are alive at once; `known` ones count 0."""

    def __init__(self, known):
        super().__init__()
        self.bytes, self.most = 0, 0
        self.storages = {tensor.untyped_storage()._cdata: 0 for tensor in known}

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        out = operation(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())
        return out

    def _add(self, storage):
        key = storage._cdata
        if key not in self.storages:
            self.storages[key] = storage.nbytes()
            self.bytes += storage.nbytes()
            self.most = max(self.most, self.bytes)
            weakref.finalize(storage, self._drop, key)

    def _drop(self, key):
        self.bytes -= self.storages.pop(key)

    def take(self):
        """The most since the last call."""
        most, self.most = self.most, self.bytes
        return most


@pytest.mark.parametrize(
    ("checkpointing", "drop_path", "prototypes", "local"),
    [(False, 0.0, 256, 4), (False, 0.4, 256, 4), (True, 0.0, 256, 4), (True, 0.4, 16384, 4), (True, 0.4, 16384, 0)],
)
def test_fullest_moments_of_a_step(checkpointing, drop_path, prototypes, local):
    config = settings(drop_path, local=local, prototypes=prototypes, activation_checkpointing=checkpointing)
    module = build(config)
    state, inputs = start(module, config), batch(config)
    crops = size([inputs.global_crops, inputs.local_crops])

    def step(live):
        with torch.autocast("cpu", torch.bfloat16):
            loss = module(inputs)["loss"]
        forward = live.take() + crops
        loss.backward()
        backward = live.take()
        state.optimizer.step()
        update = live.take()
        state.optimizer.zero_grad(set_to_none=True)
        update_ema(state.ema, state.student, 0.99)
        return forward, backward, update

    step(Live([]))  # AdamW makes its moments
    with Live([*module.parameters(), *moments_of(state), inputs.global_crops, inputs.local_crops]) as live:
        forward, backward, update = step(live)
    plan = memory_plan(module, config, 1, one_kernel=False)
    moments = {name: need - plan.persistent for name, need in plan.moments.items()}
    assert max(moments["teacher"], moments["loss"]) == pytest.approx(forward, rel=0.05)
    # The losses' own backward pass, when K is large, is no moment of the plan: it needs less than computing them.
    if prototypes < 1000:
        assert moments["backward"] == pytest.approx(backward, rel=0.07)
    assert backward <= plan.total - plan.persistent
    # AdamW goes group by group; the plan takes all weights for one group.
    assert 0.7 * moments["update"] < update < 1.05 * moments["update"]


@pytest.fixture
def four_processes(runtime):
    """This process as one of four; the three others are never heard of, and what is gathered is of the right size."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    runtime.world_size = 4
    yield runtime
    runtime.world_size = 1
    dist.destroy_process_group()


class Resharding:
    """What `Runtime.shard` reads of accelerate's FSDP plugin."""

    reshard_after_forward, transformer_cls_names_to_wrap = True, ["Block"]


def gathered_bytes(branch):
    """Bytes of the weights that FSDP holds gathered now."""
    wholes = {}
    for module in branch.modules():
        if isinstance(module, FSDPModule):
            for parameter in module._get_fsdp_state()._fsdp_param_group.fsdp_params:
                for whole in parameter.all_gather_outputs:
                    wholes[whole.untyped_storage()._cdata] = whole.untyped_storage().nbytes()
    return sum(wholes.values())


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module")
@pytest.mark.parametrize("reshard", [False, True])
def test_shards_and_gathered_weights_are_fsdps(four_processes, reshard):
    runtime: Runtime = four_processes
    runtime._fsdp = Resharding() if reshard else None
    config = settings(precision="fp32", images=12)  # on CPU, FSDP gathers in fp32
    module = build(config)
    plan = memory_plan(module, config, 4, reshard=reshard)
    runtime.shard(module)
    state = start(module, config)
    assert plan.parameters == size(local_shards(module.student.parameters()))
    assert plan.average == size(local_shards(module.ema.parameters()))
    loss = module(batch(config, plan.images))["loss"]
    held = gathered_bytes(module.student), gathered_bytes(module.ema)
    if reshard:
        assert held == (0, 0) == (0, plan.gathered_average)
    else:
        assert held == (plan.gathered, plan.gathered_average)
    loss.backward()
    assert gathered_bytes(module.student) == 0 and gathered_bytes(module.ema) == held[1]
    assert plan.gradients == size(local_shards(p.grad for p in module.student.parameters()))
    state.optimizer.step()
    assert plan.optimizer == size(local_shards(moments_of(state)))


def test_parts_follow_the_settings():
    config = settings(images=12)
    module = build(config)
    one, four = (memory_plan(module, config, gpus) for gpus in (1, 4))
    assert (one.images, four.images) == (12, 3)
    assert one.gathered == 0 < four.gathered and four.copies < one.copies
    assert memory_plan(module, config, 4, reshard=True).total < four.total
    twice = memory_plan(module, settings(images=12, accumulate=2), 2)
    assert (twice.images, twice.accumulated) == (3, one.gradients) and one.accumulated == 0
    with pytest.raises(ConfigError, match="does not divide among 5 GPUs"):
        memory_plan(module, config, 5)


def test_the_papers_teacher_is_planned_without_allocating():
    config, _ = parse(PretrainConfig, ["--config", str(RECIPES / "configs/vitg14.yaml"), "--data", "x"])
    with torch.device("meta"):
        module = build_self_distillation(config)
    assert all(t.is_meta for t in [*module.parameters(), *module.buffers()])
    backbone = module.student.backbone
    released = sum(p.numel() for p in backbone.parameters()) + (37**2 - 16**2) * 1536  # positions of 518 pixels
    assert released == 1_136_480_768  # from the published shapes
    assert module.student.dino.count == module.student.ibot.count == 131_072
    plans = [memory_plan(module, config, gpus) for gpus in (8, 32, 128)]
    totals = [plan.total for plan in plans]
    assert totals == sorted(totals, reverse=True) and totals[-1] > 10 * 2**30 and totals[0] < 141e9
    assert plans[0].parameters == pytest.approx(4 * sum(p.numel() for p in module.student.parameters()) / 8, rel=0.01)
