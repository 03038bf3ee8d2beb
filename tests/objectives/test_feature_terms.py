"""The terms of distillation by features, each against its formula written out, and what must not change them."""

import dataclasses

import pytest
import tiny
import torch
import torch.nn.functional as F

from dinov2_zoo.arguments import parse
from dinov2_zoo.config import DistillConfig, FeaturesConfig, ObjectiveConfig
from dinov2_zoo.errors import ConfigError
from dinov2_zoo.objectives.distances import token_distance
from dinov2_zoo.objectives.neighbours import ClassQueue, neighbour_divergence, patch_neighbour_loss
from dinov2_zoo.objectives.relations import class_gram_loss, gram_loss

ALONE = dict.fromkeys(("class_weight", "patch_weight", "gram_weight", "class_gram_weight"), 0.0)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def turned(x, seed=9):
    """The same in a turned and stretched space."""
    return 3 * x @ torch.linalg.qr(normal(x.shape[-1], x.shape[-1], seed=seed))[0]


def same_value_and_gradient(ours, plain, *inputs):
    inputs = [x.clone().requires_grad_() for x in inputs]
    values = [function(*inputs) for function in (ours, plain)]
    torch.testing.assert_close(*values)
    for mine, theirs in zip(*(torch.autograd.grad(value, inputs) for value in values), strict=True):
        assert theirs.abs().max() > 1e-6
        torch.testing.assert_close(mine, theirs)


def cosine(a, b):
    return (a @ b) / (a.norm() * b.norm())


def test_the_distance_is_its_three_parts():
    target = normal(4, 5, 6, seed=1)

    def plain(x):
        near = (x - target).abs()
        smooth = torch.where(near < 1, near**2 / 2, near - 0.5).mean()
        cosines = [cosine(a, b) for a, b in zip(x.flatten(0, 1), target.flatten(0, 1), strict=True)]
        return 0.2 * (1 - torch.stack(cosines)).mean() + 0.3 * smooth + 0.5 * ((x - target) ** 2).mean()

    same_value_and_gradient(
        lambda x: token_distance(x, target, cosine=0.2, smooth_l1=0.3, mse=0.5), plain, normal(4, 5, 6)
    )


def test_the_gram_term_is_the_difference_of_all_cosines_of_centred_tokens():
    teacher = normal(2, 3, 4, 7, seed=1)

    def plain(x):
        rows = [(s - s.mean(0), t - t.mean(0)) for s, t in zip(x.flatten(0, 1), teacher.flatten(0, 1), strict=True)]
        found = [(cosine(s[i], s[j]) - cosine(t[i], t[j])) ** 2 for s, t in rows for i in range(4) for j in range(4)]
        return torch.stack(found).mean()

    same_value_and_gradient(lambda x: gram_loss(x, teacher), plain, normal(2, 3, 4, 5))


def test_of_a_large_grid_an_even_share_of_the_patches_is_compared(monkeypatch):
    student, teacher = normal(2, 12, 5), normal(2, 12, 7, seed=1)
    own, theirs = student - student.mean(1, keepdim=True), teacher - teacher.mean(1, keepdim=True)
    monkeypatch.setattr("dinov2_zoo.objectives.relations.MOST", 5)
    pairs = [(i, j) for i in (0, 2, 4, 7, 9) for j in (0, 2, 4, 7, 9)]
    found = [(cosine(s[i], s[j]) - cosine(t[i], t[j])) ** 2 for s, t in zip(own, theirs, strict=True) for i, j in pairs]
    torch.testing.assert_close(gram_loss(student, teacher), torch.stack(found).mean())


def test_blank_pictures_whose_tokens_differ_by_rounding_alone_teach_next_to_nothing():
    teacher, blank = normal(2, 3, 4, 7, seed=1), torch.ones(2, 3, 4, 5) + 1e-7 * normal(2, 3, 4, 5)
    blank.requires_grad_()
    gram_loss(blank, teacher).backward()
    assert blank.grad.abs().max() < 1


