"""A branch returns what its backbone and heads give when asked one by one, group of crops by group of crops."""

from dataclasses import asdict

import pytest
import torch
from torch.utils._pytree import tree_leaves

from dinov2_zoo.config import HeadConfig, ModelConfig
from dinov2_zoo.models.branch import Branch
from dinov2_zoo.models.heads import FeatureProjector, PrototypeHead
from dinov2_zoo.models.tokens import BranchOutput, HeadOutput, Tokens

VIEWS, IMAGES, PATCHES, DIM = 2, 3, 16, 24


@pytest.fixture
def branch(lively):
    torch.manual_seed(0)
    dino, ibot = (PrototypeHead(DIM, HeadConfig(k, hidden=20, bottleneck=6)) for k in (30, 40))
    backbone = lively(ModelConfig(DIM, 2, 3, patch_size=7, img_size=28, num_registers=4))
    return Branch(backbone, dino=dino, ibot=ibot, projector=FeatureProjector(DIM, DIM, 10)).eval()


def crops():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(v, IMAGES, 3, side, side, generator=generator) for v, side in ((VIEWS, 28), (4, 14))]


def assert_same(found, expected):
    torch.testing.assert_close(asdict(found), asdict(expected), rtol=0, atol=1e-5)


@torch.inference_mode()
def test_every_output_is_that_of_the_part_it_names(branch):
    for number, (group, found) in enumerate(zip(crops(), branch(crops()), strict=True)):
        alone = branch.backbone.forward_features(group.flatten(0, 1))
        patches = alone["x_norm_patchtokens"]
        tokens = Tokens(alone["x_norm_clstoken"], patches).map(lambda x, group=group: x.unflatten(0, group.shape[:2]))
        projector, dino, ibot = branch.projector, branch.dino, branch.ibot
        projected = Tokens(projector.class_token(tokens.class_token), projector.patches(tokens.patches))
        of_class = HeadOutput(dino(tokens.class_token), dino.prototypes())
        # The iBOT head is for global crops.
        of_patches = None if number else HeadOutput(ibot(patches.flatten(0, 1)), ibot.prototypes())
        assert_same(found, BranchOutput(tokens, projected, of_class, of_patches))


@torch.inference_mode()
def test_a_backbone_alone_returns_its_tokens_alone(branch):
    for output in Branch(branch.backbone)(crops()):
        assert output.projected is output.dino is output.ibot is None


@torch.inference_mode()
def test_positions_choose_the_patches_that_the_ibot_head_is_asked_about(branch):
    chosen = torch.tensor([0, 5, PATCHES * IMAGES, VIEWS * IMAGES * PATCHES - 1])
    every, some = (branch(crops(), positions=positions)[0].ibot.bottleneck for positions in (None, chosen))
    torch.testing.assert_close(some, every[chosen])


@torch.inference_mode()
def test_a_tied_head_serves_patches_too(branch):
    tied = Branch(branch.backbone, dino=branch.dino, tied=True)
    found = tied(crops())[0]
    torch.testing.assert_close(found.ibot.bottleneck, branch.dino(found.tokens.patches.flatten(0, 2)))
    assert torch.equal(found.ibot.prototypes, found.dino.prototypes)
    assert not any("ibot" in name for name in tied.state_dict())


@torch.inference_mode()
def test_masks_hide_patches_of_the_first_group_only(branch):
    masks = torch.zeros(VIEWS, IMAGES, PATCHES, dtype=torch.bool)
    masks[1, 2, 3] = True
    seen, hidden = branch(crops()), branch(crops(), masks=masks)
    changed = (seen[0].tokens.class_token != hidden[0].tokens.class_token).any(-1)
    assert changed.nonzero().tolist() == [[1, 2]]
    assert_same(seen[1], hidden[1])


@torch.inference_mode()
def test_outputs_leave_half_precision_behind(branch):
    for output in branch.bfloat16()([group.bfloat16() for group in crops()]):
        tensors = tree_leaves(output)
        assert len(tensors) >= 6 and {tensor.dtype for tensor in tensors} == {torch.float32}
