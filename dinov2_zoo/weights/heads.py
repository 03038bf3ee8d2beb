"""Heads with prototypes, in a file of their own beside a backbone: `heads.safetensors`, under Meta's names."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from dinov2_zoo.config import HeadConfig
from dinov2_zoo.errors import CheckpointError
from dinov2_zoo.files import without_folders
from dinov2_zoo.models.heads import PrototypeHead
from dinov2_zoo.weights.fingerprint import weights_fingerprint
from dinov2_zoo.weights.read import read_tensors
from dinov2_zoo.weights.save import save_tensors, writing

State = Mapping[str, Tensor]

HEADS_FILE = "heads.safetensors"

MADE_ON = "backbone_norms"
"""Entry of the file's header: `norms_fingerprint` of the backbone that the heads were made on."""

HOW_TO_GET = (
    "Meta published no heads: fit some with recipes/fit_heads.py, give those of a teacher that you trained with "
    "--heads FILE, try untrained ones with --heads random (a baseline), or distil without any with "
    "--objective.kind features."
)


def save_heads(file: Path, dino: State, ibot: State, about: Mapping[str, str] | None = None) -> None:
    """Write both heads as `dino_head.*` and `ibot_head.*`.

    Args:
        file: To write.
        dino: State of the class-token head.
        ibot: State of the patch-token head.
        about: Where they come from, for the file's header; its entry `MADE_ON` is compared when they are read. Of local
            paths the last part is written, for heads are published.
    """
    state = {f"{name}_head.{key}": t for name, head in (("dino", dino), ("ibot", ibot)) for key, t in head.items()}
    # Cloned: tied heads are one set of tensors under two names.
    tensors = {name: t.detach().cpu().clone().contiguous() for name, t in state.items()}
    with writing(file):
        save_tensors(tensors, file, {name: without_folders(words) for name, words in (about or {}).items()})


def norms_fingerprint(backbone: State) -> str:
    """Fingerprint of a backbone's norms in bf16: neither resampled positions nor a half-precision copy change it."""
    return weights_fingerprint({name: tensor.bfloat16() for name, tensor in backbone.items() if "norm" in name})


def load_heads(file: Path, dim: int, backbone: State | str | None = None) -> tuple[PrototypeHead, PrototypeHead]:
    """Read both heads; their sizes follow from the tensors. Meta's training export is read too.

    Args:
        file: `.safetensors`, or `.pth` of plain tensors.
        dim: Width of the backbone that they sit on.
        backbone: State of that backbone, or its `norms_fingerprint`, to be compared with that of the one that the heads
            were made on, if the file says.

    Returns:
        (DINO head, iBOT head).

    Raises:
        CheckpointError: The file is missing or damaged, lacks a head, or its heads belong to another backbone.
    """
    if not file.is_file():
        raise CheckpointError(f"{file} does not exist. {HOW_TO_GET}")
    state, _ = read_tensors(file)
    if backbone is not None and file.suffix == ".safetensors":
        with safe_open(file, framework="pt") as opened:
            made_on = (opened.metadata() or {}).get(MADE_ON)
        if made_on not in (None, backbone if isinstance(backbone, str) else norms_fingerprint(backbone)):
            raise CheckpointError(
                f"The heads in {file} were made on another backbone of the same width: give the teacher that they "
                "belong to, or fit new ones with recipes/fit_heads.py."
            )
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
