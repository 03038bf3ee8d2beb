"""One folder that three libraries load: this one, timm and transformers.

    config.json                        our shape, timm's architecture, transformers' config, side by side
    model.safetensors                  weights under timm's names, which are ours
    transformers_model.safetensors     the same under transformers' names; config.json points to it
    preprocessor_config.json           how transformers prepares images
    reference.safetensors              a photo and the tokens that it gives, for `verify`
    SHA256SUMS                         of all of them, and of what is put beside them later

With registers all three give the same features at every image size. Without, they do at the stored size; elsewhere each
library resamples positions by its own rule, and ours is the one the model was trained with.
"""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from timm.models import save_for_hf
from torch import Tensor

from dinov2_zoo.config import ModelConfig
from dinov2_zoo.data.preprocess import IMAGENET_MEAN, IMAGENET_STD, short_side
from dinov2_zoo.errors import CheckpointError
from dinov2_zoo.models.students import TimmStudent
from dinov2_zoo.models.vision_transformer import VisionTransformer
from dinov2_zoo.models.zoo import SIZES
from dinov2_zoo.weights.checksums import CHECKSUMS, write_checksums
from dinov2_zoo.weights.key_maps import from_ours
from dinov2_zoo.weights.read import OURS, check_state
from dinov2_zoo.weights.reference import GRID, REFERENCE_FILE, reference_pixels, write_reference
from dinov2_zoo.weights.save import give_rights, save_tensors, writing

TRANSFORMERS_FILE = "transformers_model.safetensors"
# All that saving a model, or a student with what belongs to its training, ever writes into its folder.
REPLACED = {
    "config.json",
    "preprocessor_config.json",
    "model.safetensors",
    TRANSFORMERS_FILE,
    "heads.safetensors",
    "projector.safetensors",
    REFERENCE_FILE,
    CHECKSUMS,
}
TIMM_NAMES = {"s": "small", "b": "base", "l": "large", "g": "giant"}


def save_weights(folder: Path, config: ModelConfig, state: dict[str, Tensor], **about: str) -> None:
    """Write a backbone as described above, aside first, then renamed: a folder of this name is always whole.

    Args:
        folder: To be created, or to replace an earlier one of this kind.
        config: Shape.
        state: Tensors under our names.
        about: Where the weights come from, for the files' headers.

    Raises:
        CheckpointError: The folder holds something else, or the tensors do not fit the shape.
        ConfigError: The place cannot be written.
    """
    check_state(config, state, what="the model to be saved")
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    shape = dataclasses.asdict(config)

    def write(to: Path) -> None:
        save_tensors(state, to / "model.safetensors", {**about, "format": "pt", OURS: json.dumps(shape)})
        theirs = {name: tensor.clone() for name, tensor in from_ours(state, "transformers-v4").items()}
        save_tensors(theirs, to / TRANSFORMERS_FILE, {**about, "format": "pt"})
        # "_name_or_path" and friends are left out: what is not needed to load does not belong here.
        entries = {OURS: shape, **timm_config(config), **transformers_config(config, state["cls_token"].dtype)}
        (to / "config.json").write_text(json.dumps(entries, indent=2) + "\n")
        (to / "preprocessor_config.json").write_text(json.dumps(processor_config(config), indent=2) + "\n")
        finish_folder(to, config, state)

    replace_folder(folder, write)


def save_timm(folder: Path, student: TimmStudent) -> None:
    """Write a timm network as timm does, so that `timm.create_model("local-dir:...")` loads it.

    Args:
        folder: To be created, or to replace an earlier one of this kind.
        student: The network, on the CPU.

    Raises:
        CheckpointError: The folder holds something else.
        ConfigError: The place cannot be written.
    """
    # The size as well: a network that comes back with timm's own would resample its positions.
    config = {
        "architecture": student.name,
        "num_classes": 0,
        "pretrained_cfg": {"input_size": (3, student.img_size, student.img_size)},
        **({"model_args": student.options} if student.options else {}),
    }

    def write(to: Path) -> None:
        save_for_hf(student.net, str(to), model_config=config, safe_serialization=True)
        give_rights(to / "model.safetensors")
        write_reference(to, student.net, reference_pixels(student.img_size, student.img_size))
        write_checksums(to)

    replace_folder(folder, write)


