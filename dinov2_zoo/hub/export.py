"""A backbone as one file that runs without this package: ONNX, or torch's exported program; checked as it is made.

Any batch, one image size: positions are resampled to it here and stored, because ONNX's resizing differs from torch's.
"""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dinov2_zoo.errors import CheckpointError, ConfigError, how_to_install
from dinov2_zoo.files import atomic_write
from dinov2_zoo.hub.model import Dinov2Model
from dinov2_zoo.weights.checksums import CHECKSUMS, write_checksums
from dinov2_zoo.weights.save import writing

Precision = Literal["fp32", "fp16", "int8"]

LIMITS: dict[Precision, float] = {"fp32": 1e-4, "fp16": 2e-2, "int8": 0.2}
"""Largest 1 - cosine of any token that a file may have (chosen here; fp32's rounding is a thousand times less)."""


@dataclass(frozen=True)
class Exported:
    """What was found when the file was run beside the model."""

    largest_difference: float
    """Of any output value, absolute."""
    least_cosine: float
    """Of any token."""
    size: int
    """Of the file, bytes."""


class _Tokens(nn.Module):
    """Class token [B, D] and patch tokens [B, N, D], normed, in fp32 whatever the weights are."""

    def __init__(self, model: Dinov2Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Float[Tensor, "B 3 S S"]) -> tuple[Tensor, Tensor]:
        tokens = self.model.forward_features(pixels.to(self.model.cls_token.dtype))
        return tokens["x_norm_clstoken"].float(), tokens["x_norm_patchtokens"].float()


def export(source: str, target: Path, *, size: int = 224, precision: Precision = "fp32") -> Exported:
    """Export a model and run the file beside it.

    Args:
        source: As for `Dinov2Model.from_pretrained`.
        target: A new file, `.onnx` (inputs "pixels", outputs "class_token" and "patch_tokens") or `.pt2`
            (`torch.export.load`).
        size: Image side that it takes, pixels.
        precision: Of the weights: fp32; fp16; int8, where each linear layer's weights are 8-bit integers and its inputs
            become so as it runs (onnxruntime's dynamic quantisation; ONNX only).

    Returns:
        How far the file is from the model, for batches of one and of three.

    Raises:
        ConfigError: `target` ends otherwise, exists or cannot be written, or a package that is needed is missing.
        CheckpointError: The file computes something else.
    """
    suffix = target.suffix
    if suffix not in (".onnx", ".pt2") or (suffix == ".pt2" and precision == "int8"):
        raise ConfigError(f"{target} with {precision} is not supported: name a .onnx file, or .pt2 for fp32 and fp16.")
    if target.exists():
        raise ConfigError(f"{target} exists: export to a new file.")
    model = Dinov2Model.from_pretrained(source, img_size=size)
    whole = _Tokens(model.float()).eval()
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / target.name
        network = whole
        if precision == "fp16":
            network = _Tokens(Dinov2Model.from_pretrained(source, img_size=size, dtype=torch.float16)).eval()
        # A batch of 2, for one of 1 would be taken for a constant.
        batch = torch.export.Dim("batch", min=1, max=65536)
        example = (torch.zeros(2, 3, size, size),)
        if suffix == ".pt2":
            with torch.no_grad():
                program = torch.export.export(network, example, dynamic_shapes={"pixels": {0: batch}})
            _forget_sources(program.graph_module)
            torch.export.save(program, file)
        else:
            _onnx(network, example, batch, file)
            if precision == "int8":
                file = _quantised(file)
        found = _compare(whole, file, size)
        if 1 - found.least_cosine > LIMITS[precision]:
            raise CheckpointError(
                f"The exported file computes something else (least cosine {found.least_cosine:.4f}): nothing was "
                f"written; use another precision than {precision}."
            )
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(target) as partial:
                shutil.copyfile(file, partial)
            if (target.parent / CHECKSUMS).is_file():
                write_checksums(target.parent, target.name)
    return found


def _onnx(network: nn.Module, example: tuple[Tensor], batch: object, file: Path) -> None:
    try:
        program = torch.onnx.export(
            network,
            example,
            dynamo=True,
            verbose=False,
            dynamic_shapes={"pixels": {0: batch}},
            input_names=["pixels"],
            output_names=["class_token", "patch_tokens"],
        )
        assert program is not None
        # Each node tells in which files of this machine it was written.
        for node in program.model.graph.all_nodes():
            node.metadata_props.clear()
        program.save(file, external_data=False)
    except ImportError as error:
        raise _missing(error) from error


def _forget_sources(module: torch.fx.GraphModule) -> None:
    """Each node tells in which files of this machine it was written: not to strangers."""
    for part in module.modules():
        for node in part.graph.nodes if isinstance(part, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)


def _quantised(file: Path) -> Path:
    try:
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except ImportError as error:
        raise _missing(error) from error
    smaller = file.with_name(f"int8-{file.name}")
    quantize_dynamic(file, smaller, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul", "Gemm"])
    return smaller


def _compare(whole: nn.Module, file: Path, size: int) -> Exported:
    generator = torch.Generator().manual_seed(0)
    differences: list[float] = []
    cosines: list[float] = []
    for count in (1, 3):
        pixels = torch.randn(count, 3, size, size, generator=generator)
        with torch.no_grad():
            ours = whole(pixels)
        for mine, theirs in zip(ours, run(file, pixels), strict=True):
            differences.append((mine - theirs).abs().max().item())
            cosines.append(torch.cosine_similarity(mine, theirs, dim=-1).min().item())
    return Exported(max(differences), min(cosines), file.stat().st_size)


def run(file: Path, pixels: Float[Tensor, "B 3 S S"]) -> tuple[Tensor, Tensor]:
    """Class token and patch tokens from an exported file, on the CPU."""
    if file.suffix == ".pt2":
        with torch.no_grad():
            return torch.export.load(file).module()(pixels)
    try:
        from onnxruntime import InferenceSession
    except ImportError as error:
        raise _missing(error) from error
    session = InferenceSession(str(file), providers=["CPUExecutionProvider"])
    class_token, patches = session.run(None, {"pixels": pixels.numpy()})
    return torch.from_numpy(class_token), torch.from_numpy(patches)


def _missing(error: ImportError) -> ConfigError:
    remedy = how_to_install("onnx>=1.17", "onnxruntime>=1.20", "onnxscript>=0.5")
    return ConfigError(f"ONNX needs packages that are not installed ({error.name}): {remedy}.")
