"""One model, five spellings: our parameter names (timm's) to and from those of Meta and transformers.

Two things differ besides names. Meta and transformers keep a position for the class token in models with registers,
while timm and we fold it into the class token: going back, that slot is 0, which computes the same. And timm's models
have no mask token.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor

from dinov2_zoo.errors import CheckpointError
from dinov2_zoo.models.position import fold_class_position, with_class_position

Layout = Literal["timm", "meta", "transformers-v4", "transformers-v5"]
"""Whose names; ours are timm's, with the mask token."""

State = dict[str, Tensor]

# ours -> theirs; what is not listed has the same name. Order matters where one name begins another.
_META = (("reg_token", "register_tokens"),)
_META_SWIGLU = (("mlp.fc1", "mlp.w12"), ("mlp.fc2", "mlp.w3"))
_TRANSFORMERS = (
    ("cls_token", "embeddings.cls_token"),
    ("mask_token", "embeddings.mask_token"),
    ("reg_token", "embeddings.register_tokens"),
    ("pos_embed", "embeddings.position_embeddings"),
    ("patch_embed.proj", "embeddings.patch_embeddings.projection"),
    ("blocks.", "encoder.layer."),
    ("ls1.gamma", "layer_scale1.lambda1"),
    ("ls2.gamma", "layer_scale2.lambda1"),
)
_V4 = (("attn.proj", "attention.output.dense"),)
_V5 = (("attn.proj", "attention.o_proj"),)
_V4_SWIGLU = (("mlp.fc1", "mlp.weights_in"), ("mlp.fc2", "mlp.weights_out"))
_QKV = {
    "transformers-v4": [f"attention.attention.{part}" for part in ("query", "key", "value")],
    "transformers-v5": [f"attention.{part}_proj" for part in "qkv"],
}
# v5 splits SwiGLU's packed projection: gate (first half), value (second half), and the way down.
_V5_SWIGLU = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")

# Containers that wrap a backbone: Meta's training export, data parallelism, transformers' classifiers.
_PREFIXES = ("module.", "backbone.", "dinov2_with_registers.", "dinov2.", "_orig_mod.")


def detect_layout(state: Mapping[str, Tensor]) -> Layout:
    """Whose names these are, told by what only they have.

    Raises:
        CheckpointError: They are not those of a DINOv2 backbone.
    """
    keys = set(state)
    if "embeddings.cls_token" in keys:
        return "transformers-v4" if any(".attention.attention.query." in k for k in keys) else "transformers-v5"
    if "cls_token" in keys and "patch_embed.proj.weight" in keys:
        if "register_tokens" in keys or any(".mlp.w12." in k for k in keys):
            return "meta"
        # Without registers and SwiGLU, Meta's and timm's names differ in the mask token alone.
        return "meta" if "mask_token" in keys and "reg_token" not in keys else "timm"
    shown = ", ".join(f"{key} {tuple(state[key].shape)}" for key in sorted(keys)[:5]) or "none"
    shown += ", ..." if len(keys) > 5 else ""
    raise CheckpointError(
        f"These are not the weights of a DINOv2 backbone ({len(keys)} tensors: {shown}): "
        "give a backbone in Meta's, timm's, transformers' or our names."
    )


def strip_containers(state: Mapping[str, Tensor]) -> State:
    """Drop wrappers' prefixes, Meta's chunk numbers, and what belongs to heads and classifiers, not to the backbone.

    Raises:
        CheckpointError: Two tensors would bear one name, as in a file of two models.
    """
    stripped: State = {}
    for name, tensor in state.items():
        inner = name
        while prefix := next((p for p in _PREFIXES if inner.startswith(p)), None):
            inner = inner.removeprefix(prefix)
        # Meta trains in chunks, blocks.CHUNK.BLOCK.*, where BLOCK counts through all chunks.
        inner = re.sub(r"^blocks\.\d+\.(\d+\.)", r"blocks.\1", inner)
        if inner.startswith(("dino_head.", "ibot_head.", "classifier.")):
            continue
        if inner in stripped:
            raise CheckpointError(f"The weights hold {inner} twice, the second as {name}: save one model's state dict.")
        stripped[inner] = tensor
    return stripped


def to_ours(state: Mapping[str, Tensor], layout: Layout | None = None) -> State:
    """A backbone's tensors under our names; values are kept bit for bit, but for the folded class position.

    Args:
        state: Under anyone's names, perhaps inside a container.
        layout: Whose; default: told from the names.

    Returns:
        Tensors by our names; `mask_token` is zeros where the source has none (timm).

    Raises:
        CheckpointError: The names are not those of a DINOv2 backbone.
    """
    state = strip_containers(state)
    layout = layout or detect_layout(state)
    if layout == "timm":
        ours = dict(state)
    elif layout == "meta":
        ours = _rename(state, [*_META, *_META_SWIGLU], back=True)
    else:
        attention, swiglu = (_V4, _V4_SWIGLU) if layout == "transformers-v4" else (_V5, ())
        ours = _rename(_merge(state, layout), [*_TRANSFORMERS, *attention, *swiglu], back=True)
        ours = {re.sub(r"^layernorm\.", "norm.", name): tensor for name, tensor in ours.items()}
    _check_tokens(ours)
    if layout != "timm" and "reg_token" in ours and {"cls_token", "pos_embed"} <= ours.keys():
        ours["cls_token"], ours["pos_embed"] = fold_class_position(ours["cls_token"], ours["pos_embed"])
    if "mask_token" not in ours and "cls_token" in ours:
        ours["mask_token"] = torch.zeros_like(ours["cls_token"][0])
    return ours


