"""Distil a large frozen DINOv2 teacher into small Vision Transformers. Importing this package imports no torch."""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dinov2_zoo.commands import distill
    from dinov2_zoo.hub.model import Dinov2Model
    from dinov2_zoo.models.zoo import list_models, model_config

__all__ = ["Dinov2Model", "__version__", "distill", "list_models", "model_config"]

try:
    __version__ = version("dinov2-zoo")
except PackageNotFoundError:  # a checkout that was not installed
    __version__ = "0.0.0"

_HOMES = {
    "Dinov2Model": "dinov2_zoo.hub.model",
    "distill": "dinov2_zoo.commands",
    "list_models": "dinov2_zoo.models.zoo",
    "model_config": "dinov2_zoo.models.zoo",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
