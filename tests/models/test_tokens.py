"""Tokens have the shapes that they say, and torch finds them in what a module returns."""

import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map

from dinov2_zoo.models.tokens import BranchOutput, HeadOutput, Tokens


def tokens(views=2, images=3, patches=4, dim=5):
    return Tokens(torch.randn(views, images, dim), torch.randn(views, images, patches, dim))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Tokens(torch.zeros(2, 3, 5), torch.zeros(2, 4, 4, 5)),
        lambda: Tokens(torch.zeros(2, 5), torch.zeros(2, 3, 4, 5)),
        lambda: Tokens(torch.zeros(2, 5), torch.zeros(2, 4, 5, dtype=torch.long)),
        lambda: HeadOutput(torch.zeros(2, 3, 6), torch.zeros(8, 7)),
        lambda: BranchOutput(HeadOutput(torch.zeros(3, 6), torch.zeros(8, 6))),
    ],
    ids=["other images", "no views", "integers", "other bottleneck", "no tokens"],
)
def test_shapes_are_checked_in_tests(wrong):
    with pytest.raises(TypeError):
        wrong()


def test_widths_may_differ():
    assert Tokens(torch.zeros(2, 7), torch.zeros(2, 4, 5)).class_token.shape == (2, 7)


def test_batches_are_joined_and_taken_apart_again():
    whole = tokens(views=6)
    parts = [whole[:2], whole[2:6]]
    assert parts[1].patches.shape == (4, 3, 4, 5)
    for one, other in ((Tokens.cat(parts), whole), (whole[3], parts[1][1])):
        assert torch.equal(one.class_token, other.class_token) and torch.equal(one.patches, other.patches)


def test_torch_finds_every_tensor_of_a_modules_output():
    # FSDP gathers weights for the backward pass when a gradient reaches one of these.
    output = BranchOutput(tokens(), ibot=HeadOutput(torch.ones(9, 6), torch.ones(8, 6)))
    assert len(tree_leaves([output])) == 4
    doubled = tree_map(lambda x: 2 * x, [output])[0]
    assert torch.equal(doubled.tokens.patches, 2 * output.tokens.patches)
    assert doubled.ibot.prototypes.eq(2).all() and doubled.dino is None
