"""Networks of timm's with their weights: timm's own, or from a file, under timm's names or in its order."""

from pathlib import Path

import timm
from torch import nn

from dinov2_zoo.errors import CheckpointError, ConfigError, HubError, first_line
from dinov2_zoo.weights.key_maps import State
from dinov2_zoo.weights.read import read_tensors

CLASSIFIERS = ("classifier.", "fc.", "head.", "head_dist.")
"""How the names of a classifier's tensors begin, in timm and torchvision: it is left out."""


def open_timm(name: str) -> nn.Module:
    """A network of timm's without its classifier, for any image size where the family can.

    Args:
        name: As for `timm.create_model`, with timm's weights; or "NAME@FILE", with those of a file: under timm's names,
            or another library's of the same architecture, whose tensors come in the same order (`in_order`).

    Raises:
        HubError: There is no such network, or its weights cannot be fetched.
        CheckpointError: The file cannot be read, or its weights are not those of this network.
        ConfigError: timm cannot build it.
    """
    name, _, file = name.partition("@")
    for options in ({"dynamic_img_size": True}, {}):
        try:
            net = timm.create_model(name, pretrained=not file, num_classes=0, **options)  # pyright: ignore[reportArgumentType]
        except TypeError:  # this family does not know the option
            continue
        # No such model, no weights, no network: timm and huggingface_hub raise many kinds.
        except Exception as error:
            raise HubError(f"timm cannot load {name} ({first_line(error)}): check name and network.") from error
        if file:
            _load(net, name, Path(file).expanduser())
        return net
    raise ConfigError(f"timm cannot build {name}: choose another model.")


def _load(net: nn.Module, name: str, file: Path) -> None:
    if not file.is_file():
        raise CheckpointError(f"{file} does not exist: name a file of weights, as in timm:{name}@FILE.")
    given, _ = read_tensors(file)
    wanted = net.state_dict()
    state = under_names(given, wanted) or in_order(given, wanted)
    if state is None:
        raise CheckpointError(
            f"{file} does not hold the weights of timm's {name}: neither names nor order and shapes of its tensors are "
            "the same. Give a file that does, or the network's right name."
        )
    net.load_state_dict(state)


def under_names(given: State, wanted: State) -> State | None:
    """The tensors wanted, where they all are there by name and shape and nothing is left but a classifier; or None."""
    here = all(name in given and given[name].shape == tensor.shape for name, tensor in wanted.items())
    whole = all(name in wanted or name.startswith(CLASSIFIERS) for name in given)
    return {name: given[name] for name in wanted} if here and whole else None


def in_order(given: State, wanted: State) -> State | None:
    """Tensors under the names wanted, where they come in the same order; None where they do not.

    Two libraries that build one architecture from front to back register the same tensors in the same order, as timm
    and torchvision do MobileNetV2. Each must agree in its shape and in the last word of its name ("weight",
    "running_mean"); what follows the last, the classifier, is left out.

    Args:
        given: Under any names.
        wanted: Of a network without classifier.
    """
    pairs = list(zip(given.items(), wanted.items(), strict=False))
    same = all(a.shape == b.shape and n.split(".")[-1] == m.split(".")[-1] for (n, a), (m, b) in pairs)
    rest = list(given)[len(wanted) :]
    if len(pairs) < len(wanted) or not same or not all(left.startswith(CLASSIFIERS) for left in rest):
        return None
    return {name: tensor for (_, tensor), (name, _) in pairs}
