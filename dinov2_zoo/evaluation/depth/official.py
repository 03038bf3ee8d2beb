"""The released depth and segmentation heads: their names for the weights, and ours."""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dinov2_zoo.errors import CheckpointError

# Official name to ours; a rule for each kind of head's part. Numbers of levels and fusions are kept.
RULES = (
    (r"reassemble_blocks\.readout_projects\.(\d)\.0\.", r"reassemble.\1.readout."),
    (r"reassemble_blocks\.projects\.(\d)\.conv\.", r"reassemble.\1.project."),
    (r"reassemble_blocks\.resize_layers\.(\d)\.", r"reassemble.\1.resize."),
    (r"convs\.(\d)\.conv\.", r"reassemble.\1.smooth."),
    (r"fusion_blocks\.(\d)\.res_conv_unit1\.conv1\.conv\.", r"fusion.\1.level.first."),
    (r"fusion_blocks\.(\d)\.res_conv_unit1\.conv2\.conv\.", r"fusion.\1.level.second."),
    (r"fusion_blocks\.(\d)\.res_conv_unit2\.conv1\.conv\.", r"fusion.\1.merged.first."),
    (r"fusion_blocks\.(\d)\.res_conv_unit2\.conv2\.conv\.", r"fusion.\1.merged.second."),
    (r"fusion_blocks\.(\d)\.project\.conv\.", r"fusion.\1.project."),
    (r"project\.conv\.", r"project."),
    (r"conv_depth\.head\.0\.", r"narrow."),
    (r"conv_depth\.head\.2\.", r"thin."),
    (r"conv_depth\.head\.4\.", r"depth."),
    (r"conv_depth\.(?!head)", r"conv_depth."),
    (r"bn\.", r"norm."),
    (r"conv_seg\.", r"conv."),
)


def load_official(head: nn.Module, path: Path) -> None:
    """Load a released head's file into a head of the same kind.

    Args:
        head: `BinsHead`, `DptHead` or the segmentation head.
        path: A .pth file with `decode_head...` names, alone or under "state_dict".

    Raises:
        CheckpointError: The file cannot be read, or its names or shapes do not fit the head; names them.
    """
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever a damaged file makes it stumble over
        raise CheckpointError(f"{path} cannot be read ({type(error).__name__}): fetch it again.") from error
    official = content.get("state_dict", content)
    found = {name.removeprefix("decode_head."): tensor for name, tensor in official.items()}
    ours = from_official({name: t for name, t in found.items() if not _leftover(name, found)})
    want = head.state_dict()
    lacking, surplus = sorted(want.keys() - ours.keys()), sorted(ours.keys() - want.keys())
    if lacking or surplus:
        raise CheckpointError(
            f"{path} is no head of this kind: it lacks {lacking[:3]} and has {surplus[:3]} besides. Use another head "
            "or file: linear, linear4 and dpt do not mix."
        )
    wrong = [name for name in want if want[name].shape != ours[name].shape]
    if wrong:
        name = wrong[0]
        raise CheckpointError(
            f"{path} is of another size: {name} is {tuple(ours[name].shape)} there and {tuple(want[name].shape)} here. "
            "Use the head that was trained for this backbone."
        )
    head.load_state_dict(ours)


def from_official(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Official names, without `decode_head.`, to ours; an unknown name stays as it is."""
    return {_ours(name): tensor for name, tensor in weights.items()}


def _ours(name: str) -> str:
    for pattern, ours in RULES:
        new, count = re.subn(f"^{pattern}", ours, name)
        if count:
            return new
    return name


def _leftover(name: str, found: dict[str, Tensor]) -> bool:
    """The original's base class makes a `conv_seg` or `conv_depth` that heads of the other kind never use."""
    dpt = any(other.startswith("reassemble_blocks.") for other in found)
    return dpt and (name.startswith("conv_seg.") or name in ("conv_depth.weight", "conv_depth.bias"))
