"""Standardised heads say of a frozen backbone's tokens what drawn heads say of the same with mean 0 and deviation 1."""

import copy

import pytest
import tiny
import torch

from dinov2_zoo.initialisation.heads import standardise_heads

CPU = torch.device("cpu")


def tokens_of(module, batches):
    with torch.no_grad():
        outputs = [module.ema([batch.global_crops])[0].tokens for batch in batches]
    class_tokens = torch.cat([tokens.class_token.flatten(0, 1) for tokens in outputs])
    return class_tokens, torch.cat([tokens.patches.flatten(0, 2) for tokens in outputs])


@pytest.mark.parametrize("tied", [False, True])
def test_heads_say_of_tokens_what_they_said_of_standardised_ones(float64, tied):
    module = tiny.self_distillation(tied=tied)
    with torch.no_grad():
        module.ema.backbone.norm.bias.add_(5)  # a large mean that all tokens share
    drawn = copy.deepcopy(module)
    batches = [tiny.batch(local=0, seed=seed) for seed in range(3)]
    standardise_heads(module, iter(batches), device=CPU)
    kinds = tokens_of(module, batches)
    statistics = [torch.cat(kinds)] * 2 if tied else kinds
    for branch, before in ((module.student, drawn.student), (module.ema, drawn.ema)):
        for head, old, tokens, seen in zip(branch.heads, before.heads, kinds, statistics, strict=True):
            standardised = (tokens - seen.mean(0)) / seen.std(0, correction=0)
            torch.testing.assert_close(head(tokens), old(standardised), rtol=1e-10, atol=1e-10)
