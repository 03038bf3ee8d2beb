"""What a step does: every operation with its arithmetic and its traffic, every collective, every byte that is alive.

It stands in front of torch's fake tensors, and answers what these cannot: numbers that the host reads are 0, but for
those that follow from tensors whose values were told (`Watch.tell_zeros`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C import _current_graph_task_id  # pyright: ignore[reportPrivateUsage]
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakIdKeyDictionary

from dinov2_zoo.models.tokens import tensors_in
from dinov2_zoo.simulation.ledger import ACTIVATIONS, COPIES, GRADIENTS, TEMPORARY, Ledger

aten = torch.ops.aten

Precision = Literal["bf16", "tf32", "fp32", "fp64"]
DTYPES: dict[torch.dtype, Precision] = {torch.bfloat16: "bf16", torch.float16: "bf16", torch.float64: "fp64"}

# On CPU, where the simulation runs, the fused attention has names of its own.
FLOPS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[aten._scaled_dot_product_flash_attention],
    aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        aten._scaled_dot_product_flash_attention_backward
    ],
}
FREE = {aten.empty, aten.new_empty, aten.empty_like, aten.empty_strided, aten.detach, aten.alias, aten.lift_fresh}
OVERWRITING = {aten.copy_, aten.fill_, aten.zero_}
NAMES = {
    "_allgather_base_": "all-gather",
    "allgather_": "all-gather",
    "_reduce_scatter_base_": "reduce-scatter",
    "allreduce_": "all-reduce",
}
WEIGHTS = ("weights", "average", "teacher", COPIES)


@dataclass(frozen=True)
class Work:
    """One operation on one process."""

    phase: str
    flops: int
    """Multiplications and additions of matrix products and attention; 0 for all others."""
    traffic: int
    """Bytes read and written."""
    precision: Precision


@dataclass(frozen=True)
class Collective:
    """One collective, as one process sees it."""

    phase: str
    name: str
    """"all-gather", "reduce-scatter", "all-reduce", ..."""
    size: int
    """Bytes of the whole: what is gathered, or what is reduced."""
    ranks: tuple[int, ...]
    """Of the processes that take part."""
    sharding: bool
    """Of weights or their gradients, by FSDP: it runs beside the computation."""


class Watch(TorchDispatchMode):
    """Writes down what passes.

    Args:
        ledger: Of memory.
    """

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self.ledger = ledger
        self.works: list[Work] = []
        self.collectives: list[Collective] = []
        self.phase = "start"
        self._backward = False
        self._told = WeakIdKeyDictionary()

    # ---------------------------------------------------------------- phases

    def forget(self) -> None:
        """Look from now on."""
        self.works, self.collectives = [], []

    def enter(self, phase: str, place: str = "") -> None:
        """What runs from now on: a phase of the step and, within it, a module; all is "backward" within that pass."""
        self.turn()
        self.phase = phase = "backward" if self._backward else phase
        self.ledger.place = f"{phase}, {place}" if place else phase

    def turn(self) -> None:
        """See whether a backward pass has begun or ended, and with it what has been kept for it, or by it."""
        backward = _current_graph_task_id() != -1
        if backward and not self._backward:
            self.ledger.call_temporaries(ACTIVATIONS)
            self.phase = self.ledger.place = "backward"
        elif self._backward and not backward:
            self.ledger.call_temporaries(GRADIENTS)
            self.phase = self.ledger.place = "clipping"
        self._backward = backward

    # ---------------------------------------------------------------- values

    def tell_zeros(self, tensor: Tensor) -> Tensor:
        """Let a simulated tensor be all zero, and what is computed from it what follows from that."""
        with unset_fake_temporarily():
            self._told[tensor] = torch.zeros(tensor.shape, dtype=tensor.dtype)
        return tensor

    def _value(self, operation: Any, args: Any, kwargs: Any) -> Any:
        """What an operation gives in numbers, where all that it is given has some; else None."""
        inputs = tensors_in((args, kwargs))
        if not inputs or not all(t in self._told or not isinstance(t, FakeTensor) for t in inputs):
            for tensor in inputs:
                if operation._schema.is_mutable:
                    self._told.pop(tensor, None)
            return None
        with unset_fake_temporarily():
            args, kwargs = tree_map_only(Tensor, lambda t: self._told.get(t, t), (args, kwargs))
            return operation(*args, **kwargs)

    # ---------------------------------------------------------------- operations

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Carry out one operation on fake tensors, and write it down."""
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # what it does with its shards comes by next
        kwargs = kwargs or {}
        self.turn()
        packet = func.overloadpacket
        value = None if func.namespace == "c10d" else self._value(func, args, kwargs)
        if packet is aten._local_scalar_dense:  # the host reads a number
            unknown = False if args[0].dtype == torch.bool else 0
            return unknown if value is None else value
        out = func(*args, **kwargs)
        inputs, outputs = tensors_in((args, kwargs)), tensors_in(out)
        if value is not None:
            for mine, number in zip(outputs, tensors_in(value), strict=True):
                self._told[mine] = number
        cast = packet is aten._to_copy and self.ledger.kind_of(inputs[0]) in WEIGHTS
        self.ledger.add(outputs, COPIES if cast else TEMPORARY)
        if func.namespace == "fsdp":  # what an all-gather brought, laid out as weights
            self.ledger.call(tensors_in(kwargs.get("out", [])), COPIES)
        if func.namespace == "c10d":
            self._note_collective(packet.__name__, args)
        elif not func.is_view and func.namespace != "prim" and packet not in FREE:
            flops = FLOPS[packet](*args, **kwargs, out_val=out) if packet in FLOPS else 0
            written = outputs or (tensors_in(args[0]) if func._schema.is_mutable else [])  # some return nothing
            read = [t for t in inputs if packet not in OVERWRITING or t is not args[0]]
            traffic = sum(t.nbytes for t in [*read, *written])
            self.works.append(Work(self.phase, flops, traffic, _precision(outputs or inputs)))
        return out

    def _note_collective(self, name: str, args: Sequence[Any]) -> None:
        groups = [a for a in args if isinstance(a, torch.ScriptObject)]
        group = dist.ProcessGroup.unbox(groups[0])  # pyright: ignore[reportAttributeAccessIssue]
        ranks = dist.get_process_group_ranks(group)
        # FSDP uses these two and, among the copies of hybrid sharding, reductions in smaller groups; the losses do not.
        of_fsdp = name in ("_allgather_base_", "_reduce_scatter_base_") or len(ranks) < dist.get_world_size()
        size = max(sum(t.nbytes for t in tensors_in(arg)) for arg in args)
        self.collectives.append(Collective(self.phase, NAMES.get(name, name.strip("_")), size, tuple(ranks), of_fsdp))


def _precision(tensors: Sequence[Tensor]) -> Precision:
    """In which products of these run on a GPU."""
    dtype = tensors[0].dtype if tensors else torch.float32
    if dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32":
        return "tf32"
    return DTYPES.get(dtype, "fp32")
