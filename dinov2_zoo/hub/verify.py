"""Whether a saved model is what it says: loaded by three libraries (and onnxruntime), compared output by output."""

import importlib.util
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from jaxtyping import Float
from torch import Tensor

from dinov2_zoo.config import ModelConfig
from dinov2_zoo.errors import CheckpointError, ZooError
from dinov2_zoo.files import sha256_of
from dinov2_zoo.hub.load import fetch
from dinov2_zoo.hub.model import Dinov2Model
from dinov2_zoo.weights.write import TRANSFORMERS_FILE, timm_config, transformers_config

TOLERANCE = 1e-4
"""Largest absolute difference between two libraries' tokens that is rounding (chosen here: fp32, up to 40 blocks)."""

CHECKSUMS = "SHA256SUMS"
"""Checksums of a published folder's files, as `sha256sum -c` reads them."""

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
        CheckpointError: It cannot even be loaded by us.
    """
    folder = fetch(source, revision=revision, everything=True)
    if not folder.is_dir():
        raise CheckpointError(f"{source} is one file: name the folder of a saved model, or convert the file first.")
    checks = [_checksums(folder)]
    model = Dinov2Model.from_pretrained(folder)
    config = model.config
    checks.append(Check("dinov2-zoo loads", True, f"width {config.embed_dim}, depth {config.depth}, every tensor used"))
    checks += _configs(folder, config)
    patch, side = config.patch_size, config.img_size
    sizes = sizes or [(side, side), (7 * patch, 7 * patch), (9 * patch, 6 * patch)]
    routes: list[tuple[str, Callable[[Path], Forward | str]]] = [
        ("timm", _timm), ("transformers", _transformers), ("onnxruntime", _onnx),
    ]  # fmt: skip
    for library, load in routes:
        try:
            theirs = load(folder)
        except Exception as error:  # whatever another library raises is the finding
            checks.append(Check(library, False, f"does not load it: {type(error).__name__}: {str(error)[:200]}"))
            continue
        if isinstance(theirs, str):
            checks.append(Check(library, None, theirs))
            continue
        for height, width in sizes:
            checks.append(_compare(model, theirs, library, height, width))
    return checks


def _compare(model: Dinov2Model, theirs: Forward, library: str, height: int, width: int) -> Check:
    what = f"{library}, {height} x {width}"
    pixels = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        tokens = model.float().forward_features(pixels)
        ours = torch.cat([tokens["x_norm_clstoken"][:, None], tokens["x_norm_patchtokens"]], 1)
        try:
            difference = (ours - theirs(pixels)).abs().max().item()
        except Exception as error:  # a size that the file was not made for
            return Check(what, None, f"not computed there: {str(error).splitlines()[0][:120]}")
    config = model.config
    if difference <= TOLERANCE:
        return Check(what, True, f"largest difference {difference:.1e}")
    elsewhere = not config.num_registers and (height, width) != (config.img_size, config.img_size)
    if elsewhere and library != "onnxruntime":
        # The published rule of models without registers, which neither library follows.
        return Check(what, None, f"differs by {difference:.1e}: it resamples positions by a rule of its own")
    return Check(what, False, f"differs by {difference:.1e}")


def _checksums(folder: Path) -> Check:
    file = folder / CHECKSUMS
    if not file.is_file():
        return Check("checksums", None, f"no {CHECKSUMS} beside the weights")
    lines = [line.split(maxsplit=1) for line in file.read_text().splitlines()]
    listed = {name: checksum for checksum, name in lines}
    wrong = [n for n, s in listed.items() if not (folder / n).is_file() or sha256_of(folder / n) != s]
    found = f"not as listed: {', '.join(wrong)}" if wrong else f"{len(listed)} files as listed"
    return Check("checksums", not wrong, found)


def _configs(folder: Path, config: ModelConfig) -> list[Check]:
    """config.json says the same to each library as the weights do."""
    file = folder / "config.json"
    entries: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
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
        return "not installed: pip install transformers"
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
        return "not installed: pip install onnxruntime"
    from onnxruntime import InferenceSession

    session = InferenceSession(str(file), providers=["CPUExecutionProvider"])

    def forward(pixels: Tensor) -> Tensor:
        class_token, patches = session.run(None, {session.get_inputs()[0].name: pixels.numpy()})
        return torch.cat([torch.from_numpy(class_token)[:, None], torch.from_numpy(patches)], 1)

    return forward


def _entries(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    return json.loads(file.read_text()) if file.is_file() else {}


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
