"""A batch as the loader makes it, from images of no content, on fake tensors."""

import dataclasses
from typing import Any

from PIL import Image
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from dinov2_zoo.config import DistillConfig, PretrainConfig
from dinov2_zoo.data.batch import Batch
from dinov2_zoo.data.loader import train_loader
from dinov2_zoo.objectives.self_distillation import SelfDistillation

PATCH = 14
"""Side of a patch, pixels, of networks that name none."""


class GreyImages:
    """A source of grey images.

    Args:
        count: How many.
    """

    labels: list[int] | None = None
    classes: list[str] | None = None

    def __init__(self, count: int) -> None:
        self._count = count
        self._image = Image.new("RGB", (64, 64), (128, 128, 128))

    def __len__(self) -> int:
        return self._count

    def read(self, index: int, /) -> Image.Image:
        """The same for all."""
        return self._image

    def name(self, index: int, /) -> str:
        """For messages."""
        return f"grey image {index}"


def micro_batch(config: PretrainConfig | DistillConfig, module: nn.Module, *, processes: int) -> Batch:
    """The first process's first micro-batch of the run's last step, in real numbers.

    Args:
        config: Settled.
        module: Of the run: its patches, and what its stochastic depth leaves out.
        processes: Of the run.
    """
    steps = config.optim.steps
    loader = dataclasses.replace(config.loader, workers=0)
    return next(
        iter(
            train_loader(
                GreyImages(loader.batch_size),
                config.crops,
                loader,
                seed=config.runtime.seed,
                masks=config.masks if isinstance(config, PretrainConfig) else None,
                drop_path=module.drop_path(config.runtime.seed) if isinstance(module, SelfDistillation) else None,
                patch_share=config.objective.patch_share if isinstance(config, DistillConfig) else 1.0,
                # A timm student may have no patches; no masks are drawn for it.
                patch_size=getattr(module.get_submodule("student.backbone"), "patch_size", PATCH),
                accumulate=config.optim.accumulate,
                world_size=processes,
                start_step=steps - 1,
                steps=steps,
            )
        )
    )


def as_fake(batch: Batch, mode: FakeTensorMode) -> tuple[Batch, list[Tensor]]:
    """The same batch with fake tensors in place of those that go to the device; and these.

    What stays on the CPU keeps its numbers, for the step reads them.
    """
    moved = batch.to("meta")
    fakes: list[Tensor] = []

    def convert(mine: Any, theirs: Any) -> Any:
        if isinstance(mine, Tensor) and theirs.is_meta:
            fakes.append(mode.from_tensor(mine))
            return fakes[-1]
        if isinstance(mine, list | tuple):
            parts = [convert(*pair) for pair in zip(mine, theirs, strict=True)]
            return type(mine)(parts)
        if dataclasses.is_dataclass(mine) and not isinstance(mine, type):
            names = [field.name for field in dataclasses.fields(mine)]
            return dataclasses.replace(mine, **{n: convert(getattr(mine, n), getattr(theirs, n)) for n in names})
        return mine

    return convert(batch, moved), fakes
