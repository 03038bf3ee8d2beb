"""Photos are prepared alike here, in transformers and in timm, from what the model's folder says."""

import pytest
import timm
import torch
from PIL import Image
from skimage import data as photos
from transformers import AutoImageProcessor

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
