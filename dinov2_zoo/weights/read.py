"""Weights from a file or folder of anyone's making, with nothing left over and nothing missing."""

import dataclasses
import json
import math
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dinov2_zoo.config import ModelConfig
from dinov2_zoo.errors import CheckpointError, ConfigError
from dinov2_zoo.models.vision_transformer import VisionTransformer
from dinov2_zoo.weights.key_maps import Layout, State, detect_layout, is_swiglu, strip_containers, to_ours

HEAD_WIDTH = 64
"""Channels per attention head in every released DINOv2 model."""

OURS = "dinov2_zoo"
"""Entry of config.json, and of a safetensors header, that holds our `ModelConfig`."""

# A folder's weights, in the order in which they are looked for. Sharded ones come with an index.
FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def load_weights(source: Path) -> tuple[ModelConfig, State]:
    """Read a backbone's shape and weights.

    Args:
        source: A folder (ours, timm's or transformers'), or one `.safetensors`, `.pth`, `.pt` or `.bin` file.

    Returns:
        Shape and tensors under our names; they fit each other, whole. How positions are resampled is read from our own
        config where there is one; else from whose names they are: Meta's and transformers' plain models were trained
        with offset 0.1 and no antialias, models with registers with antialias; plain ones in timm's names get timm's
        rule, antialias.

    Raises:
        CheckpointError: The file is missing, truncated, no plain tensors, or not exactly a DINOv2 backbone.
    """
    file = find_weights(source)
    state, recorded = read_tensors(file)
    state = strip_containers(state)
    if file.parent == source:
        recorded = _folder_config(source) or recorded
    layout: Layout = "timm" if recorded is not None else detect_layout(state)
    ours = to_ours(state, layout)
    config = recorded or infer_config(ours, layout)
    check_state(config, ours, what=str(source))
    return config, ours


def find_weights(source: Path) -> Path:
    """The file of a folder that holds its weights, or the file itself."""
    if source.is_file():
        return source
    for name in FILES:
        if (source / name).is_file():
            return source / name
    if not source.exists():
        raise CheckpointError(f"{source} does not exist: name a folder or a file of weights, or a model on the Hub.")
    held = ", ".join(sorted(p.name for p in source.iterdir())[:5]) or "nothing"
    raise CheckpointError(f"{source} holds no weights (found {held}): it should have {FILES[0]} or {FILES[2]}.")


def read_tensors(file: Path) -> tuple[State, ModelConfig | None]:
    """All tensors of a file, under the names it has, and our config if its header carries one.

    Raises:
        CheckpointError: The file is damaged, or a pickle of more than tensors.
    """
    if file.name.endswith(".index.json"):
        try:
            parts = sorted(set(json.loads(file.read_text())["weight_map"].values()))
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{file} is no index of weights: get it again.") from error
        if outside := [part for part in parts if Path(part).name != part]:
            raise CheckpointError(f"{file} points outside its folder ({outside[0]}): do not use it.")
        return {n: t for part in parts for n, t in read_tensors(file.parent / part)[0].items()}, None
    if file.suffix == ".safetensors":
        return _read_safetensors(file)
    try:
        loaded: Any = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{file} holds more than plain tensors, and unpickling that could run anything: "
            "save its state dict alone, as safetensors or with torch.save."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{file} is truncated or no file of weights: get it again.") from error
    # Meta's training export keeps the backbone under "teacher"; others use "model" or "state_dict".
    for container in ("teacher", "model", "state_dict"):
        if isinstance(loaded, dict) and isinstance(loaded.get(container), dict):
            loaded = loaded[container]
    if not isinstance(loaded, dict) or not all(isinstance(t, Tensor) for t in loaded.values()):
        raise CheckpointError(f"{file} is not a dictionary of tensors: save a model's state dict.")
    return {str(name): tensor for name, tensor in loaded.items()}, None


def _read_safetensors(file: Path) -> tuple[State, ModelConfig | None]:
    try:
        with safe_open(file, framework="pt") as opened:
            header: dict[str, str] = opened.metadata() or {}
            state = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is truncated or not safetensors ({error}): get it again.") from error
    try:
        entry = json.loads(header[OURS]) if OURS in header else None
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{file} has a damaged header: get it again.") from error
    return state, None if entry is None else _config(entry, file)


