"""The pretraining objective against a plain reference, gradients included; what it masks, and what it never moves."""

import dataclasses

import pytest
import reference
import tiny
import torch

from dinov2_zoo.config import PrototypesConfig, SelfDistillationConfig
from dinov2_zoo.data.positions import masked_positions
from dinov2_zoo.objectives.health import health


def head_parameters(head):
    mlp = [(layer.weight, layer.bias) for layer in head.mlp[::2]]
    return mlp, head.last_layer.weight_g, head.last_layer.weight_v


def reference_outputs(branch, views, masks):
    dino, ibot = branch.heads
    found = {"class": [], "patches": [], "tokens": []}
    for view, mask in zip(views, masks, strict=True):
        features = branch.backbone.forward_features(view, mask)
        found["class"].append(reference.head(*head_parameters(dino), features["x_norm_clstoken"]))
        if view.shape[-1] == tiny.GLOBAL:
            found["patches"].append(reference.head(*head_parameters(ibot), features["x_norm_patchtokens"]))
            found["tokens"].append(features["x_norm_clstoken"])
    return found


def reference_terms(module, batch, **options):
    with torch.no_grad():
        teacher = reference_outputs(module.ema, batch.global_crops, [None, None])
    views = [*batch.global_crops, *batch.local_crops]
    student = reference_outputs(module.student, views, [*batch.masks, *[None] * len(batch.local_crops)])
    return reference.objective(
        student,
        teacher,
        teacher_temperature=module.teacher_temperature(batch.step),
        student_temperature=module.losses.student_temperature,
        masks=batch.masks,
        **options,
    )


def gradients(module, loss):
    module.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in module.student.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("local", [0, 3])
def test_equals_the_plain_reference_with_its_gradient(float64, local, tied):
    module, batch = tiny.self_distillation(PrototypesConfig(chunk=7), tied=tied), tiny.masked_batch(local=local)
    assert 0 < batch.masks.sum() < batch.masks.numel() / 2
    mine, expected = module(batch), reference_terms(module, batch)
    for name, term in expected.items():
        torch.testing.assert_close(mine[name], term, rtol=1e-12, atol=1e-12)
    got, wanted = gradients(module, mine["loss"]), gradients(module, expected["loss"])
    assert got.keys() == wanted.keys() and "backbone.mask_token" in got
    for name in wanted:
        torch.testing.assert_close(got[name], wanted[name], rtol=1e-9, atol=1e-13, msg=name)
    assert all(p.grad is None for p in module.ema.parameters())


def test_ema_centring_equals_the_reference(float64):
    module = tiny.self_distillation(PrototypesConfig(centering="ema", center_momentum=0.7, chunk=5))
    centres = [torch.zeros_like(module.objective.dino_center), torch.zeros_like(module.objective.ibot_center)]
    for seed in range(2):
        batch = tiny.masked_batch(seed=seed)
        expected = reference_terms(module, batch, centres=centres)
        torch.testing.assert_close(module(batch)["loss"], expected["loss"], rtol=1e-12, atol=1e-12)
        with torch.no_grad():
            teacher = reference_outputs(module.ema, batch.global_crops, [None, None])
        masked = torch.cat(teacher["patches"]).flatten(0, 1)[batch.masks.flatten()]
        means = [torch.cat(teacher["class"]).mean(0), masked.mean(0)]
        centres = [0.7 * c + 0.3 * m for c, m in zip(centres, means, strict=True)]


def test_what_is_behind_a_mask_does_not_reach_the_student_but_the_teacher():
    module, batch = tiny.self_distillation(), tiny.masked_batch()
    hidden = torch.zeros(2, len(batch.seeds), 16, dtype=torch.bool)
    hidden[:, :, 5] = True
    batch = batch.hiding(hidden)
    other = batch.global_crops.clone()
    other[..., 7:14, 7:14] += 1  # patch 5 of a 4 x 4 grid
    with torch.no_grad():
        mine, changed = (
            module.student([crops], masks=hidden)[0].tokens.class_token for crops in (batch.global_crops, other)
        )
        seen, moved = (module.ema([crops])[0].tokens.class_token for crops in (batch.global_crops, other))
    assert torch.equal(mine, changed) and not torch.allclose(seen, moved)


def test_a_crop_weighs_the_same_however_many_of_its_patches_are_masked():
    masks = torch.zeros(2, 3, 16, dtype=torch.bool)
    masks[0, 0, :8], masks[1, 2, 3] = True, True
    found, weights = masked_positions(masks)
    assert found.tolist() == [*range(8), 5 * 16 + 3]
    torch.testing.assert_close(weights, torch.tensor([1 / 8 / 6] * 8 + [1 / 6]))


def test_no_mask_at_all_leaves_the_other_losses():
    batch = tiny.masked_batch()
    module = tiny.self_distillation()
    terms = module(batch.hiding(torch.zeros_like(batch.masks)))
    assert terms["ibot"].item() == 0 and terms["loss"].isfinite()
    terms["loss"].backward()


def test_the_temperature_rises_linearly_and_stays():
    module = tiny.self_distillation(config=SelfDistillationConfig(0.04, temperature_warmup_steps=10, drop_path=0.0))
    assert [round(module.teacher_temperature(step), 6) for step in (0, 5, 10, 99)] == [0.04, 0.055, 0.07, 0.07]
    batch = tiny.masked_batch()
    early, late = (module(dataclasses.replace(batch, step=step))["dino"] for step in (0, 10))
    assert early != late


def test_stochastic_depth_acts_in_training_and_follows_from_seed_and_step():
    config = SelfDistillationConfig(drop_path=0.5, temperature_warmup_steps=0)
    module, whole = tiny.self_distillation(config=config), tiny.masked_batch()
    batch = tiny.rows(whole, 0, 1, module.drop_path(0))
    first, again = module(batch)["loss"], module(tiny.rows(whole, 0, 1, module.drop_path(0)))["loss"]
    other = module(tiny.rows(whole, 0, 1, module.drop_path(1)))["loss"]
    module.eval()
    whole = module(batch)["loss"]
    assert first == again and len({first.item(), other.item(), whole.item()}) == 3


def test_prototypes_in_use_are_those_that_are_some_images_nearest():
    draw = torch.Generator().manual_seed(0)
    tokens, prototypes = torch.randn(20, 3, generator=draw), torch.randn(30, 3, generator=draw)
    different = len((tokens @ prototypes.T).argmax(1).unique())
    assert 1 < different < 20
    used = health(tokens, tokens, prototypes, temperature=0.1)["prototypes_used"]
    assert used == torch.tensor(different / 20)


def test_health_tells_a_collapsed_teacher_from_a_sound_one():
    module, batch = tiny.self_distillation(), tiny.masked_batch(images=8)
    sound = module(batch)
    with torch.no_grad():
        module.ema.backbone.patch_embed.proj.weight.zero_()  # every image looks the same
    collapsed = module(batch)
    for name in ("information", "neighbour_distance"):
        assert sound[f"health/{name}"] > 2 * collapsed[f"health/{name}"], name
    assert collapsed["health/information"].abs() < 1e-5 and collapsed["health/prototypes_used"] == 1 / 8
