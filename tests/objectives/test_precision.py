"""Under bf16 autocast networks run in bf16 and every loss in fp32: a logged number is no bf16 number."""

import pytest
import tiny
import torch

from dinov2_zoo.config import ObjectiveConfig, PrototypesConfig
from dinov2_zoo.objectives.health import health

KINDS = ("features", "sinkhorn", "ema", "pretrain")


def bf16():
    return torch.autocast("cpu", torch.bfloat16)


def made(kind):
    if kind == "features":
        return tiny.features(), tiny.batch()
    losses = PrototypesConfig(centering="ema" if kind == "ema" else "sinkhorn", chunk=7)
    if kind == "pretrain":
        return tiny.self_distillation(losses), tiny.masked_batch()
    return tiny.prototypes(ObjectiveConfig(kind="prototypes", prototypes=losses)), tiny.batch()


def terms_in_fp32(kind, module, batch):
    """The same terms, outside autocast, of the features that the networks give under it."""
    crops = [batch.global_crops, batch.local_crops]
    pretraining, options = kind == "pretrain", {}
    if pretraining:
        options["positions"], weights = batch.positions, batch.weights
    with bf16(), torch.no_grad():
        student = module.student(crops, **options, **({"masks": batch.masks} if pretraining else {}))
        teacher = (module.ema if pretraining else module.teacher)(crops, **options)
    if kind == "features":
        return module.objective(student, teacher)
    temperature = module.teacher_temperature(0) if pretraining else module.config.prototypes.teacher_temperature
    terms = module.objective(
        student, teacher[:1], teacher_temperature=temperature, patch_weights=weights if pretraining else None
    )
    if pretraining:
        seen = teacher[0]
        metrics = health(
            seen.tokens.class_token[0], seen.dino.bottleneck[0], seen.dino.prototypes, temperature=temperature
        )
        terms |= {f"health/{name}": metric for name, metric in metrics.items()}
    return terms


@pytest.mark.parametrize("kind", KINDS)
def test_every_term_is_the_fp32_loss_of_the_bf16_features(kind):
    module, batch = made(kind)
    expected = terms_in_fp32(kind, module.eval(), batch)  # in evaluation mode centres stay
    with bf16():
        found = module(batch)
    assert found.keys() == expected.keys()
    for name, term in found.items():
        assert term.dtype == torch.float32, name
        torch.testing.assert_close(term, expected[name], rtol=1e-6, atol=1e-6, msg=name)
    exact = module(batch)
    assert (found["loss"] - exact["loss"]).abs() > 1e-6, "the networks ran in fp32: nothing was tested"


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_pass_from_fp32_losses_into_bf16_networks(kind):
    module, batch = made(kind)
    with bf16():
        loss = module(batch)["loss"]
    loss.backward()
    gradients = {n: p.grad for n, p in module.student.named_parameters() if p.grad is not None}
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in gradients.values())
    assert gradients["backbone.patch_embed.proj.weight"].abs().sum() > 0
