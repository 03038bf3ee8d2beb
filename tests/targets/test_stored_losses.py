"""A student learns the same from stored targets as from the teacher itself, to the rounding that is stated."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from target_stores import CROPS, store

from dinov2_zoo.arguments import parse
from dinov2_zoo.config import DistillConfig, LoaderConfig
from dinov2_zoo.data.heldout import split_heldout
from dinov2_zoo.data.loader import train_loader
from dinov2_zoo.data.sources import open_source
from dinov2_zoo.hub.build import build_distillation
from dinov2_zoo.models.stored import LEVELS, StoredBackbone
from dinov2_zoo.targets.fit import SPAN
from dinov2_zoo.targets.store import open_store

IMAGES = 9


@pytest.fixture(scope="module")
def whole(made):
    """The same store with every direction: only rounding is lost."""
    return SimpleNamespace(**vars(made) | {"store": store(made, "--directions=64", to="whole")})


def pair(place, *options):
    """The module with its teacher, the same with the store in its place, and a function that reads batches."""
    names = [*CROPS, "--student=vitti14", "--init=random", f"--teacher={place.teacher}", *options]
    config, _ = parse(DistillConfig, names)
    opened = open_store(str(place.store))
    torch.manual_seed(0)
    live, stored = build_distillation(config), build_distillation(config, store=opened)
    for branch in ("student", "ema"):
        getattr(stored, branch).load_state_dict(getattr(live, branch).state_dict())
    if live.teacher.dino is not None:  # random heads: the same
        for head in ("dino", "ibot"):
            getattr(stored.teacher, head).load_state_dict(getattr(live.teacher, head).state_dict())
    images, _ = split_heldout(open_source(str(place.images)), 3, config.runtime.seed)

    def batches(steps, targets=None, **more):
        reader = opened.reader(config.crops.local_count) if targets is None else targets or None
        return list(train_loader(images, config.crops, LoaderConfig(3, 0), seed=0, steps=steps, targets=reader, **more))

    return live, stored, batches


def test_the_teacher_is_not_there_and_its_tokens_are(whole):
    live, stored, batches = pair(whole)
    assert isinstance(stored.teacher.backbone, StoredBackbone) and not list(stored.teacher.parameters())
    (batch,) = batches(1)
    assert [codes.shape for codes in batch.targets] == [(2, 3, 64 + 4 * 64), (2, 3, 64 + 64)]
    for mine, theirs in zip(stored.teach(batch), live.teach(replace(batch, targets=None)), strict=True):
        for kind in ("class_token", "patches"):
            a, b = getattr(mine.tokens, kind), getattr(theirs.tokens, kind)
            step = getattr(stored.teacher.backbone.code, kind).read.diagonal()  # all channels: each by itself
            assert a.shape == b.shape and bool(((a - b).abs() <= 0.501 * step).all()) and not torch.equal(a, b)


def test_features_losses_are_the_teachers_to_the_rounding(whole):
    live, stored, batches = pair(whole)
    code = stored.teacher.backbone.code
    with torch.no_grad():
        for module in (live, stored):  # as `fit_projector` does: standardise by the teacher's channels
            for kind in ("class_token", "patches"):
                scale = getattr(module.objective, kind)
                scale.mean.copy_(getattr(code, kind).mean)
                scale.deviation.copy_(getattr(code, kind).read.diagonal() * LEVELS / SPAN)
    for batch in batches(3):
        with torch.no_grad():
            mine, theirs = stored(batch), live(replace(batch, targets=None))
        for term in ("class", "patch"):
            # Targets move by half a step of a deviation at most. Smooth-L1 moves no further; a cosine by no more than
            # the angle that the target turns: half a step over its length, which is about one a channel.
            half = 0.5 * SPAN / LEVELS
            moved = abs(float(mine[term]) - float(theirs[term]))
            assert 0 < moved < half * 0.5, (term, moved)
            assert moved < 0.005, "rounding is not one-sided, so that means move less: a twentieth of a step"


def test_prototype_losses_are_the_teachers_to_the_rounding(whole):
    heads = [
        f"--{head}_head.{key}" for head in ("dino", "ibot") for key in ("prototypes=16", "hidden=24", "bottleneck=8")
    ]
    live, stored, batches = pair(whole, "--objective.kind=prototypes", "--heads=random", *heads)
    first, second = batches(2)
    with torch.no_grad():
        mine, theirs = stored(first), live(replace(first, targets=None))
        other = stored(replace(first, targets=second.targets))
    for term in ("dino", "ibot"):
        moved, otherwise = (abs(float(found[term]) - float(theirs[term])) for found in (mine, other))
        assert 0 < moved < 0.002 * float(theirs[term]), (term, moved)
        assert otherwise > 3 * moved


def test_few_directions_move_patch_targets_only(made, whole):
    _, few, batches = pair(made)
    (batch,) = batches(1)
    live, _, _ = pair(whole)
    for mine, theirs in zip(few.teach(batch), live.teach(replace(batch, targets=None)), strict=True):
        assert float(F.cosine_similarity(mine.tokens.class_token, theirs.tokens.class_token, dim=-1).min()) > 0.999
        assert 0.4 < float(F.cosine_similarity(mine.tokens.patches, theirs.tokens.patches, dim=-1).mean()) < 0.99


def test_epochs_beyond_the_stored_ones_are_the_stored_ones_again_in_their_own_order(made):
    _, _, batches = pair(made)
    stored, live = batches(12), batches(12, targets=False)  # four epochs of nine images
    by_epoch = [stored[3 * e : 3 * e + 3] for e in range(4)]
    for first, again in ((0, 2), (1, 3)):
        ids, ids_again = (torch.cat([b.sample_ids for b in by_epoch[e]]) for e in (first, again))
        assert ids.tolist() != ids_again.tolist() and ids.sort().values.tolist() == list(range(IMAGES))
        order, order_again = ids.argsort(), ids_again.argsort()
        for group in range(2):
            crops, again_crops = (
                torch.cat([b.groups()[group] for b in by_epoch[e]], 1)[:, o]
                for e, o in ((first, order), (again, order_again))
            )
            codes, again_codes = (
                torch.cat([b.targets[group] for b in by_epoch[e]], 1)[:, o]
                for e, o in ((first, order), (again, order_again))
            )
            assert torch.equal(crops, again_crops) and torch.equal(codes, again_codes)
    assert not torch.equal(by_epoch[0][0].targets[0], by_epoch[1][0].targets[0])
    for mine, theirs in zip(stored[:6], live[:6], strict=True):  # the first two epochs: the very batches of a live run
        assert torch.equal(mine.sample_ids, theirs.sample_ids) and torch.equal(mine.global_crops, theirs.global_crops)
    assert [b.sample_ids.tolist() for b in stored] == [b.sample_ids.tolist() for b in live]


def test_processes_micro_batches_and_workers_see_the_same_targets(made):
    _, _, batches = pair(made)
    whole = batches(2)
    for parts in (
        [b for rank in range(3) for b in batches(2, rank=rank, world_size=3)[:1]],
        batches(2, accumulate=3)[:3],
    ):
        assert torch.equal(torch.cat([part.targets[0] for part in parts], 1), whole[0].targets[0])
    moved = whole[0].to("meta")
    assert all(codes.is_meta for codes in moved.targets) and moved.for_teacher() is moved.targets