def _folder_config(folder: Path) -> ModelConfig | None:
    """Our entry of a folder's config.json."""
    file = folder / "config.json"
    if not file.is_file():
        return None
    try:
        entry = json.loads(file.read_text()).get(OURS)
    except (json.JSONDecodeError, AttributeError) as error:
        raise CheckpointError(f"{file} is not readable JSON: get it again.") from error
    return None if entry is None else _config(entry, file)


def _config(entry: Any, file: Path) -> ModelConfig:
    if not isinstance(entry, dict):
        raise CheckpointError(f"{file} does not describe a model (its {OURS} is {entry!r}): get it again.")
    known = {field.name for field in dataclasses.fields(ModelConfig)}
    unknown = sorted(entry.keys() - known)
    if unknown:
        raise CheckpointError(f"{file} has settings that this version does not know ({', '.join(unknown)}): upgrade.")
    try:
        return ModelConfig(**entry)
    except (TypeError, ZeroDivisionError, ConfigError) as error:
        raise CheckpointError(f"{file} does not describe a model ({error}): get it again.") from error


def infer_config(state: State, layout: Layout) -> ModelConfig:
    """The shape that some tensors, under our names, belong to.

    Args:
        state: Under our names.
        layout: Whose names they came under, which tells the position rule.

    Raises:
        CheckpointError: Something needed to tell is missing.
    """
    needed = ("patch_embed.proj.weight", "pos_embed", "blocks.0.mlp.fc1.weight", "blocks.0.mlp.fc2.weight")
    missing = [name for name in needed if name not in state]
    if missing:
        raise CheckpointError(f"The weights lack {', '.join(missing)}: they are not a whole DINOv2 backbone.")
    dimensions = {**dict(zip(needed, (4, 3, 2, 2), strict=True)), "reg_token": 3}
    wrong = [f"{n} {tuple(state[n].shape)}" for n, d in dimensions.items() if n in state and state[n].ndim != d]
    if wrong:
        raise CheckpointError(f"These have shapes that no DINOv2 backbone's have: {', '.join(wrong)}; get it again.")
    dim, _, patch, _ = state["patch_embed.proj.weight"].shape
    registers = state["reg_token"].shape[1] if "reg_token" in state else 0
    cells = state["pos_embed"].shape[1] - (0 if registers else 1)
    side = math.isqrt(cells)
    if side * side != cells or dim % HEAD_WIDTH:
        raise CheckpointError(
            f"{cells} positions and width {dim} are not a DINOv2 backbone's (square grid, heads of {HEAD_WIDTH}): "
            "give one in Meta's, timm's, transformers' or our names."
        )
    return ModelConfig(
        embed_dim=dim,
        depth=len({name.split(".")[1] for name in state if name.startswith("blocks.")}),
        num_heads=dim // HEAD_WIDTH,
        patch_size=patch,
        img_size=side * patch,
        ffn="swiglu" if is_swiglu(state) else "mlp",
        num_registers=registers,
        position_offset=0.0 if registers or layout == "timm" else 0.1,
        position_antialias=bool(registers) or layout == "timm",
    )


def check_state(config: ModelConfig, state: Mapping[str, Tensor], *, what: str) -> None:
    """Every tensor must have its place and every place its tensor.

    Raises:
        CheckpointError: Names and shapes that differ, a few of each kind.
    """
    with torch.device("meta"):
        expected = {name: tuple(t.shape) for name, t in VisionTransformer(config).state_dict().items()}
    missing = [f"{name} {shape}" for name, shape in expected.items() if name not in state]
    unknown = [f"{name} {tuple(t.shape)}" for name, t in state.items() if name not in expected]
    differ = [
        f"{name} is {tuple(state[name].shape)}, not {shape}"
        for name, shape in expected.items()
        if name in state and tuple(state[name].shape) != shape
    ]
    kinds = (("missing", missing), ("unknown", unknown), ("of another shape", differ))
    problems = [
        f"{len(names)} {kind}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
        for kind, names in kinds
        if names
    ]
    if problems:
        raise CheckpointError(
            f"{what} is not exactly a backbone of width {config.embed_dim} and depth {config.depth} "
            f"({'; '.join(problems)}): get the whole file again, or convert it first."
        )
