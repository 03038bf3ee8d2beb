"""Whether a saved model is what it says: its files, the tokens of its photo, and what other libraries make of it."""

import importlib.util
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from jaxtyping import Float
from torch import Tensor, nn

from dinov2_zoo.config import ModelConfig
from dinov2_zoo.errors import CheckpointError, ZooError, first_line, how_to_install
from dinov2_zoo.hub.load import fetch
from dinov2_zoo.hub.model import Dinov2Model
from dinov2_zoo.weights.checksums import CHECKSUMS, compare_checksums
from dinov2_zoo.weights.read import OURS
from dinov2_zoo.weights.reference import REFERENCE_FILE, deviation, read_reference, reference_tokens
from dinov2_zoo.weights.reference import TOLERANCE as REFERENCE_TOLERANCE
from dinov2_zoo.weights.write import TRANSFORMERS_FILE, timm_config, transformers_config

TOLERANCE = 1e-4
"""Largest absolute difference between two libraries' tokens that is rounding (chosen here: fp32, up to 40 blocks)."""

Forward = Callable[[Float[Tensor, "B 3 H W"]], Float[Tensor, "B T D"]]
"""Pixels to normed tokens: class token, then patches."""


@dataclass(frozen=True)
class Check:
    """One thing looked at."""

    what: str
    passed: bool | None
    """None: could not be looked at here, or is known to differ."""
    found: str


def verify(source: str, *, revision: str | None = None, sizes: Sequence[tuple[int, int]] = ()) -> list[Check]:
    """Check a model folder or a model on the Hub.

    Args:
        source: A folder that `save_pretrained`, a recipe or `convert` wrote, or a Hub id.
        revision: Branch, tag or commit on the Hub.
        sizes: Image heights and widths to compare at; default: the stored size, 7 x 7 and 9 x 6 patches.

    Returns:
        Every check, passed or not.

    Raises:
        CheckpointError: There is no such folder, or it is one file.
    """
    folder = fetch(source, revision=revision, everything=True)
    if not folder.is_dir():
        raise CheckpointError(f"{source} is one file: name the folder of a saved model, or convert the file first.")
    checks = [_checksums(folder)]
    try:
        entries = _entries(folder)
        if timm_alone := _timm_network(folder, entries):
            return [*checks, *timm_alone]
        model = Dinov2Model.from_pretrained(folder)
    except CheckpointError as error:
        return [*checks, Check("dinov2-zoo loads", False, str(error))]
    config = model.config
    checks.append(Check("dinov2-zoo loads", True, f"width {config.embed_dim}, depth {config.depth}, every tensor used"))
    checks += _configs(entries, config)
    model.float()
    checks.append(_reference(folder, model))
    patch, side = config.patch_size, config.img_size
    sizes = sizes or [(side, side), (7 * patch, 7 * patch), (9 * patch, 6 * patch)]
    pixels = [_noise(height, width) for height, width in sizes]
    with torch.no_grad():
        ours = [_tokens(model, images) for images in pixels]
    for library, load in (("timm", _timm), ("transformers", _transformers), ("onnxruntime", _onnx)):
        checks += _library(folder, config, library, load, pixels, ours)
    return checks


def _noise(height: int, width: int) -> Float[Tensor, "1 3 {height} {width}"]:
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))


def _tokens(model: Dinov2Model, pixels: Tensor) -> Float[Tensor, "B T D"]:
    tokens = model.forward_features(pixels)
    return torch.cat([tokens["x_norm_clstoken"][:, None], tokens["x_norm_patchtokens"]], 1)


def _library(
    folder: Path,
    config: ModelConfig,
    library: str,
    load: Callable[[Path], Forward | str],
    pixels: Sequence[Tensor],
    ours: Sequence[Tensor],
) -> list[Check]:
    """One library beside ours; what it loaded is freed before the next one's turn."""
    try:
        theirs = load(folder)
    except Exception as error:  # whatever another library raises is the finding
        return [Check(library, False, f"does not load it: {type(error).__name__}: {str(error)[:200]}")]
    if isinstance(theirs, str):
        return [Check(library, None, theirs)]
    return [_compare(config, library, theirs, p, o) for p, o in zip(pixels, ours, strict=True)]


def _compare(config: ModelConfig, library: str, theirs: Forward, pixels: Tensor, ours: Tensor) -> Check:
    height, width = pixels.shape[-2:]
    what = f"{library}, {height} x {width}"
    try:
        with torch.no_grad():
            difference = (ours - theirs(pixels)).abs().max().item()
    except Exception as error:  # a size that the file was not made for
        return Check(what, None, f"not computed there: {first_line(error)[:120]}")
    if difference <= TOLERANCE:
        return Check(what, True, f"largest difference {difference:.1e}")
    elsewhere = not config.num_registers and (height, width) != (config.img_size, config.img_size)
    if elsewhere and library != "onnxruntime":
        # The published rule of models without registers, which neither library follows.
        return Check(what, None, f"differs by {difference:.1e}: it resamples positions by a rule of its own")
    return Check(what, False, f"differs by {difference:.1e}")


