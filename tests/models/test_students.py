"""Any timm network can be a student under our names; what cannot, is refused when it is built."""

import functools

import pytest
import torch

from dinov2_zoo.errors import ConfigError
from dinov2_zoo.models.students import TimmStudent, build_student
from dinov2_zoo.models.vision_transformer import VisionTransformer

SIDE = 96
# Name, patches, their width, width of the class feature: a map [B, D, h, w], tokens with a class token, a map
# [B, h, w, D], and a network whose pooled feature is wider than its map.
NETWORKS = [
    ("convnext_atto", 3 * 3, 320, 320),
    ("vit_tiny_patch16_224", 6 * 6, 192, 192),
    ("test_mambaout", 3 * 3, 64, 256),
    ("mobilenetv3_small_050", 3 * 3, 288, 1024),
]


def images(side=SIDE, count=2):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))


@functools.cache
def built(name):
    torch.manual_seed(0)
    return build_student(f"timm:{name}", SIDE)


@pytest.mark.parametrize(("name", "patches", "dim", "class_dim"), NETWORKS)
def test_a_timm_network_gives_a_grid_and_a_class_feature_of_the_widths_it_names(name, patches, dim, class_dim):
    student = built(name).eval()
    assert (student.embed_dim, student.class_dim) == (dim, class_dim)
    with torch.inference_mode():
        found = student.forward_features(images())
        assert {key: x.shape for key, x in found.items()} == {
            "x_norm_clstoken": (2, class_dim),
            "x_norm_patchtokens": (2, patches, dim),
        }
        assert torch.equal(found["x_norm_clstoken"], student.net(images()))
        assert torch.equal(found["x_norm_clstoken"], student(images()))


@pytest.mark.parametrize("name", [name for name, *_ in NETWORKS])
def test_patches_are_row_major(name):
    student, changed = built(name).eval(), images(count=1)
    changed[..., : SIDE // 3, -SIDE // 3 :] += 3  # the top right
    with torch.inference_mode():
        before, after = (student.forward_features(x)["x_norm_patchtokens"] for x in (images(count=1), changed))
    difference = (after - before).norm(dim=-1)[0]
    columns = round(len(difference) ** 0.5)
    assert difference[columns - 1] > 2 * difference[-columns]  # top right, bottom left


@pytest.mark.parametrize("name", ["convnext_atto", "vit_tiny_patch16_224"])
def test_groups_of_crops_are_taken_as_by_our_own_backbone(name):
    student = built(name).eval()
    with torch.inference_mode():
        groups = student.forward_features([images(), images(64, 3)])
        assert [len(group["x_norm_clstoken"]) for group in groups] == [2, 3]
        alone = student.forward_features(images(64, 3))["x_norm_patchtokens"]
        assert torch.equal(groups[1]["x_norm_patchtokens"], alone)


@pytest.mark.parametrize("name", ["convnext_atto", "vit_tiny_patch16_224"])
def test_the_gradient_reaches_every_weight(name):
    student = built(name).train()
    found = student.forward_features(images())
    (found["x_norm_clstoken"].sin().sum() + found["x_norm_patchtokens"].sin().sum()).backward()
    still = [n for n, p in student.named_parameters() if p.grad is None or not p.grad.any()]
    student.zero_grad()
    assert not still


@pytest.mark.parametrize("name", ["convnext_atto", "vit_tiny_patch16_224"])
def test_recomputed_blocks_give_the_same_gradients(name):
    student, gradients, kept = TimmStudent(name, SIDE).train(), [], []
    for student.checkpoint_blocks in (False, True):
        stored = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x, stored=stored: stored.append(x.numel()) or x, lambda x: x
        ):
            found = student.forward_features(images())
        (found["x_norm_clstoken"].sin().sum() + found["x_norm_patchtokens"].sin().sum()).backward()
        gradients.append([p.grad.clone() for p in student.parameters()])
        kept.append(sum(stored))
        student.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert student.checkpoint_blocks and kept[1] < kept[0] / 2


def test_a_network_that_cannot_recompute_its_blocks_says_what_to_set():
    student = TimmStudent("darknet17", SIDE)
    student.checkpoint_blocks = False  # as it is: nothing to refuse
    with pytest.raises(ConfigError, match=r"darknet17: set runtime.activation_checkpointing to false"):
        student.checkpoint_blocks = True
    assert not student.checkpoint_blocks


def test_building_leaves_statistics_untouched_and_the_network_ready_to_train():
    student = TimmStudent("mobilenetv3_small_050", SIDE)
    assert student.training and student.net.training
    assert all(torch.all(b == 1) for name, b in student.named_buffers() if name.endswith("running_var"))


def test_our_own_models_cover_the_crops_that_they_will_see():
    student = build_student("vitti14_reg4", 112)
    assert isinstance(student, VisionTransformer)
    assert student.config.img_size == 112 and student.pos_embed.shape == (1, 64, 192)


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="timm has no model `convnext_ato`: did you mean convnext_atto"):
        build_student("timm:convnext_ato", 224)
    with pytest.raises(ConfigError, match=r"timm has no model `\?\?\?`: see timm.list_models"):
        build_student("timm:???", 224)
    with pytest.raises(ConfigError, match="no model `vits15`: did you mean `vits14`"):
        build_student("vits15", 224)


@pytest.mark.parametrize(
    ("name", "side", "message"),
    [
        (
            "vit_tiny_patch16_224",
            98,
            "vit_tiny_patch16_224 does not take images of 98 pixels .*: set crops.global_size",
        ),
        ("coat_lite_tiny", 224, "^coat_lite_tiny has no square feature map: choose a network whose map is a grid"),
        ("coat_tiny", 224, "^coat_tiny has several feature maps: choose a network with one"),
    ],
)
def test_networks_that_cannot_be_students_are_refused_when_built(name, side, message):
    with pytest.raises(ConfigError, match=message):
        build_student(f"timm:{name}", side)


def test_images_whose_map_is_not_square_are_refused():
    with pytest.raises(ConfigError, match="convnext_atto has no square feature map"):
        built("convnext_atto").forward_features(torch.zeros(1, 3, 96, 64))