def test_the_class_gram_term_is_over_all_views_and_images():
    teacher = normal(2, 3, 7, seed=1).flatten(0, 1)

    centred = teacher - teacher.mean(0)

    def plain(x):
        x = x.flatten(0, 1)
        x = x - x.mean(0)
        pairs = [(i, j) for i in range(6) for j in range(6)]
        found = [(cosine(x[i], x[j]) - cosine(centred[i], centred[j])) ** 2 for i, j in pairs]
        return torch.stack(found).mean()

    same_value_and_gradient(lambda x: class_gram_loss(x, teacher.unflatten(0, (2, 3))), plain, normal(2, 3, 5))


def test_relations_do_not_change_when_the_students_space_is_turned():
    patches, classes, seeds = normal(2, 3, 4, 7), normal(2, 3, 7), torch.arange(3)
    again = turned(patches), turned(classes)
    assert gram_loss(again[0], patches) < 1e-20 and class_gram_loss(again[1], classes) < 1e-20
    assert patch_neighbour_loss(again[0], patches, seeds, patches=2, temperature=0.1).abs() < 1e-12
    other = normal(2, 3, 4, 7, seed=3), normal(2, 3, 7, seed=3)
    assert gram_loss(other[0], patches) > 0.01 and class_gram_loss(other[1], classes) > 0.01
    assert patch_neighbour_loss(other[0], patches, seeds, patches=2, temperature=0.1) > 0.01


def test_the_divergence_is_from_the_teachers_softmax_to_the_students():
    teacher, hidden = normal(3, 5, seed=1), torch.zeros(3, 5, dtype=torch.bool)
    hidden[0, 2] = hidden[1, 0] = True

    def plain(x):
        total = 0
        for i in range(3):
            seen = [j for j in range(5) if not hidden[i, j]]
            p, q = (torch.softmax(cosines[i, seen] / 0.5, 0) for cosines in (teacher, x))
            total = total + (p * (p.log() - q.log())).sum()
        return total / 3

    same_value_and_gradient(lambda x: neighbour_divergence(x, teacher, hidden, 0.5), plain, normal(3, 5))


def test_patches_have_all_other_patches_of_the_batch_as_neighbours():
    teacher, seeds = normal(2, 3, 4, 7, seed=1), torch.arange(3)

    def plain(x):
        s, t = (F.normalize(y.flatten(0, 2), dim=1) for y in (x, teacher))
        others = ~torch.eye(24, dtype=torch.bool)
        p, q = ((y @ y.T / 0.2)[others].unflatten(0, (24, 23)).softmax(1) for y in (t, s))
        return (p * (p / q).log()).sum(1).mean()

    student = normal(2, 3, 4, 5)
    same_value_and_gradient(
        lambda x: patch_neighbour_loss(x, teacher, seeds, patches=99, temperature=0.2), plain, student
    )
    # Drawn ones: as many of every crop, others for another seed.
    student.requires_grad_()
    drawn = []
    for shift in (0, 5):
        loss = patch_neighbour_loss(student, teacher, seeds + shift, patches=2, temperature=0.2)
        (gradient,) = torch.autograd.grad(loss, student)
        drawn.append(gradient.abs().sum(-1) > 0)
        assert (drawn[-1].sum(-1) == 2).all()
    assert not torch.equal(*drawn)


def test_the_queue_holds_the_teachers_latest_tokens_and_compares_with_them():
    queue = ClassQueue(5, 7).double()
    student, teacher = normal(2, 2, 6, 7)
    student.requires_grad_()
    nothing = queue.loss(student, teacher, 0.1)
    assert nothing == 0 and torch.autograd.grad(nothing, student)[0].abs().max() == 0
    added = normal(4, 1, 2, 7, seed=5)
    for number, tokens in enumerate(added):
        queue.add(tokens)
        kept = F.normalize(added[: number + 1].flatten(0, 2)[-5:], dim=1)
        found = queue.tokens[: int(queue.seen)]
        # As a set: the oldest are overwritten where they stand.
        assert sorted(found.sum(1).tolist()) == pytest.approx(sorted(kept.sum(1).tolist()))
        loss = queue.loss(student, teacher, 0.1)
        queue.add(tokens[:, :0])  # nothing, but in place: the backward pass must not mind

        def plain(x, kept=kept):
            p, q = ((F.normalize(y.flatten(0, 1), dim=1) @ kept.T / 0.1).softmax(1) for y in (teacher, x))
            return (p * (p / q).log()).sum(1).mean()

        torch.testing.assert_close(loss, plain(student))
        torch.testing.assert_close(*(torch.autograd.grad(x, student)[0] for x in (loss, plain(student))))


