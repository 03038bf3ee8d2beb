"""Crops of several sizes in one packed row give what separate passes give, gradients included."""

import pytest
import torch

from dinov2_zoo.config import ModelConfig
from dinov2_zoo.models.packing import Packing

KINDS = [{}, {"num_registers": 4, "ffn": "swiglu"}]


def test_groups_come_back_from_a_row_as_views_of_it():
    groups = [torch.randn(2, 5, 3), torch.randn(4, 1, 3)]
    packing = Packing.of(groups)
    row = packing.pack(groups)
    assert row.shape == (14, 3)
    assert packing.lengths == [5, 5, 1, 1, 1, 1] and packing.longest == 5
    for group, unpacked in zip(groups, packing.unpack(row), strict=True):
        assert torch.equal(group, unpacked)
        assert unpacked.untyped_storage().data_ptr() == row.untyped_storage().data_ptr()


def test_a_single_group_is_not_copied():
    group = torch.randn(2, 5, 3)
    assert Packing.of([group]).pack([group]).data_ptr() == group.data_ptr()


def crops(dtype):
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 3, 28, 28), (3, 3, 14, 14), (1, 3, 7, 21)]
    images = [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]
    return images, [torch.rand(2, 16, generator=generator) < 0.5, None, torch.tensor([[True, False, True]])]


@pytest.mark.parametrize("kind", KINDS, ids=["plain", "reg4, swiglu"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)], ids=str)
def test_packed_groups_equal_separate_passes_with_their_gradient(lively, kind, dtype, tolerance):
    model = lively(ModelConfig(24, 2, 3, patch_size=7, img_size=28, **kind), dtype=dtype)
    images, masks = crops(dtype)

    def gradient(outputs):
        model.zero_grad()
        names = [name for name in outputs[0] if name != "masks"]
        sum(output[name].sin().mean() for output in outputs for name in names if output[name].numel()).backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    packed = model.forward_features(images, masks)
    separate = [model.forward_features(x, m) for x, m in zip(images, masks, strict=True)]
    for one, other in zip(packed, separate, strict=True):
        assert one.keys() == other.keys()
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance)
    mine, theirs = gradient(packed), gradient(separate)
    assert all(g.abs().max() > 100 * tolerance for g in mine.values())
    torch.testing.assert_close(mine, theirs, rtol=0, atol=tolerance)