def finish_folder(folder: Path, config: ModelConfig, state: dict[str, Tensor]) -> None:
    """Write what `verify` compares a backbone's folder with: the reference, and the checksums of all files.

    Args:
        folder: With everything else in it.
        config: Shape, and rule for positions, as `load_weights` will read them from the folder.
        state: Tensors under our names.
    """
    with torch.device("meta"):
        net = VisionTransformer(config)
    net.load_state_dict({name: tensor.float() for name, tensor in state.items()}, assign=True)
    write_reference(folder, net, reference_pixels(*(cells * config.patch_size for cells in GRID)))
    write_checksums(folder)


def replace_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder beside `folder`, then put it in its place.

    Raises:
        CheckpointError: `folder` holds something that is not a saved model, or is a file.
        ConfigError: The place cannot be written.
    """
    folder = folder.resolve()
    if folder.is_file():
        raise CheckpointError(f"{folder} is a file: save to another folder.")
    held = {path.name for path in folder.iterdir()} if folder.exists() else set[str]()
    # A run folder has a config.json too, and a published model its card: nothing is removed that is not written here.
    if held and (held - REPLACED or not {"config.json", "model.safetensors"} <= held):
        others = ", ".join(sorted(held - REPLACED or held)[:3])
        raise CheckpointError(f"{folder} holds other files than a model ({others}): save to another folder.")
    partial = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with writing(folder):
            partial.mkdir(parents=True)
            write(partial)
            if folder.exists():
                shutil.rmtree(folder)
            partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def timm_config(config: ModelConfig) -> dict[str, Any]:
    """What `timm.create_model("local-dir:...")` and "hf-hub:..." read."""
    shape = (config.embed_dim, config.depth, config.num_heads)
    # "g" is the one architecture of timm's with SwiGLU, and has no other feed-forward.
    size = "g" if config.ffn == "swiglu" else next((s for s in "sbl" if SIZES[s] == shape), "s")
    reg = "_reg4" if config.num_registers else ""
    arguments: dict[str, Any] = {
        # Without img_size here timm would build its default size and shrink the positions, silently.
        "img_size": config.img_size,
        "dynamic_img_size": True,
        "patch_size": config.patch_size,
    }
    if SIZES[size] != shape:
        arguments |= {"embed_dim": config.embed_dim, "depth": config.depth, "num_heads": config.num_heads}
        if config.ffn == "swiglu":
            arguments["mlp_ratio"] = 2 * config.ffn_hidden / config.embed_dim
    if config.num_registers not in (0, 4):
        arguments["reg_tokens"] = config.num_registers
    return {
        "architecture": f"vit_{TIMM_NAMES[size]}_patch14{reg}_dinov2",
        "num_classes": 0,
        "num_features": config.embed_dim,
        "global_pool": "token",
        "model_args": arguments,
        "pretrained_cfg": {
            "input_size": [3, config.img_size, config.img_size],
            "fixed_input_size": False,
            "interpolation": "bicubic",
            "crop_pct": 224 / 256,
            "mean": list(IMAGENET_MEAN),
            "std": list(IMAGENET_STD),
            "num_classes": 0,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }


def transformers_config(config: ModelConfig, dtype: torch.dtype) -> dict[str, Any]:
    """What transformers' `AutoModel` reads."""
    registers = {"num_register_tokens": config.num_registers} if config.num_registers else {}
    name = "Dinov2WithRegisters" if config.num_registers else "Dinov2"
    return {
        "model_type": "dinov2_with_registers" if config.num_registers else "dinov2",
        "architectures": [f"{name}Model"],
        "transformers_weights": TRANSFORMERS_FILE,
        # For AutoImageProcessor, which looks here in a local folder that timm can read too.
        "image_processor_type": "BitImageProcessor",
        "hidden_size": config.embed_dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "mlp_ratio": 4,
        "hidden_act": "gelu",
        "use_swiglu_ffn": config.ffn == "swiglu",
        "image_size": config.img_size,
        "patch_size": config.patch_size,
        "num_channels": 3,
        "qkv_bias": True,
        "layer_norm_eps": 1e-6,
        "layerscale_value": 1.0,
        "drop_path_rate": 0.0,
        "dtype": str(dtype).removeprefix("torch."),
        **registers,
    }


def processor_config(config: ModelConfig) -> dict[str, Any]:
    """What transformers' `AutoImageProcessor` reads: short side 256/224 of the stored size, then a centre crop."""
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": short_side(config.img_size)},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": config.img_size, "width": config.img_size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(IMAGENET_MEAN),
        "image_std": list(IMAGENET_STD),
    }
