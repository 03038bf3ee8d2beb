"""The code of tokens: what it keeps, how far rounding moves them, and teachers that it cannot be fitted on."""

import pytest
import torch

from dinov2_zoo.errors import DataError
from dinov2_zoo.models.stored import LEVELS
from dinov2_zoo.models.tokens import Tokens
from dinov2_zoo.targets.fit import SPAN, fit_code

DIM, RANK = 24, 5


def tokens_of(count, seed=0, rank=RANK):
    """Tokens in few directions once standardised, of channels whose scales lie a thousandfold apart, about a mean."""
    made = torch.Generator().manual_seed(1)
    scale, mean = torch.logspace(-1, 2, DIM), 50 * torch.randn(DIM, generator=made)
    mixing = torch.randn(rank, DIM, generator=made)
    draw = torch.Generator().manual_seed(seed)
    flat = torch.randn(count * 5, rank, generator=draw) @ mixing * scale + mean
    return Tokens(flat[:count], flat[count:].unflatten(0, (count, 4)))


def fit(make=tokens_of, batches=8, size=16, **directions):
    parts = iter(range(batches))
    return fit_code(
        lambda crops: make(len(crops), seed=next(parts)), [torch.zeros(size, 3, 4, 4)] * batches, **directions
    )


def test_tokens_in_few_directions_come_back_whole_but_for_rounding():
    code, tokens = fit(class_directions=DIM, directions=RANK), tokens_of(50, seed=99)
    codes = code.encode(tokens)
    assert codes.dtype == torch.int8 and codes.shape == (50, DIM + 4 * RANK) and code.width(4) == DIM + 4 * RANK
    again = code.decode(codes)
    for mine, theirs, kind in (
        (again.class_token, tokens.class_token, code.class_token),
        (again.patches, tokens.patches, code.patches),
    ):
        # Half a step at most in each direction; what lies beyond SPAN deviations is cut off, and nothing does here.
        most = 0.5 * kind.read.abs().sum(0) + 1e-3
        assert bool(((mine - theirs).abs() <= most).all())
        assert not torch.equal(mine, theirs)
    deviation = tokens.class_token.std(0)
    assert float(((again.class_token - tokens.class_token) / deviation).abs().max()) < 0.6 * SPAN / LEVELS


def test_a_code_does_not_mind_how_crops_are_stacked():
    code, tokens = fit(class_directions=DIM, directions=RANK), tokens_of(12, seed=3)
    flat = code.encode(tokens)
    stacked = code.encode(tokens.map(lambda x: x.unflatten(0, (3, 4))))
    assert torch.equal(stacked.flatten(0, 1), flat)
    assert torch.equal(code.decode(stacked).patches.flatten(0, 1), code.decode(flat).patches)


def test_more_directions_lose_less():
    def full(count, seed):
        return tokens_of(count, seed, rank=DIM)

    tokens, lost = full(200, 99), []
    for directions in (2, 6, 12, DIM - 1):
        code = fit(full, class_directions=DIM, directions=directions)
        again = code.decode(code.encode(tokens))
        lost.append(float(((again.patches - tokens.patches) / tokens.patches.flatten(0, 1).std(0)).square().mean()))
    assert lost == sorted(lost, reverse=True) and lost[0] > 0.3 and lost[-1] < 0.05


def test_a_channel_that_never_varies_is_kept():
    def dead(count, seed):
        return tokens_of(count, seed).map(lambda x: x.index_fill(-1, torch.tensor(3), 7.0))

    code = fit(dead, class_directions=DIM, directions=RANK)
    again = code.decode(code.encode(dead(9, 5)))
    torch.testing.assert_close(again.patches[..., 3], torch.full((9, 4), 7.0), atol=1e-3, rtol=0)
    assert bool(again.class_token.isfinite().all())


def constant(count, seed):
    return tokens_of(count, seed).map(lambda x: torch.full_like(x, 3.0) * torch.arange(1.0, DIM + 1))


def broken(count, seed):
    return tokens_of(count, seed).map(lambda x: x.index_fill(-1, torch.tensor(3), torch.nan))


@pytest.mark.parametrize(
    ("make", "asked", "words"),
    [
        (constant, {}, "the same class token whatever it is shown.*take a trained teacher"),
        (broken, {}, "not finite.*take another"),
        (
            tokens_of,
            {"class_directions": 20, "size": 2},
            r"16 class tokens are too few to find 20 .*--fit_images.* or 24",
        ),
        (
            tokens_of,
            {"directions": 20, "size": 1, "batches": 5},
            r"20 patch tokens are too few .*--directions below 20",
        ),
    ],
)
def test_a_teacher_that_nothing_can_be_learnt_from(make, asked, words):
    with pytest.raises(DataError, match=words):
        fit(make, **{"class_directions": DIM, "directions": RANK} | asked)
