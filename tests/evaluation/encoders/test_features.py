"""Features of a source: in order, labelled, the same in any batches; a broken file costs itself only."""

import io

import pytest
import torch
from PIL import Image
from torch import nn

from dinov2_zoo.errors import DataError
from dinov2_zoo.evaluation.encoders.encoder import BackboneEncoder
from dinov2_zoo.evaluation.encoders.features import class_features
from dinov2_zoo.models.tokens import Tokens


class Photos:
    """Flat colours, brighter one by one; number 2 is no image."""

    def __init__(self, count=5):
        self.count = count
        self.classes = ["dark", "bright"]
        self.labels = [int(i > 2) for i in range(count)]

    def __len__(self):
        return self.count

    def read(self, index):
        if index == 2:
            return b"this is no image"
        out = io.BytesIO()
        Image.new("RGB", (40, 30), (50 * index,) * 3).save(out, "png")
        return out.getvalue()

    def name(self, index):
        return f"photo-{index}.png"


def brightness(images):
    mean = images.mean((2, 3))
    return Tokens(mean, mean[:, None])


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_order_labels_and_the_broken_file(batch_size):
    found = class_features(brightness, Photos(), size=14, batch_size=batch_size)
    assert found.features.shape == (4, 3) and found.features[:, 0].diff().min() > 0
    assert found.labels.tolist() == [0, 0, 1, 1]
    assert [(skip.sample_id, skip.name) for skip in found.skipped] == [(2, "photo-2.png")]


def test_chosen_images_in_the_order_asked():
    found = class_features(brightness, Photos(), size=14, indices=[4, 1])
    assert found.labels.tolist() == [1, 0] and found.features[0, 0] > found.features[1, 0]


def test_nothing_decodable_is_an_error():
    with pytest.raises(DataError, match="None of 1 images"):
        class_features(brightness, Photos(), indices=[2])


def test_a_backbone_is_measured_in_evaluation_mode_and_left_as_it_was():
    class Backbone(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward_features(self, x):
            assert not self.training
            patches = (x * self.scale).mean((2, 3))[:, None]
            return {"x_norm_clstoken": patches[:, 0].bfloat16(), "x_norm_patchtokens": patches.bfloat16()}

    backbone = Backbone().train()
    tokens = BackboneEncoder(backbone)(torch.ones(2, 3, 4, 4))
    assert backbone.training and not tokens.class_token.requires_grad
    assert tokens.class_token.dtype == tokens.patches.dtype == torch.float32