def from_ours(state: Mapping[str, Tensor], layout: Layout) -> State:
    """Our tensors under another's names: the inverse of `to_ours`.

    Args:
        state: Under our names.
        layout: Whose names are wanted.
    """
    theirs = dict(state)
    if layout == "timm":
        del theirs["mask_token"]
        return theirs
    if "reg_token" in theirs:
        theirs["pos_embed"] = with_class_position(theirs["pos_embed"])
    swiglu = is_swiglu(state)
    if layout == "meta":
        return _rename(theirs, [*_META, *(_META_SWIGLU if swiglu else ())])
    theirs = {re.sub(r"^norm\.", "layernorm.", name): tensor for name, tensor in theirs.items()}
    attention = _V4 if layout == "transformers-v4" else _V5
    gated = _V4_SWIGLU if swiglu and layout == "transformers-v4" else ()
    return _split(_rename(theirs, [*_TRANSFORMERS, *attention, *gated]), layout, swiglu=swiglu)


def is_swiglu(state: Mapping[str, Tensor]) -> bool:
    """True when a block's first projection is packed: twice as wide as its second takes in. Our names."""
    first, second = state["blocks.0.mlp.fc1.weight"], state["blocks.0.mlp.fc2.weight"]
    return first.shape[0] == 2 * second.shape[1]


def _check_tokens(state: Mapping[str, Tensor]) -> None:
    """The tensors that are computed with here, before anything else has looked at shapes, must allow it."""
    shapes = {name: tuple(state[name].shape) for name in ("cls_token", "pos_embed") if name in state}
    if any(len(shape) != 3 for shape in shapes.values()) or len({shape[2] for shape in shapes.values()}) > 1:
        raise CheckpointError(
            f"Class token and positions should be [1, tokens, width], of one width, not {shapes}: get the file again."
        )


def _rename(state: Mapping[str, Tensor], pairs: Iterable[tuple[str, str]], *, back: bool = False) -> State:
    pairs = [(theirs, ours) if back else (ours, theirs) for ours, theirs in pairs]
    renamed: State = {}
    for name, tensor in state.items():
        for old, new in pairs:
            # Only whole parts of a dotted name, or a leading part such as "blocks.".
            name = re.sub(rf"(^|\.){re.escape(old)}(?=\.|$|(?<=\.))", lambda m, new=new: m[1] + new, name, count=1)
        renamed[name] = tensor
    return renamed


def _merge(state: Mapping[str, Tensor], layout: Layout) -> State:
    """Stack transformers' separate query, key and value (and, in v5, gate and value) into our packed projections."""
    merged = dict(state)
    for stem in sorted({m[1] for name in state if (m := re.match(r"(encoder\.layer\.\d+\.)", name))}):
        for kind in ("weight", "bias"):
            groups = [(_QKV[layout], "attn.qkv")]
            if f"{stem}{_V5_SWIGLU[0]}.{kind}" in merged:
                groups += [(list(_V5_SWIGLU[:2]), "mlp.fc1"), ([_V5_SWIGLU[2]], "mlp.fc2")]
            for parts, ours in groups:
                names = [f"{stem}{part}.{kind}" for part in parts]
                missing = [name for name in names if name not in merged]
                if missing:
                    raise CheckpointError(
                        f"The weights lack {', '.join(missing)}: the file is incomplete; get it again."
                    )
                pieces = [merged.pop(name) for name in names]
                if len({piece.shape for piece in pieces}) > 1 or pieces[0].ndim == 0:
                    shapes = ", ".join(f"{n} {tuple(p.shape)}" for n, p in zip(names, pieces, strict=True))
                    raise CheckpointError(f"These should be of one shape: {shapes}; the file is damaged, get it again.")
                merged[f"{stem}{ours}.{kind}"] = torch.cat(pieces)
    return merged


def _split(state: Mapping[str, Tensor], layout: Layout, *, swiglu: bool) -> State:
    """The inverse of `_merge`."""
    split: State = {}
    for name, tensor in state.items():
        stem, kind = name.rsplit(".", 1) if "." in name else (name, "")
        if stem.endswith(".attn.qkv"):
            parts = _QKV[layout]
        elif swiglu and layout == "transformers-v5" and stem.endswith(".mlp.fc1"):
            parts = list(_V5_SWIGLU[:2])
        elif swiglu and layout == "transformers-v5" and stem.endswith(".mlp.fc2"):
            parts = [_V5_SWIGLU[2]]
        else:
            split[name] = tensor
            continue
        block = stem.rsplit(".", 2)[0]
        for part, piece in zip(parts, tensor.chunk(len(parts)), strict=True):
            split[f"{block}.{part}.{kind}"] = piece.contiguous()
    return split
