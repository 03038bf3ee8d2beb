"""Photos are prepared alike here, in transformers and in timm, from what the model's folder says."""

import pytest
import timm
import torch
from PIL import Image
from skimage import data as photos
from transformers import AutoImageProcessor, AutoModel

from dinov2_zoo.config import ModelConfig
from dinov2_zoo.data.preprocess import IMAGENET_STD
from dinov2_zoo.hub.model import Dinov2Model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "m"
    Dinov2Model(ModelConfig(64, 2, 1, img_size=224, num_registers=4)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("photo", ["astronaut", "coffee", "chelsea"])
@pytest.mark.parametrize("turned", [False, True])
def test_every_library_prepares_a_photo_alike(folder, photo, turned):
    image = Image.fromarray(getattr(photos, photo)())
    image = image.rotate(90, expand=True) if turned else image
    ours = Dinov2Model.from_pretrained(folder).preprocess(image)[0]
    theirs = AutoImageProcessor.from_pretrained(folder)(image, return_tensors="pt")["pixel_values"][0]
    config = timm.data.resolve_model_data_config(timm.create_model(f"local-dir:{folder}", pretrained=True))
    timms = timm.data.create_transform(**config, is_training=False)(image)
    for other in (theirs, timms):
        levels = (ours - other) * torch.tensor(IMAGENET_STD).view(3, 1, 1) * 255
        # timm resizes with PIL, whose rounding is another: one level of 255 in one pixel of a hundred.
        assert levels.abs().max() < 1.01 and levels.abs().mean() < 0.01


@pytest.mark.parametrize("size", [42, 98, 518])
def test_by_default_three_libraries_give_a_photo_the_same_features(tmp_path, lively, size):
    shape = ModelConfig(64, 2, 1, img_size=size, num_registers=4)
    Dinov2Model.from_state(shape, lively(shape).state_dict()).save_pretrained(tmp_path / "m")
    model = Dinov2Model.from_pretrained(tmp_path / "m")
    in_timm = timm.create_model(f"local-dir:{tmp_path / 'm'}", pretrained=True).eval()
    prepare = timm.data.create_transform(**timm.data.resolve_model_data_config(in_timm), is_training=False)
    processor = AutoImageProcessor.from_pretrained(tmp_path / "m")
    in_transformers = AutoModel.from_pretrained(tmp_path / "m").eval()
    image = Image.fromarray(photos.coffee())
    ours = model.embed(image)
    with torch.no_grad():
        theirs = (
            in_timm(prepare(image)[None]),
            in_transformers(**processor(image, return_tensors="pt")).pooler_output,
        )
    apart = [1 - torch.cosine_similarity(ours, features).item() for features in theirs]
    assert max(apart) < 0.001
    # Not because this model sees no difference: at another size it gives others.
    other = model.embed(image, size=2 * size if size < 518 else 224)
    assert max(apart) < 0.2 * (1 - torch.cosine_similarity(ours, other).item())
