"""Exported files compute what the model does, at any batch, and say how far they are off."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import dinov2_zoo
from dinov2_zoo.config import ModelConfig
from dinov2_zoo.errors import ConfigError
from dinov2_zoo.hub.export import export, run
from dinov2_zoo.hub.model import Dinov2Model
from dinov2_zoo.hub.verify import failures, verify

PLAIN = ModelConfig(128, 2, 2, img_size=56, position_offset=0.1, position_antialias=False, layer_scale=1.0)
SWIGLU = ModelConfig(128, 2, 2, img_size=56, num_registers=4, ffn="swiglu", layer_scale=1.0)


def saved(folder, config):
    torch.manual_seed(0)
    Dinov2Model(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
@pytest.mark.parametrize("config", [PLAIN, SWIGLU], ids=["plain", "swiglu"])
def test_a_file_for_another_size_computes_what_the_model_does(tmp_path, config, suffix):
    folder = saved(tmp_path / "m", config)
    found = export(str(folder), tmp_path / f"x{suffix}", size=84)
    assert found.largest_difference < 1e-4 and found.least_cosine > 1 - 1e-6
    pixels = torch.randn(5, 3, 84, 84)
    with torch.no_grad():
        tokens = Dinov2Model.from_pretrained(folder).forward_features(pixels)  # resamples as it runs
    class_token, patches = run(tmp_path / f"x{suffix}", pixels)
    torch.testing.assert_close(class_token, tokens["x_norm_clstoken"], rtol=0, atol=1e-4)
    torch.testing.assert_close(patches, tokens["x_norm_patchtokens"], rtol=0, atol=1e-4)


def test_smaller_weights_are_smaller_and_close(tmp_path):
    folder = saved(tmp_path / "m", PLAIN)
    sizes = {}
    for precision, least in (("fp32", 0.999999), ("fp16", 0.999), ("int8", 0.95)):
        found = export(str(folder), tmp_path / f"{precision}.onnx", size=56, precision=precision)
        assert found.least_cosine > least, precision
        sizes[precision] = found.size
    assert sizes["fp16"] < 0.6 * sizes["fp32"] and sizes["int8"] < 0.5 * sizes["fp32"]
    assert export(str(folder), tmp_path / "half.pt2", size=56, precision="fp16").least_cosine > 0.999


def test_verify_looks_at_an_exported_file_beside_the_weights(tmp_path):
    folder = saved(tmp_path / "m", SWIGLU)
    export(str(folder), folder / "model.onnx", size=56)
    checks = {check.what: check for check in verify(str(folder))}
    assert checks["onnxruntime, 56 x 56"].passed and checks["onnxruntime, 126 x 84"].passed is None
    other = saved(tmp_path / "other", PLAIN)
    (folder / "model.onnx").unlink()
    export(str(other), folder / "model.onnx", size=56)
    assert [check.what for check in failures(verify(str(folder)))] == ["onnxruntime, 56 x 56"]


def test_what_cannot_be_exported_says_so(tmp_path):
    folder = saved(tmp_path / "m", PLAIN)
    for name, precision in (("x.tflite", "fp32"), ("x.pt2", "int8")):
        with pytest.raises(ConfigError, match=r"name a \.onnx file"):
            export(str(folder), tmp_path / name, precision=precision)
    (tmp_path / "x.onnx").write_text("")
    with pytest.raises(ConfigError, match="exists: export to a new file"):
        export(str(folder), tmp_path / "x.onnx")


def test_the_command_says_how_far_the_file_is_off(tmp_path):
    folder = saved(tmp_path / "m", PLAIN)
    code = "import sys; sys.argv[0] = 'dinov2-zoo'; from dinov2_zoo.cli import main; main()"
    command = [sys.executable, "-c", code, "export", folder, tmp_path / "x.onnx", "--size", "56"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "least cosine of a token 1.000000" in done.stdout, done.stderr


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_a_file_does_not_tell_where_it_was_made(tmp_path, suffix):
    export(str(saved(tmp_path / "m", PLAIN)), tmp_path / f"x{suffix}", size=56)
    held = (tmp_path / f"x{suffix}").read_bytes()
    for place in (sys.prefix, str(Path(dinov2_zoo.__file__).parent), str(tmp_path)):
        assert place.encode() not in held
