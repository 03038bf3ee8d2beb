"""Networks of timm's as teachers: weights from a file, in another library's order, and the sides that they take."""

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

from dinov2_zoo.errors import CheckpointError, ConfigError
from dinov2_zoo.evaluation.encoders.adapters import open_encoder
from dinov2_zoo.hub.further_teachers import load_further_teacher
from dinov2_zoo.hub.timm_network import in_order, open_timm
from dinov2_zoo.models.students import TimmStudent


@pytest.fixture(scope="module")
def lively():
    """A MobileNetV2 of torchvision's whose running statistics are not those of a new network."""
    torch.manual_seed(0)
    net = torchvision.models.mobilenet_v2()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
            torch.nn.init.uniform_(module.weight, 0.5, 2.0)
    return net.eval()


def test_torchvisions_weights_in_timms_network_give_the_same_features(lively, tmp_path):
    torch.save(lively.state_dict(), tmp_path / "mobilenet_v2.pth")
    images = torch.randn(2, 3, 64, 64)
    source = f"mobilenetv2_100@{tmp_path}/mobilenet_v2.pth"
    with torch.no_grad():
        wanted = lively.features(images)
        torch.testing.assert_close(open_timm(source).eval().forward_features(images), wanted, rtol=1e-4, atol=1e-4)
        teacher = load_further_teacher(f"timm:{source}", [64])
        found = teacher([images[None]])[0].tokens  # its normalisation is ImageNet's
    torch.testing.assert_close(found.patches[0], wanted.flatten(2).mT, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.class_token[0], wanted.mean((2, 3)), rtol=1e-4, atol=1e-4)
    encoder = open_encoder(f"timm:{source}")
    torch.testing.assert_close(encoder(images).patches, wanted.flatten(2).mT, rtol=1e-4, atol=1e-4)


def test_timms_own_names_are_read_with_and_without_a_classifier(tmp_path):
    net = timm.create_model("test_vit", num_classes=5).eval()
    for state, file in ((net.state_dict(), "whole"), ({n: t for n, t in net.state_dict().items()}, "other")):
        state = state if file == "whole" else {n: t for n, t in state.items() if not n.startswith("head.")}
        save_file(state, tmp_path / f"{file}.safetensors")
        again = open_timm(f"test_vit@{tmp_path}/{file}.safetensors").eval()
        images = torch.randn(1, 3, 160, 160)
        with torch.no_grad():
            torch.testing.assert_close(again.forward_features(images), net.forward_features(images))


def test_what_does_not_come_in_the_same_order_is_refused(lively, tmp_path):
    given, wanted = lively.state_dict(), timm.create_model("mobilenetv2_100", num_classes=0).state_dict()
    assert list(in_order(given, wanted)) == list(wanted)
    names = list(given)
    swapped = {n: given[n] for n in [*names[:2], names[3], names[2], *names[4:]]}  # running_mean before bias
    assert [names[2], names[3]] == ["features.0.1.bias", "features.0.1.running_mean"]
    assert in_order(swapped, wanted) is None
    assert in_order({n: t for n, t in given.items() if n != names[-3]}, wanted) is None
    assert in_order({**given, "features.19.weight": torch.zeros(1)}, wanted) is None
    bigger = timm.create_model("resnet26").state_dict()
    save_file({**bigger, "layer4.2.conv1.weight": torch.zeros(1)}, tmp_path / "bigger.safetensors")
    with pytest.raises(CheckpointError, match="does not hold the weights of timm's resnet26"):
        open_timm(f"resnet26@{tmp_path}/bigger.safetensors")


def teacher(name, tmp_path, sides):
    torch.save(timm.create_model(name).state_dict(), tmp_path / "w.pth")
    return load_further_teacher(f"timm:{name}@{tmp_path}/w.pth", sides).backbone


def test_a_teacher_sees_crops_at_sides_that_it_takes(tmp_path):
    vit = teacher("test_vit", tmp_path, [98, 112])  # patches of 16, any multiple
    assert [vit.takes(side) for side in (98, 112, 224)] == [96, 112, 224]
    assert isinstance(vit.backbone, TimmStudent) and vit.tokens([torch.randn(1, 3, 98, 98)])[0].patches.shape[1] == 36
    convolutions = teacher("test_convnext", tmp_path, [98, 112])
    assert [convolutions.takes(side) for side in (98, 112)] == [98, 112]


def test_a_network_of_one_size_sees_every_crop_at_it(tmp_path):
    mixer = teacher("mixer_s32_224", tmp_path, [98, 112])
    assert (mixer.side, mixer.takes(98), mixer.takes(448)) == (224, 224, 224)
    assert mixer.tokens([torch.randn(1, 3, 98, 98)])[0].patches.shape == (1, 49, 512)


@pytest.mark.parametrize(
    ("name", "sides", "words"),
    [
        ("coat_lite_tiny", [224], "^coat_lite_tiny has no square feature map"),
        ("test_convnext", [2], "test_convnext does not take images of 2 pixels .* set crops.global_size"),
    ],
)
def test_a_network_that_does_not_take_the_crops_is_refused(tmp_path, name, sides, words):
    with pytest.raises(ConfigError, match=words):
        teacher(name, tmp_path, sides)
