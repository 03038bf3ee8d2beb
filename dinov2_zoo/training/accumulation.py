"""Gradient accumulation for losses that look at all images of a step together: what one large batch gives.

Sinkhorn-Knopp and the centre balance the teacher over a batch; KoLeo, relations and neighbours compare its images. A
loss of each micro-batch alone is another loss. So every micro-batch passes through the student twice (gradient caching,
Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup"):

1. without a graph, in turn; only what the loss reads is kept;
2. the loss of all of it, once, and its gradient with respect to what was kept;
3. with a graph, in turn: that gradient goes on backward from there.

It is exact: the chain rule, cut at the student's outputs. It costs one more forward pass of the student.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map, tree_map_only

from dinov2_zoo.data.batch import Batch
from dinov2_zoo.models.tokens import BranchOutput, HeadOutput, tensors_in
from dinov2_zoo.objectives.step_loss import StepLoss


def couples_images(module: nn.Module) -> TypeGuard[StepLoss]:
    """Whether accumulated micro-batches need a `CachedStep` to give what one large batch gives."""
    return isinstance(module, StepLoss) and module.couples_images


class CachedStep:
    """One step of a module, its micro-batches one after the other.

    Args:
        module: In training.
        autocast: Precision of the student's passes.
    """

    def __init__(self, module: StepLoss, autocast: Callable[[], AbstractContextManager[object]]) -> None:
        self._module = module
        self._autocast = autocast
        self._batches: list[Batch] = []
        self._taught: list[Any] = []
        self._seen: list[Sequence[BranchOutput]] = []

    def __len__(self) -> int:
        return len(self._batches)

    def add(self, batch: Batch, taught: Any) -> None:
        """First pass of a micro-batch, on the device; the teacher's answer is kept with it."""
        with torch.no_grad(), _unmoved(self._module.student), self._passing(batch):
            found = self._module.look(batch)
        self._seen = [
            *_without_prototypes(self._seen),
            tree_map_only(Tensor, lambda x: x.detach().requires_grad_(), found),
        ]
        self._taught = [*_without_prototypes(self._taught), taught]
        self._batches.append(batch)

    def backward(self, before_each: Callable[[bool], None]) -> dict[str, Tensor]:
        """Second pass of all of them, which adds the step's gradient to the student's parameters.

        Args:
            before_each: Called before each micro-batch's second pass; True: it is the last.

        Returns:
            The loss terms of the whole step, detached.
        """
        terms = self._module.compare(self._batches, self._seen, self._taught)
        terms["loss"].backward()
        terms = {name: term.detach() for name, term in terms.items()}
        gradients = [[leaf.grad for leaf in tensors_in(seen)] for seen in self._seen]
        self._seen, self._taught = [], []  # room for the passes with a graph
        for number, (batch, kept) in enumerate(zip(self._batches, gradients, strict=True), 1):
            before_each(number == len(self))
            with self._passing(batch):
                outputs = tensors_in(self._module.look(batch))
            # A leaf without a gradient is none of the loss; an output without a graph comes from a frozen backbone.
            reached = [(o, g) for o, g in zip(outputs, kept, strict=True) if g is not None and o.requires_grad]
            torch.autograd.backward([o for o, _ in reached], [g for _, g in reached])
        return terms

    @contextmanager
    def _passing(self, batch: Batch) -> Generator[None, None, None]:
        """Both passes draw the same: networks of timm's may have dropped paths, from torch's own generators."""
        device = batch.global_crops.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []), self._autocast():
            torch.manual_seed(int(batch.seeds[0]))
            yield


@contextmanager
def _unmoved(student: nn.Module) -> Generator[None, None, None]:
    """Undo what the block moves of the student's buffers, such as running statistics."""
    before = [(buffer, buffer.clone()) for buffer in student.buffers()]
    yield
    for buffer, value in before:
        buffer.copy_(value)


def _without_prototypes(outputs: Any) -> Any:
    """Outputs that others follow: all have the same [K, d] prototypes, and the last ones' are read."""

    def drop(part: Any) -> Any:
        if not isinstance(part, HeadOutput):
            return part
        return HeadOutput(part.bottleneck, part.prototypes.detach()[:0].clone())

    return tree_map(drop, outputs, is_leaf=lambda part: isinstance(part, HeadOutput))