@pytest.mark.parametrize(
    ("weight", "term"),
    [
        ("gram_weight", "gram"),
        ("class_gram_weight", "class_gram"),
        ("neighbour_weight", "patch_neighbours"),
        ("queue_weight", "class_neighbours"),
    ],
)
def test_a_term_alone_is_the_loss_and_teaches_the_backbone(weight, term):
    config = FeaturesConfig(**{**ALONE, weight: 3.0}, queue_size=12)
    module = tiny.features(ObjectiveConfig(features=config))
    module(tiny.batch(seed=1))  # fills the queue
    terms = module(tiny.batch())
    assert terms.keys() == {"loss", term} and terms[term] > 0
    torch.testing.assert_close(terms["loss"], 3 * terms[term])
    terms["loss"].backward()
    assert module.student.backbone.blocks[0].attn.qkv.weight.grad.abs().max() > 0
    unprojected = module.student.projector.patches.weight.grad is None
    assert unprojected  # no term here is about projected patches


def test_the_queue_is_training_state_and_moves_in_training_only():
    module = tiny.features(ObjectiveConfig(features=FeaturesConfig(queue_weight=1.0, queue_size=12)))
    assert {"objective.queue.tokens", "objective.queue.seen"} <= module.state_dict().keys()
    module(tiny.batch())
    assert module.objective.queue.seen == 10  # global crops only
    module.eval()
    module(tiny.batch())
    assert module.objective.queue.seen == 10
    assert "objective.queue.tokens" not in tiny.features().state_dict()


def test_class_tokens_may_have_the_cosine_alone():
    batch = tiny.batch()
    config = FeaturesConfig(class_distance="cosine", cosine_weight=0.9, smooth_l1_weight=0.1)
    module = tiny.features(ObjectiveConfig(features=config))
    terms = module(batch)
    student, teacher = module.student(batch.groups()), module.teach(batch)
    views = torch.cat([
        F.cosine_similarity(s.projected.class_token, t.tokens.class_token, dim=-1).mean(1)
        for s, t in zip(student, teacher, strict=True)
    ])  # fmt: skip
    torch.testing.assert_close(terms["class"], (1 - views).mean())
    same = tiny.features(ObjectiveConfig(features=dataclasses.replace(config, class_distance="same")))(batch)
    torch.testing.assert_close(same["patch"], terms["patch"])
    assert same["class"] != terms["class"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["class_weight=0", "patch_weight=0", "gram_weight=0", "class_gram_weight=0"],
            r"nothing is learned: raise one of class_weight",
        ),
        (["gram_weight=-1"], r"must be 0 or more"),
        (["cosine_weight=0", "smooth_l1_weight=0"], r"no distance: raise one of them"),
        (["neighbour_temperature=0"], r"temperatures .* must be above 0"),
        (["neighbour_patches=0"], r"neighbour_patches must be at least 1"),
        (["queue_weight=1", "queue_size=63"], r"queue_size 63 does not hold the 2 x 32 .* use at least 64"),
    ],
)
def test_settings_that_cannot_work_are_sentences(options, message):
    given = [f"--objective.features.{option}" for option in options]
    with pytest.raises(ConfigError, match=message):
        parse(DistillConfig, ["--loader.batch_size=32", *given])


def test_the_queue_holds_a_step_however_many_micro_batches_it_has():
    options = ["--objective.features.queue_weight=1", "--objective.features.queue_size=32", "--loader.batch_size=32"]
    with pytest.raises(ConfigError, match="use at least 64"):
        parse(DistillConfig, [*options, "--optim.accumulate=2"])
    parse(DistillConfig, [*options, "--loader.batch_size=16"])
    # Where a term is left out, what it is made of does not matter.
    parse(DistillConfig, options[1:])
