"""Heads with prototypes, in a file of their own beside a backbone: `heads.safetensors`, under Meta's names."""

from pathlib import Path

from safetensors.torch import save_file

from dinov2_zoo.checkpoints.read import read_tensors
from dinov2_zoo.config import HeadConfig
from dinov2_zoo.errors import CheckpointError
from dinov2_zoo.models.heads import PrototypeHead

HEADS_FILE = "heads.safetensors"

HOW_TO_GET = (
    "Meta published no heads: give those of a teacher that you trained with --heads FILE, "
    "try untrained ones with --heads random (a baseline), or distil without any with --objective.kind features."
)


def save_heads(file: Path, dino: PrototypeHead, ibot: PrototypeHead) -> None:
    """Write both heads as `dino_head.*` and `ibot_head.*`."""
    state = {
        f"{name}_head.{key}": t
        for name, head in (("dino", dino), ("ibot", ibot))
        for key, t in head.state_dict().items()
    }
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, file)


def load_heads(file: Path, dim: int) -> tuple[PrototypeHead, PrototypeHead]:
    """Read both heads; their sizes follow from the tensors. Meta's training export is read too.

    Args:
        file: `.safetensors`, or `.pth` of plain tensors.
        dim: Width of the backbone that they sit on.

    Returns:
        (DINO head, iBOT head).

    Raises:
        CheckpointError: The file is missing or damaged, lacks a head, or its heads sit on another width.
    """
    if not file.is_file():
        raise CheckpointError(f"{file} does not exist. {HOW_TO_GET}")
    state, _ = read_tensors(file)
    heads: list[PrototypeHead] = []
    for name in ("dino_head", "ibot_head"):
        found = {k.split(f"{name}.", 1)[1]: t for k, t in state.items() if f"{name}." in k}
        needed = {"mlp.0.weight", "mlp.4.weight", "last_layer.weight_v"}
        if not needed <= found.keys():
            raise CheckpointError(f"{file} has no {name}. {HOW_TO_GET}")
        hidden, width = found["mlp.0.weight"].shape
        if width != dim:
            raise CheckpointError(
                f"The {name} in {file} sits on a width of {width}, this teacher's is {dim}. {HOW_TO_GET}"
            )
        head = PrototypeHead(dim, HeadConfig(len(found["last_layer.weight_v"]), hidden, len(found["mlp.4.weight"])))
        expected = {key: tuple(t.shape) for key, t in head.state_dict().items()}
        if expected != {key: tuple(t.shape) for key, t in found.items()}:
            wrong = sorted(expected.items() ^ {key: tuple(t.shape) for key, t in found.items()}.items())[:3]
            raise CheckpointError(f"The {name} in {file} does not fit together ({wrong}): get the file again.")
        head.load_state_dict(found)
        heads.append(head)
    return heads[0], heads[1]
