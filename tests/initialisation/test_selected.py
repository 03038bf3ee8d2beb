"""A student cut out of its teacher: nothing is mixed up, and of a teacher that repeats itself nothing is lost."""

from dataclasses import replace

import pytest
import torch

from dinov2_zoo.config import ModelConfig
from dinov2_zoo.errors import ConfigError
from dinov2_zoo.initialisation.selected import evenly_spaced, select_weights
from dinov2_zoo.models.vision_transformer import VisionTransformer

SMALL = ModelConfig(16, 2, 2, patch_size=7, img_size=28)
KINDS = pytest.mark.parametrize("kind", [{}, {"num_registers": 4, "ffn": "swiglu"}], ids=["plain", "reg4, swiglu"])


def images(side=28):
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def features(model, masks=None, side=28):
    with torch.inference_mode():
        found = model.forward_features(images(side), masks)
    return torch.cat([found[f"x_norm_{name}"].flatten(1) for name in ("clstoken", "regtokens", "patchtokens")], dim=1)


@torch.no_grad()
def repeat(small, teacher):
    """Make a teacher compute what `small` does, twice in each channel, with noise in all that has no say.

    Neighbouring channels 2i and 2i + 1 of its stream both hold channel i. Layers read the one that selection keeps
    (it keeps just one of each pair); heads, hidden units and blocks that it drops write nothing.
    """
    wide, narrow = teacher.config, small.config
    channels = evenly_spaced(wide.embed_dim, narrow.embed_dim)
    assert torch.equal(channels // 2, torch.arange(narrow.embed_dim))
    width = wide.embed_dim // wide.num_heads
    heads = evenly_spaced(wide.num_heads, narrow.num_heads)
    inner = torch.cat([torch.arange(h * width, (h + 1) * width) for h in heads])
    hidden = evenly_spaced(wide.ffn_hidden, narrow.ffn_hidden)
    fc1 = torch.cat([hidden, hidden + wide.ffn_hidden]) if wide.ffn == "swiglu" else hidden
    kept = {"qkv": torch.cat([inner, wide.embed_dim + inner, 2 * wide.embed_dim + inner]), "fc1": fc1}

    def twice(source, target, axis):
        target.copy_(source.repeat_interleave(2, axis))

    def read(source, target, rows):
        target.weight[rows] = 0
        target.weight[rows[:, None], channels] = source.weight
        target.bias[rows] = source.bias

    def write(source, target, columns):
        target.weight.zero_()
        target.weight[:, columns] = source.weight.repeat_interleave(2, 0)
        twice(source.bias, target.bias, 0)

    for block in teacher.blocks:
        block.ls1.gamma.zero_()
        block.ls2.gamma.zero_()
    for number, block in enumerate(evenly_spaced(wide.depth, narrow.depth)):
        mine, theirs = small.blocks[number], teacher.blocks[block]
        for name in ("norm1.weight", "norm1.bias", "ls1.gamma", "norm2.weight", "norm2.bias", "ls2.gamma"):
            twice(mine.get_parameter(name), theirs.get_parameter(name), 0)
        read(mine.attn.qkv, theirs.attn.qkv, kept["qkv"])
        write(mine.attn.proj, theirs.attn.proj, inner)
        read(mine.mlp.fc1, theirs.mlp.fc1, kept["fc1"])
        write(mine.mlp.fc2, theirs.mlp.fc2, hidden)
    for name in ("norm.weight", "norm.bias", "patch_embed.proj.weight", "patch_embed.proj.bias"):
        twice(small.get_parameter(name), teacher.get_parameter(name), 0)
    for name in ("cls_token", "pos_embed", "mask_token", *(["reg_token"] if wide.num_registers else [])):
        twice(small.get_parameter(name), teacher.get_parameter(name), -1)


def test_evenly_spaced_includes_both_ends():
    assert evenly_spaced(12, 4).tolist() == [0, 4, 7, 11]
    assert evenly_spaced(5, 5).tolist() == [0, 1, 2, 3, 4]
    assert evenly_spaced(7, 1).tolist() == [0]
    assert all(len(set(evenly_spaced(n, k).tolist())) == k for n in range(1, 40) for k in range(1, n + 1))


@KINDS
def test_a_teacher_that_repeats_itself_is_cut_down_without_loss(lively, kind):
    # Holds only if the same channels are kept in every layer, heads whole, both sides of each hidden unit, both ends
    # of the depth.
    small = lively(replace(SMALL, **kind), dtype=torch.float64)
    teacher = lively(replace(small.config, embed_dim=32, num_heads=4, depth=5), seed=1, dtype=torch.float64)
    repeat(small, teacher)
    channels = evenly_spaced(32, 16)
    student = lively(small.config, seed=2, dtype=torch.float64)
    select_weights(teacher, student)
    masks = torch.rand(2, 16, generator=torch.Generator().manual_seed(0)) < 0.5
    for mask in (None, masks):
        torch.testing.assert_close(features(student, mask), features(small, mask), rtol=0, atol=1e-12)
    of_teacher = features(teacher).unflatten(1, (-1, 32))[..., channels].flatten(1)
    torch.testing.assert_close(features(student), of_teacher, rtol=0, atol=1e-12)


@KINDS
def test_a_teacher_of_the_same_shape_is_copied(lively, kind):
    teacher = lively(replace(SMALL, **kind), dtype=torch.float64)
    student = lively(teacher.config, seed=1, dtype=torch.float64)
    select_weights(teacher, student)
    torch.testing.assert_close(features(student), features(teacher), rtol=0, atol=1e-12)


def test_a_student_shares_no_memory_with_its_teacher(lively):
    teacher, student = lively(SMALL), lively(SMALL, seed=1)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    select_weights(teacher, student)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.fill_(7)
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())