def _checksums(folder: Path) -> Check:
    try:
        compared = compare_checksums(folder)
    except CheckpointError as error:
        return Check("checksums", False, str(error))
    if compared is None:
        return Check("checksums", None, f"no {CHECKSUMS} beside the weights")
    wrong = [f"{names} {', '.join(found)}" for names, found in compared.differences.items() if found]
    more = f"; not listed: {', '.join(compared.unlisted)}" if compared.unlisted else ""
    return Check("checksums", not wrong, ("; ".join(wrong) or f"{compared.listed} files as listed") + more)


def _reference(folder: Path, net: nn.Module) -> Check:
    """The tokens of the photo that the folder carries, computed here and compared with those it says."""
    what = "reference photo"
    try:
        reference = read_reference(folder)
        if reference is None:
            return Check(what, None, f"no {REFERENCE_FILE} beside the weights: it was saved by another program")
        pixels, tokens = reference
        moved = deviation(reference_tokens(net, pixels), tokens)
    except (CheckpointError, RuntimeError) as error:
        return Check(what, False, first_line(error))
    if moved <= REFERENCE_TOLERANCE:
        return Check(what, True, f"tokens as when it was saved, relative difference {moved:.1e}")
    return Check(what, False, f"tokens are not those it was saved with (relative difference {moved:.1e})")


def _timm_network(folder: Path, entries: dict[str, Any]) -> list[Check]:
    """Checks of a student that is a network of timm's, which timm alone loads; none where it is one of ours."""
    if "architecture" not in entries or OURS in entries or not (folder / REFERENCE_FILE).is_file():
        return []
    reference = read_reference(folder)
    if reference is None or "patch_tokens" in reference[1]:
        return []
    try:
        net: Any = timm.create_model(f"local-dir:{folder}", pretrained=True)
    except Exception as error:  # whatever timm raises is the finding
        return [Check("timm", False, f"does not load it: {type(error).__name__}: {str(error)[:200]}")]
    return [
        Check("timm loads", True, f"{entries['architecture']}, {net.num_features} features"),
        _reference(folder, net),
    ]


def _configs(entries: dict[str, Any], config: ModelConfig) -> list[Check]:
    """config.json says the same to each library as the weights do."""
    checks: list[Check] = []
    dtype = torch.float32
    for library, mark, wanted in (
        ("timm", "architecture", timm_config(config)),
        ("transformers", "model_type", transformers_config(config, dtype)),
    ):
        if mark not in entries:
            continue
        told = {k: v for k, v in wanted.items() if k not in ("pretrained_cfg", "dtype", "transformers_weights")}
        wrong = [f"{k} is {entries.get(k)!r}, not {v!r}" for k, v in told.items() if entries.get(k, v) != v]
        checks.append(Check(f"config.json for {library}", not wrong, "; ".join(wrong) or "fits the weights"))
    return checks


def _timm(folder: Path) -> Forward | str:
    entries = _entries(folder)
    if "architecture" not in entries:
        return "no config.json for it"
    net: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    extra = int(net.num_prefix_tokens) - 1

    def forward(pixels: Tensor) -> Tensor:
        tokens = net.forward_features(pixels)
        return torch.cat([tokens[:, :1], tokens[:, 1 + extra :]], 1)

    return forward


def _transformers(folder: Path) -> Forward | str:
    entries = _entries(folder)
    if "model_type" not in entries:
        return "no config.json for it"
    if importlib.util.find_spec("transformers") is None:
        return f"not installed: {how_to_install('transformers')}"
    if "architecture" in entries and not (folder / TRANSFORMERS_FILE).is_file():
        raise CheckpointError(f"config.json points to {TRANSFORMERS_FILE}, which is not there")
    from transformers import AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    net, info = AutoModel.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    lost = {k: v for k, v in info.items() if v and k in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    if lost:
        raise CheckpointError(f"tensors were not all used: {lost}")
    extra = int(getattr(net.config, "num_register_tokens", 0))

    def forward(pixels: Tensor) -> Tensor:
        tokens = net.eval()(pixels).last_hidden_state
        return torch.cat([tokens[:, :1], tokens[:, 1 + extra :]], 1)

    return forward


def _onnx(folder: Path) -> Forward | str:
    file = folder / "model.onnx"
    if not file.is_file():
        return "no model.onnx: dinov2-zoo export makes one"
    if importlib.util.find_spec("onnxruntime") is None:
        return f"not installed: {how_to_install('onnxruntime')}"
    from onnxruntime import InferenceSession

    session = InferenceSession(str(file), providers=["CPUExecutionProvider"])

    def forward(pixels: Tensor) -> Tensor:
        class_token, patches = session.run(None, {session.get_inputs()[0].name: pixels.numpy()})
        return torch.cat([torch.from_numpy(class_token)[:, None], torch.from_numpy(patches)], 1)

    return forward


def _entries(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    try:
        found = json.loads(file.read_text()) if file.is_file() else {}
    except ValueError as error:
        raise CheckpointError(f"{file} is not readable JSON: get it again.") from error
    return found if isinstance(found, dict) else {}


def failures(checks: Sequence[Check]) -> list[Check]:
    """Those that did not pass."""
    return [check for check in checks if check.passed is False]


def require(checks: Sequence[Check], source: str) -> None:
    """Raise unless nothing failed.

    Raises:
        ZooError: Names what failed.
    """
    if wrong := failures(checks):
        found = "; ".join(f"{check.what}: {check.found}" for check in wrong)
        raise ZooError(f"{source} is not what it says ({found}): do not use or publish it; save it again.")
