"""Teachers beside the main one: DINOv2 networks, or any of timm's with one square feature map."""

from collections.abc import Sequence

import timm.data
from torch import nn

from dinov2_zoo.config import DistillConfig
from dinov2_zoo.hub.model import Dinov2Model
from dinov2_zoo.hub.timm_network import open_timm
from dinov2_zoo.models.branch import Branch
from dinov2_zoo.models.students import TIMM, TimmStudent
from dinov2_zoo.models.teacher_view import TeacherView
from dinov2_zoo.objectives.several_teachers import FurtherTeachers


def load_further_teachers(config: DistillConfig, patch: int) -> FurtherTeachers:
    """All teachers of a run but the first.

    Args:
        config: Of the run.
        patch: Of the main teacher, pixels.

    Raises:
        HubError, CheckpointError: One cannot be loaded.
        ConfigError: One does not take the run's crops.
    """
    crops = config.crops
    sides = {crops.global_size, *([crops.local_size] if crops.local_count else [])}
    sides |= set(config.finish.sides(crops.global_size, patch)) if config.finish.share else set()
    loaded = [load_further_teacher(source, sorted(sides)) for source in config.further_teachers.values()]
    return FurtherTeachers(loaded)


def load_further_teacher(source: str, sides: Sequence[int]) -> Branch:
    """One of several teachers, in evaluation mode.

    Args:
        source: As for `Dinov2Model.from_pretrained`; or "timm:NAME", see `open_timm`.
        sides: Of the crops, pixels. It is seen here whether the teacher takes them, resized where it must be.
    """
    if not source.startswith(TIMM):
        backbone = Dinov2Model.from_pretrained(source)
        return Branch(TeacherView(backbone, multiple=backbone.patch_size)).eval()
    net = open_timm(source.removeprefix(TIMM))
    side, multiple = sides_of(net)
    prepared = timm.data.resolve_model_data_config(net)
    network = TimmStudent(
        source.removeprefix(TIMM).partition("@")[0], side or multiple * max(1, sides[-1] // multiple), net
    )
    view = TeacherView(network, multiple=multiple, side=side, mean=prepared["mean"], std=prepared["std"])
    for taken in map(view.takes, sides):
        network.try_size(taken, "set --crops.global_size and --crops.local_size to sizes that it takes")
    return Branch(view).eval()


def sides_of(net: nn.Module) -> tuple[int | None, int]:
    """The one image side that a network of timm's takes, or None; and what its sides are multiples of, pixels."""
    settings: dict[str, object] = net.pretrained_cfg  # pyright: ignore[reportAssignmentType]
    embed = getattr(net, "patch_embed", None)
    if settings.get("fixed_input_size") and getattr(embed, "strict_img_size", True):
        return settings["input_size"][-1], 1  # pyright: ignore[reportIndexIssue]
    # Transformers cut the image into patches; convolutional networks pad what is left over.
    patch = getattr(embed, "patch_size", 1) if settings.get("fixed_input_size") else 1
    return None, patch if isinstance(patch, int) else patch[0]
