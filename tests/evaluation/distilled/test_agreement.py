"""Agreement: cosines and neighbours worked by hand; the mean alone is not mistaken for knowledge."""

import pytest
import torch

from dinov2_zoo.errors import ConfigError, DataError
from dinov2_zoo.evaluation.distilled.agreement import MIN_IMAGES, agreement, neighbour_overlap
from dinov2_zoo.models.grid import resample_grid
from dinov2_zoo.models.tokens import Tokens


def tokens(images=4, patches=9, dim=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Tokens(torch.randn(images, dim, generator=generator), torch.randn(images, patches, dim, generator=generator))


def test_a_perfect_student_agrees_fully_whatever_its_own_basis():
    teacher = tokens()
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(1)))[0]
    student = Tokens(teacher.class_token @ rotation, teacher.patches @ rotation)
    found = agreement(student, teacher, teacher)
    assert found.class_cosine == pytest.approx(1) and found.class_cosine_centred == pytest.approx(1)
    assert found.patch_cosine == pytest.approx(1) and found.patch_cosine_centred == pytest.approx(1)
    assert found.patch_neighbours == 1 and found.class_neighbours is None and found.images == 4


def test_by_hand_cosines():
    # Teacher (3, 1), (3, -1): mean (3, 0), residues (0, 1), (0, -1). Predicted (3, 2), (3, 2): cosines 11/sqrt(130) and
    # 7/sqrt(130); residues (0, 2) twice: +1 and -1.
    target = torch.tensor([[3.0, 1.0], [3.0, -1.0]])
    predicted = torch.tensor([[3.0, 2.0], [3.0, 2.0]])
    patches = tokens(images=2, dim=2).patches
    found = agreement(Tokens(target, patches), Tokens(predicted, patches), Tokens(target, patches))
    assert found.class_cosine == pytest.approx(9 / 130**0.5)
    assert found.class_cosine_centred == pytest.approx(0, abs=1e-6)


def test_answering_with_the_mean_gains_nothing_once_the_mean_is_removed():
    teacher = tokens(images=30)
    teacher = Tokens(teacher.class_token + 2, teacher.patches + 2)
    noise = 0.01 * tokens(images=30, seed=1).patches
    blind = Tokens(teacher.class_token.mean(0).expand(30, -1), teacher.patches.mean((0, 1)).expand(30, 9, -1) + noise)
    found = agreement(blind, blind, teacher)
    assert found.patch_cosine > 0.8
    assert abs(found.patch_cosine_centred) < 0.1
    assert found.patch_neighbours < 0.1


def test_by_hand_neighbours():
    # Angles on a circle. Two nearest of thing 0: {1, 2} in a, {1, 3} in b, so one of two is shared; of thing 3: {2, 1}
    # in a, {0, 1} in b, one of two.
    def circle(*degrees):
        angle = torch.deg2rad(torch.tensor(degrees))
        return torch.stack([angle.cos(), angle.sin()], 1)

    a, b = circle(0.0, 10.0, 25.0, 50.0), circle(0.0, 10.0, 170.0, 20.0)
    assert neighbour_overlap(a, b, torch.tensor([0]), k=2) == 0.5
    assert neighbour_overlap(a, b, torch.tensor([0, 3]), k=2) == 0.5
    assert neighbour_overlap(a, b * 7, torch.tensor([0]), k=1) == 1.0
    assert neighbour_overlap(a, b, torch.tensor([0]), k=3) == 1.0  # everything but itself


def test_class_neighbours_need_enough_images():
    few, many = tokens(images=MIN_IMAGES - 1), tokens(images=MIN_IMAGES)
    assert agreement(few, few, few).class_neighbours is None
    assert agreement(many, many, many).class_neighbours == 1
    assert set(agreement(few, few, few).to_dict()) >= {"patch_cosine_centred", "patch_neighbours", "images"}


def test_a_student_with_another_grid_is_resampled():
    ramp = torch.arange(4.0).expand(4, 4)  # columns 0..3
    patches = torch.stack([ramp, ramp.T], -1).reshape(1, 16, 2)
    coarse = resample_grid(patches, 4).reshape(2, 2, 2)
    assert coarse[0].tolist() == [[0.5, 0.5], [2.5, 0.5]]
    student, teacher = tokens(patches=4), tokens(patches=16)
    assert agreement(student, Tokens(teacher.class_token, teacher.patches), teacher).patch_cosine == pytest.approx(1)
    with pytest.raises(ConfigError, match="not square"):
        resample_grid(patches[:, :12], 4)


def test_too_few_patches():
    one = tokens(images=1, patches=4)
    with pytest.raises(DataError, match="give more"):
        agreement(one, one, one)
