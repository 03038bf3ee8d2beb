"""A backbone from any layout to any other, proved equal while it is done."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from dinov2_zoo.config import ModelConfig
from dinov2_zoo.errors import CheckpointError, ConfigError
from dinov2_zoo.files import sha256_of
from dinov2_zoo.hub.load import WEIGHT_SUFFIXES
from dinov2_zoo.models.vision_transformer import VisionTransformer
from dinov2_zoo.training.checkpoints.backbone import load_training_weights
from dinov2_zoo.training.checkpoints.manifest import MANIFEST
from dinov2_zoo.weights.key_maps import State, from_ours
from dinov2_zoo.weights.read import find_weights, load_weights
from dinov2_zoo.weights.save import save_tensors, writing
from dinov2_zoo.weights.write import (
    finish_folder,
    processor_config,
    replace_folder,
    save_weights,
    timm_config,
    transformers_config,
)

To = Literal["zoo", "meta", "timm", "transformers"]


def convert(source: Path, target: Path, to: To, *, branch: Literal["ema", "student"] = "ema") -> float:
    """Write a backbone in another layout, read it back, and compare what both compute.

    Args:
        source: A folder or file of weights in any layout, or a training checkpoint `runs/x/checkpoints/step-N`.
        target: A folder to be created; for "meta" also a file, `.safetensors` or `.pth`.
        to: "zoo": the folder that three libraries load; "meta", "timm", "transformers": theirs alone.
        branch: Of a training checkpoint.

    Returns:
        Largest absolute difference of any output, over three image sizes.

    Raises:
        CheckpointError: The source is not a whole backbone, the target exists, or the outputs differ.
        ConfigError: The target is a file where the layout is a folder, or cannot be written.
    """
    if to != "meta" and target.suffix in WEIGHT_SUFFIXES:
        raise ConfigError(
            f"{target} names a file, and {to}'s layout is a folder, weights with a config.json: name a folder "
            f"({target.with_suffix('')}), or take --to meta, which can be one file."
        )
    training = (source / MANIFEST).is_file()
    config, state = load_training_weights(source, branch) if training else load_weights(source)
    digest = sha256_of(source / MANIFEST if training else find_weights(source))
    if target.exists():
        raise CheckpointError(f"{target} exists: convert to a new place.")
    scratch = target.with_name(f".{target.stem}.check{target.suffix}")
    proof = f"outputs at {', '.join(f'{h}x{w}' for h, w in _sizes(config))} equal the source's, bit for bit"
    about = {"format": "pt", "converted_from": source.name, "source_sha256": digest, "checked": proof}
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove(scratch)
        try:
            _write(scratch, config, state, to, about)
            found = load_weights(scratch)
            difference = _difference((config, state), found, rule=config)
            if difference != 0:  # or not a number
                raise CheckpointError(
                    f"{source} computes something else in {to}'s layout (difference {difference:.3g}): nothing was "
                    "written; please report it."
                )
            if scratch.is_dir() and to != "zoo":
                finish_folder(scratch, *found)
            # What the header says of the proof is true of whatever gets this name.
            scratch.rename(target)
        finally:
            _remove(scratch)
    return difference


def _write(target: Path, config: ModelConfig, state: State, to: To, about: dict[str, str]) -> None:
    if to == "zoo":
        save_weights(target, config, state, **about)
        return
    if to == "meta":
        theirs = {name: t.contiguous() for name, t in from_ours(state, "meta").items()}
        if target.suffix == ".pth":
            torch.save(theirs, target)
        elif target.suffix == ".safetensors":
            save_tensors(theirs, target, about)
        else:
            target.mkdir()
            save_tensors(theirs, target / "model.safetensors", about)
        return

    def write(folder: Path) -> None:
        if to == "timm":
            weights, entries = from_ours(state, "timm"), timm_config(config)
        else:
            weights, entries = (
                from_ours(state, "transformers-v4"),
                transformers_config(config, state["cls_token"].dtype),
            )
            del entries["transformers_weights"]
            (folder / "preprocessor_config.json").write_text(json.dumps(processor_config(config), indent=2) + "\n")
        (folder / "config.json").write_text(json.dumps(entries, indent=2) + "\n")
        save_tensors({n: t.clone().contiguous() for n, t in weights.items()}, folder / "model.safetensors", about)

    replace_folder(target, write)


def _sizes(config: ModelConfig) -> list[tuple[int, int]]:
    """The stored size, a smaller one, and one that is not square; small enough for a laptop."""
    patch, side = config.patch_size, config.img_size
    return [(side, side), (patch * 7, patch * 7), (patch * 9, patch * 6)]


@torch.no_grad()
def _difference(a: tuple[ModelConfig, State], b: tuple[ModelConfig, State], *, rule: ModelConfig) -> float:
    """Largest difference of two models' tokens, both resampling positions by `rule`, which names alone cannot tell."""
    outputs: list[list[torch.Tensor]] = []
    for config, state in (a, b):
        offset, antialias = rule.position_offset, rule.position_antialias
        with torch.device("meta"):
            model = VisionTransformer(replace(config, position_offset=offset, position_antialias=antialias))
        model.load_state_dict({name: tensor.float() for name, tensor in state.items()}, assign=True)
        model.eval()
        generator = torch.Generator().manual_seed(0)
        images = [torch.randn(1, 3, *size, generator=generator) for size in _sizes(rule)]
        outputs.append([model.forward_features(image)["x_prenorm"] for image in images])
    return max((x - y).abs().max().item() for x, y in zip(*outputs, strict=True))


def _remove(path: Path) -> None:
    if path.is_dir():
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    else:
        path.unlink(missing_ok=True)