@pytest.mark.parametrize("rule", [(0.0, True), (0.1, False)])
def test_positions_are_resampled_to_the_students_grid_by_the_teachers_rule(lively, rule):
    offset, antialias = rule
    teacher = lively(replace(SMALL, position_offset=offset, position_antialias=antialias), dtype=torch.float64)
    student = lively(replace(SMALL, img_size=56), seed=1, dtype=torch.float64)
    select_weights(teacher, student)
    torch.testing.assert_close(features(student, side=56), features(teacher, side=56), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("theirs", "mine"), [(0, 4), (4, 0), (4, 2)])
def test_registers_without_a_counterpart_stay_as_drawn_and_all_other_tokens_are_the_teachers(lively, theirs, mine):
    teacher = lively(replace(SMALL, num_registers=theirs), dtype=torch.float64)
    student = lively(replace(SMALL, num_registers=mine), seed=1, dtype=torch.float64)
    drawn = student.reg_token.clone() if mine else None
    select_weights(teacher, student)
    with torch.inference_mode():
        wanted, found = teacher.prepare_tokens(images()), student.prepare_tokens(images())
    torch.testing.assert_close(found[:, 0], wanted[:, 0])
    torch.testing.assert_close(found[:, 1 + mine :], wanted[:, 1 + theirs :])
    assert drawn is None or torch.equal(student.reg_token, drawn)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"embed_dim": 32, "num_heads": 4}, "larger than its teacher in embed_dim, num_heads"),
        ({"depth": 3}, "larger than its teacher in depth"),
        ({"patch_size": 14}, "Teacher: patch 7, mlp; student: patch 14, mlp"),
        ({"ffn": "swiglu"}, "student: patch 7, swiglu"),
        ({"num_heads": 1}, "heads of different width"),
    ],
)
def test_students_that_cannot_be_cut_out_are_refused_with_the_remedy(changes, words):
    with pytest.raises(ConfigError, match=f"{words}.*--init random"):
        select_weights(VisionTransformer(SMALL), VisionTransformer(replace(SMALL, **changes)))
